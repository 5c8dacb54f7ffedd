"""Weights rounded in the order of the graph, each layer by what the quantized layers before it give."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from onnxq.algorithms.learned.correction import Streams, correction
from onnxq.core import scratch
from onnxq.core.affine import dequantize
from onnxq.core.dtypes import Array
from onnxq.errors import RecipeError
from onnxq.graph import walk
from onnxq.graph.emit.rewrite import WeightRewrite
from onnxq.graph.types import Node
from onnxq.pipeline.job import Job
from onnxq.plan.decisions import WEIGHT, Plan
from onnxq.plan.weights.needed_moments import layer_input, moments_of
from onnxq.plan.weights.weight_only import matrix_of
from onnxq.recipe.rounding import ALGORITHMS_WITH_DATA
from onnxq.runtime.streams.two_streams import Sums, TwoStreams
from onnxq.stats.statistics import InputStatistics


@dataclass
class Sequential:
    """Statistics of layer inputs, gathered when a layer's turn comes; see `onnxq.plan.weights.pack.InOrder`.

    Attributes:
        streams: the samples on their way.
        readers: layers by the value that they read.
        constants: weights of layers that are quantized, as floats, until the samples have passed them.
    """

    streams: TwoStreams
    readers: dict[str, list[Node]]
    constants: dict[str, tuple[int, Array]] = field(default_factory=dict)
    _last: tuple[str, InputStatistics | None] = ("", None)

    @classmethod
    def of(cls, job: Job, plan: Plan, stack: ExitStack) -> Sequential:
        """Begin in front of a job's model.

        Raises:
            RecipeError: there are no samples, or no layer whose weight is rounded by them.
        """
        if job.data is None:
            raise RecipeError("--sequential: needs samples to run through the layers; pass --calibration")
        model = job.prepared.model
        values = moments_of(model, plan)
        if not values:
            raise RecipeError(
                f"--sequential: no layer's weight is rounded by samples here; use it with --algorithm "
                f"{' or '.join(ALGORITHMS_WITH_DATA)} and packed weights (w4, w2)"
            )
        readers: dict[str, list[Node]] = {name: [] for name in values}
        for node in model.graph:
            read, planned = layer_input(node), plan.nodes.get(node.name or "")
            packed = planned is not None and planned.action == WEIGHT and planned.algorithm in ALGORITHMS_WITH_DATA
            if packed and read is not None and read[0] in readers:
                readers[read[0]].append(node)
        folder = stack.enter_context(scratch.folder())
        # the model is copied: it must stay as it is until the last layer is reached
        return cls(TwoStreams(model.clone(), list(values), job.data.calibration, folder, job.threads), readers)

    def known(self, node: Node) -> InputStatistics | None:
        """What a layer reads, in the model as it is so far; None where the samples never come there."""
        read = layer_input(node)
        if read is None or read[0] not in self.readers:
            return None
        if self._last[0] != read[0]:
            fitted, held = self.streams.advance(read[0], self.constants)
            for name in self.streams.nodes_of(read[0]):
                self.constants.pop(name, None)
            self._last = read[0], _statistics(self.readers[read[0]], fitted, held)
        return self._last[1]

    def done(self, node: Node, change: WeightRewrite) -> None:
        """Take a layer's rounded weight into the quantized model."""
        for position, tensor in change.constants.items():
            old, matrix = walk.const_array(node.inputs[position]), matrix_of(node)
            assert old is not None
            if isinstance(matrix, str) or tensor.values.shape != matrix.shape:
                continue
            real = dequantize(tensor.values, tensor.params)
            turned = node.op_type != "Gather" and not walk.outputs_first(node)
            real = (real.T if turned else real).reshape(old.shape)
            self.constants[node.name or ""] = position, np.ascontiguousarray(real, old.dtype)


def _statistics(layers: list[Node], fitted: Sums, held: Sums) -> InputStatistics | None:
    total = fitted.moment.merge(held.moment)
    if not total.rows:
        return None
    weights = [matrix for node in layers if not isinstance(matrix := matrix_of(node), str)]
    known = _streams(fitted)
    if known is None:
        return InputStatistics(total, correction=np.zeros((total.channels or 0,) * 2, np.float32))
    return InputStatistics(total, correction=correction(weights, known, _streams(held)))


def _streams(sums: Sums) -> Streams | None:
    moment = sums.moment.matrix
    return None if moment is None or sums.difference is None else Streams(moment, sums.difference)
