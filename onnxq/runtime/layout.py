"""Sessions that hand out inner values as the kernels hold them, where copying them into place would cost time.

On x86 the runtime computes convolutions on blocks of 8 or 16 channels (NCHWc) and reorders every value that is a graph
output back to NCHW: a third of the time of a MobileNet. Statistics do not depend on the order of elements, so
calibration does without: the optimized model is saved, its reorders are cut off, and it is opened again. Whether this
is done depends on the model alone, so that shards of a run are made alike and merge to the bits of the whole.
"""

from __future__ import annotations

import contextlib
import weakref

from onnxq.core.scratch import Scratch
from onnxq.errors import OnnxqError
from onnxq.graph.views.outputs import Model, has_operator, weight_bytes, without_reorders
from onnxq.runtime.session import CPU, Session, open_in_order, providers_from, session_of

_MOST_WEIGHTS = 512 * 2**20
"""Bytes of weights above which the temporary file is not worth its disk space."""


def unordered_session(model: Model, *, threads: int | None = None, provider: str = CPU) -> Session:
    """Open a model so that its outputs hold the right elements in the right shape, but perhaps in another order.

    Args:
        model: unchanged; its weights must not be changed while the session lives.
        threads: threads an operator may use; None lets the runtime choose.
        provider: execution provider to run on.

    Raises:
        ModelError: the runtime cannot load the model.
    """
    session = None
    if provider == CPU and has_operator(model, "Conv") and weight_bytes(model) <= _MOST_WEIGHTS:
        with contextlib.suppress(OnnxqError, OSError):  # no space, or a runtime that cannot read what it wrote
            session = _blocked_session(model, threads)
    return session or session_of(model, threads=threads, providers=providers_from(provider))


def _blocked_session(model: Model, threads: int | None) -> Session:
    made = Scratch.make()
    try:
        path = made.path / "optimized.onnx"
        session_of(model, threads=threads, save_to=path, packed=False)
        content = without_reorders(path)
        if content is not None:
            path.write_bytes(content)
        session = open_in_order(path, threads=threads, label="model")
    except BaseException:
        made.remove()
        raise
    weakref.finalize(session, made.remove)  # the runtime maps its weights
    return session
