"""What there is to choose from, as data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from onnxq.recipe.presets import PRESETS
from onnxq.targets import TARGETS


def presets() -> list[dict[str, Any]]:
    """All presets, as data."""
    return [asdict(preset) for preset in PRESETS.values()]


def targets() -> list[dict[str, Any]]:
    """All targets, as data."""
    return [
        {
            "name": target.name,
            "description": target.description,
            "activation": target.activation.value,
            "weight": target.weight.value
            + (f", {target.weight_bits} bits used" if target.weight_bits < target.weight.bits else ""),
            "formats": list(target.formats),
            "operators": sorted(target.integer_ops),
        }
        for target in TARGETS.values()
    ]
