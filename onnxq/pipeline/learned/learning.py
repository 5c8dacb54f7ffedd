"""Learn the rounding of weights on integer layers, once the plain solution is there."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onnxq._version import __version__
from onnxq.algorithms.adaround import AdaRoundConfig, adaround
from onnxq.core import atomic
from onnxq.core.affine import dequantize
from onnxq.core.dtypes import Array
from onnxq.core.spec import PerAxis, PerBlock, QParams, QTensor, TensorSpec
from onnxq.errors import RecipeError
from onnxq.graph.emit.apply import use_own_pair
from onnxq.graph.emit.inference.at_inference import emit_dynamic
from onnxq.graph.emit.qdq import emit_qdq
from onnxq.graph.emit.rewrite import SPLIT, TENSOR, TOKEN, DynamicRewrite, NodeRewrite
from onnxq.graph.files import io
from onnxq.graph.reading.matrices import Matrices, matrices_of
from onnxq.graph.reading.ops import OPS
from onnxq.graph.types import Model, Node
from onnxq.graph.walk import all_nodes, const_array
from onnxq.pipeline.job import Job
from onnxq.plan.decisions import Plan
from onnxq.plan.solve import Solution
from onnxq.plan.weights.constants import Weights, node_rewrite
from onnxq.qat.computing_time import Allowance, Mark
from onnxq.runtime.engines.installed import newest_pairs
from onnxq.runtime.layer_moments import LayerInput, LayerMoments, SecondStream, layer_moments
from onnxq.stats.statistics import Statistics

_ROWS = 8192
"""Rows that a layer's moments are the mean of, about."""

_FEEDS = 64
"""Samples that are run for each layer, at most."""


def refine(
    job: Job,
    plan: Plan,
    solution: Solution,
    statistics: Statistics | None,
    config: AdaRoundConfig | None = None,
    allowance: Allowance | None = None,
) -> tuple[Solution, list[str]]:
    """Replace rounding to nearest by AdaRound in every integer layer with a constant weight, static or dynamic.

    Layer by layer, each learns to give the float layer's outputs from what it will really be given: the values of the
    model whose earlier layers have learned already. The mean of what is left is taken from its bias.

    Args:
        job: its prepared model is not changed.
        plan: decisions.
        solution: the plan with weights rounded to nearest.
        statistics: for bias correction; None where there is none.
        config: how to learn.
        allowance: time that it may take; layers whose turn comes later stay rounded to nearest. None sets no end.

    Raises:
        RecipeError: there are no samples.

    Returns:
        The solution with learned weights and the biases that go with them, and warnings.
    """
    if job.data is None:
        raise RecipeError("--adaround: needs samples to learn from; pass --calibration")
    model, data, clock = job.prepared.model, job.data, job.clock
    nodes = {node.name or "": node for node in all_nodes(model.graph)}
    layers: dict[str, LayerInput] = {}
    for node in model.graph:
        name = node.name or ""
        change: NodeRewrite | DynamicRewrite | None = solution.rewrite.nodes.get(name)
        if change is None:
            change = solution.rewrite.dynamic.get(name)
            if change is not None and change.form not in (TENSOR, TOKEN, SPLIT):
                continue
        found = matrices_of(node)
        source = node.inputs[0] if node.inputs else None
        if change is not None and 1 in change.constants and found is not None and source is not None and source.name:
            layers[name] = LayerInput(source.name, found)
    if not layers:
        return solution, ["--adaround: no layer with a constant weight runs on integers, so nothing was learned"]
    count = min(data.calibration.count_feeds(), _FEEDS)
    samples = data.calibration.part(0, count)
    rows = max(8, -(-_ROWS // max(count, 1)))
    learned: dict[tuple[str, int], QTensor] = {}
    kept = _Kept.of(job, solution, allowance)
    with clock.step("adaround"):
        report = clock.report("adaround")
        for done, (name, seen) in enumerate(layers.items()):
            known = kept.find(name, _tensor(solution, name))
            if known is not None:
                solution = _with_learned(job, plan, solution, name, known, learned, statistics)
                report(done + 1, len(layers))
                continue
            if allowance is not None and allowance.over:
                break
            begun = allowance.mark() if allowance is not None else None
            stream = _stream(model, solution, seen.value)
            moments = layer_moments(model, {name: seen}, samples, rows=rows, stream=stream, threads=job.threads).get(
                name
            )
            if moments is not None:
                if name in solution.rewrite.dynamic:
                    result: _Learned = _distilled(nodes[name], solution, seen.matrices, moments, config), None
                else:
                    correct = OPS[nodes[name].op_type].bias is not None and statistics is not None
                    tensor = solution.rewrite.nodes[name].constants[1]
                    result = _learn(nodes[name], tensor, seen.matrices, moments, correct, config)
                kept.add(name, result, begun)
                solution = _with_learned(job, plan, solution, name, result, learned, statistics)
            report(done + 1, len(layers))
    return solution, []


_Learned = tuple[QTensor, "Array | None"]
"""A layer's weight, and what to add to its bias; None where nothing is."""


def _tensor(solution: Solution, name: str) -> QTensor:
    change = solution.rewrite.nodes.get(name) or solution.rewrite.dynamic[name]
    return change.constants[1]


def _with_learned(
    job: Job, plan: Plan, solution: Solution, name: str, found: _Learned, learned: dict[tuple[str, int], QTensor],
    statistics: Statistics | None,
) -> Solution:  # fmt: skip
    """The solution with what a layer has learned, which is added to ``learned``."""
    rewrite, (tensor, shift) = solution.rewrite, found
    if name in rewrite.dynamic:
        dynamic = {**rewrite.dynamic, name: replace(rewrite.dynamic[name], constants={1: tensor})}
        return replace(solution, rewrite=replace(rewrite, dynamic=dynamic))
    learned[(name, 1)] = tensor
    node = next(node for node in all_nodes(job.prepared.model.graph) if node.name == name)
    changed = node_rewrite(node, plan.nodes[name], rewrite.read_by(name), Weights(learned), statistics, shift)
    return replace(solution, rewrite=replace(rewrite, nodes={**rewrite.nodes, name: changed}))


@dataclass(frozen=True)
class _Kept:
    """Layers that are done, in files, for a run that goes on after it was killed."""

    folder: Path | None
    signature: str
    allowance: Allowance | None

    @classmethod
    def of(cls, job: Job, solution: Solution, allowance: Allowance | None) -> _Kept:
        if job.layers is None:
            return cls(None, "", allowance)
        copy = job.prepared.model.clone()
        emit_qdq(copy, solution.rewrite)
        emit_dynamic(copy, solution.rewrite)
        return cls(job.layers, learning_signature(job, io.to_bytes(copy)), allowance)

    def _path(self, name: str) -> Path | None:
        digest = hashlib.sha256(f"{self.signature} {name}".encode()).hexdigest()
        return None if self.folder is None else self.folder / f"{digest[:32]}.npz"

    def find(self, name: str, tensor: QTensor) -> _Learned | None:
        path = self._path(name)
        known = None if path is None else atomic.read_arrays(path)
        if known is None or not {"values", "seconds"} <= set(known):
            return None
        values = known["values"].view(tensor.values.dtype)
        if values.shape != tensor.values.shape:
            return None
        if self.allowance is not None:
            self.allowance.spend(float(known["seconds"]))
        return QTensor(values, tensor.params), known.get("shift")

    def add(self, name: str, found: _Learned, begun: Mark | None) -> None:
        path = self._path(name)
        if path is None:
            return
        seconds = 0.0 if self.allowance is None or begun is None else self.allowance.computed_since(begun)
        arrays = {"values": np.ascontiguousarray(found[0].values).view(np.uint8), "seconds": np.array(seconds)}
        atomic.write_arrays(path, arrays if found[1] is None else {**arrays, "shift": found[1]})


def learning_signature(job: Job, content: bytes) -> str:
    """Of all that learning depends on: what is kept of a run goes on only where it agrees.

    Args:
        job: with samples.
        content: the quantized model that learning starts from.
    """
    digest = hashlib.sha256(content)
    digest.update(io.model_hash(job.prepared.model).encode())
    assert job.data is not None
    for part in (__version__, job.data.every.hash, job.recipe.to_yaml(), str(job.threads)):
        digest.update(part.encode())
    return digest.hexdigest()


def _stream(model: Model, solution: Solution, value: str) -> SecondStream:
    """The model as it is so far, and where it holds a value that a layer reads."""
    copy = model.clone()
    emit_qdq(copy, solution.rewrite)
    emit_dynamic(copy, solution.rewrite)
    use_own_pair(copy, newest=newest_pairs())
    places: dict[str, tuple[str, QParams | None]] = {value: (value, None)}
    for node in copy.graph:
        source = node.inputs[0] if node.inputs else None
        if node.op_type == "QuantizeLinear" and source is not None and source.name == value and node.outputs[0].name:
            places[value] = (node.outputs[0].name, solution.rewrite.values[value])
    return SecondStream(copy, places)


def _distilled(
    node: Node, solution: Solution, matrices: Matrices, moments: LayerMoments, config: AdaRoundConfig | None
) -> QTensor:
    """The weight of a layer that quantizes its input at inference, with its roundings learned.

    Its teacher is the float layer on the float model's values, its input what the quantized model gives it: the
    layer-by-layer distillation of ZeroQuant (Yao et al., arXiv:2206.01861, section 4.2).
    """
    name, weight = node.name or "", const_array(node.inputs[1])
    change = solution.rewrite.dynamic[name]
    assert weight is not None
    tensor, rows = change.constants[1], matrices.split(weight)[0].copy()
    moment, cross = moments.moment[0].copy(), None if moments.cross is None else moments.cross[0].copy()
    if change.channels is not None:  # the float part of the layer is exact, so that it has nothing to learn
        rows[:, change.channels] = 0
        for array in (moment, cross):
            if array is not None:
                array[change.channels], array[:, change.channels] = 0, 0
    params, spec = tensor.params, tensor.params.spec
    granularity = spec.granularity
    if isinstance(granularity, PerAxis):
        granularity = PerAxis(0)
    elif isinstance(granularity, PerBlock):
        granularity = PerBlock(1, granularity.size)
    turned = TensorSpec(spec.dtype, granularity, spec.symmetric, spec.narrow_range, spec.grid_bits)
    scale, zero = (array.T if matrices.transposed else array for array in (params.scale, params.zero_point))
    found = adaround(rows, moment, turned, config or AdaRoundConfig(), cross=cross, params=QParams(turned, scale, zero))
    return QTensor(matrices.join(found.values[None], weight.shape), params)


def _learn(
    node: Node, tensor: QTensor, matrices: Matrices, moments: LayerMoments, correct: bool, config: AdaRoundConfig | None
) -> tuple[QTensor, Array | None]:
    """Learn the roundings of one layer, group by group, at the scales it has; and what to add to its bias."""
    weight = const_array(node.inputs[1])
    assert weight is not None
    params = tensor.params
    spec = matrices.spec(params.spec)
    per_row = params.scale.size > 1
    scales = params.scale.reshape(matrices.groups if per_row else 1, -1, 1)
    zeros = params.zero_point.reshape(scales.shape)
    moment, cross = moments.centred() if correct else (moments.moment, moments.cross)
    split = matrices.split(weight)
    values = np.empty(split.shape, params.spec.dtype.numpy)
    shifts = []
    for group in range(matrices.groups):
        own = group if per_row else 0
        found = adaround(
            split[group],
            moment[group],
            spec,
            config or AdaRoundConfig(),
            cross=None if cross is None else cross[group],
            params=QParams(spec, scales[own], zeros[own]),
        )
        values[group] = found.values
        real = dequantize(found.values, found.params).astype(np.float64)
        shifts.append(split[group].astype(np.float64) @ moments.mean[group] - real @ moments.given[group])
    shift = np.concatenate(shifts) if correct else None
    return QTensor(matrices.join(values, weight.shape), params), shift
