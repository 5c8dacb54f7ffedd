"""What the outputs of a model hold, for whatever learns to give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.errors import CalibrationError
from onnxq.graph.reading.output_facts import OutputFact
from onnxq.pipeline.job import Job
from onnxq.runtime.session import open_session
from onnxq.verify import loss
from onnxq.verify.kinds.output_kinds import normalized_axis

if TYPE_CHECKING:
    from onnxq.qat.distillation import OutputKind

_SCORES = (loss.CLASSES, loss.POSITIONS, loss.TEXT)


def output_targets(
    job: Job, judged: Mapping[str, loss.Judged | None], labels: list[Array] | None, option: str
) -> dict[str, OutputKind]:
    """What each output holds that a model may learn to give, by its name in the prepared model.

    Args:
        job: with samples.
        judged: of each output, as a comparison with the float model judges it.
        labels: of all samples; None where there are none.
        option: what asks for learning, for messages.

    Raises:
        CalibrationError: no output has numbers that could be learned.
    """
    from onnxq.qat.distillation import OutputKind

    assert job.data is not None
    session = open_session(job.prepared.original, threads=job.threads)
    outputs = dict(zip(session.output_names, session.run(job.data.first, session.output_names), strict=True))
    facts = job.output_facts()
    found = {}
    for name, each in judged.items():
        array = outputs.get(name)
        if each is None or each.kind == loss.ELEMENTS or not isinstance(array, np.ndarray):
            continue
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            continue
        array = array.astype(np.float32)
        normalized = normalized_axis(array)
        axis = _class_axis(array, facts.get(name)) if each.kind in _SCORES else None
        if normalized is not None and each.kind in _SCORES:
            axis = normalized
        fits = labels is not None and axis is not None and _are_classes(labels, array, axis)
        found[name] = OutputKind(each.kind, axis, normalized is not None, float(array.var()), fits)
    if not found:
        raise CalibrationError(f"{option}: no output of the model has finite real numbers that could be learned")
    return found


def _are_classes(labels: list[Array], output: Array, axis: int) -> bool:
    """Whether labels can be the classes of an output that the first sample gave."""
    count = output.shape[axis]
    within = all(part.size == 0 or (part.min() >= 0 and part.max() < count) for part in labels)
    return within and labels[0].size * count == output.size


def _class_axis(array: Array, fact: OutputFact | None) -> int:
    if fact is not None and fact.class_axis is not None and array.ndim > 2:
        return fact.class_axis % array.ndim
    return array.ndim - 1
