"""The IR version that the operator sets ask for, and that runtimes accept."""

from __future__ import annotations

import onnx
import onnx_ir as ir

_ACCEPTED = 10
"""Every supported runtime reads files up to this version; a newer one is kept only where operator sets need it."""

_LOWEST = 4
"""The first version whose initializers need not be graph inputs."""


def settle(model: ir.Model) -> None:
    """Raise the version to what the imported operator sets need; lower one that is newer than it has to be."""
    needed = max(_LOWEST, _needed(model.opset_imports))
    if model.ir_version < needed:
        model.ir_version = needed
    elif model.ir_version > max(needed, _ACCEPTED):
        model.ir_version = max(needed, _ACCEPTED)


def _needed(opset_imports: dict[str, int]) -> int:
    versions = onnx.helper.OP_SET_ID_VERSION_MAP
    newest = max(versions.values())
    return max(
        (
            versions.get((domain or "ai.onnx", version), newest if domain in ("", "ai.onnx") else 1)
            for domain, version in opset_imports.items()
        ),
        default=1,
    )
