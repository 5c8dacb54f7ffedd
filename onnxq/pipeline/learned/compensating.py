"""Round the weights of integer layers so that errors make good for each other, by what these layers really see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from onnxq.algorithms.gptq import GPTQConfig, gptq, gptq_by_group
from onnxq.algorithms.shrinkage import shrunk
from onnxq.core.dtypes import Array
from onnxq.core.processors import blas_threads
from onnxq.core.spec import QParams, QTensor
from onnxq.errors import CalibrationError, ModelError, RecipeError
from onnxq.graph import walk
from onnxq.graph.emit.apply import emit
from onnxq.graph.emit.rewrite import Rewrite
from onnxq.graph.reading.matrices import Matrices, matrices_of
from onnxq.graph.types import Model, Node
from onnxq.pipeline.job import Job
from onnxq.plan.decisions import DYNAMIC, INTEGER, STORAGE, Plan
from onnxq.plan.solve import Solution
from onnxq.plan.weights.constants import Weights, node_rewrite
from onnxq.recipe.recipe import Recipe
from onnxq.runtime.layer_moments import LayerInput, LayerMoments, layer_moments
from onnxq.stats.statistics import Statistics

Rounded = Mapping[tuple[str, int], QTensor]
"""Weights by (node, input)."""

_LEAST_ROWS, _MOST_ROWS, _FEEDS = 1024, 4096, 12
"""Rows that the second moments of a layer are the mean of, about, and samples that they come from."""

QUICK = 3e10
"""Multiplications that a search lets it take: some seconds of one core."""

_BITS = 8

_DAMPINGS = (0.01, 0.1)
"""Shares of the mean by which the diagonals of second moments are raised: the more, the less correlations count."""

_CHECKED = 4
"""One sample in so many is kept apart, to choose the damping by it."""

_MOST_BYTES = 2**29
"""Second moments that are held at a time; beyond it the samples are run again."""

_MOST_INPUTS = 8192
"""Inputs of an output beyond which a layer stays rounded to nearest: its second moment alone has half a gigabyte."""


def compensates(recipe: Recipe) -> bool:
    """Whether weights of layers that are not packed are to be rounded by how they are used.

    Below 8 bits the algorithm is about those that are: GPTQ is the default there.
    """
    packed = [recipe.bits or preset.bits for preset in recipe.presets if preset.weights == "blocks"]
    return recipe.algorithm == "gptq" and min(packed, default=_BITS) >= _BITS


def compensated(job: Job, plan: Plan, rewrite: Rewrite) -> Rounded:
    """Round the weights of a rewrite anew, column by column, on the scales that they have.

    GPTQ, with second moments of what the quantized model gives each layer: noise of activations is in them, and keeps
    weights from being fitted to what is lost anyway. They are not taken about the mean, although a bias makes good for
    that: quantized layers give another mean than float ones do, and another one for each sample. All layers see the
    model whose weights are rounded to nearest, so that one pass over the samples serves them all.

    Args:
        job: its prepared model is not changed.
        plan: decisions.
        rewrite: the plan with weights rounded to nearest.

    Returns:
        The weights that were rounded anew. Those that several nodes read are none of them, nor those in subgraphs.

    Raises:
        RecipeError: there are no samples.
    """
    if job.data is None:
        raise RecipeError("--algorithm gptq: needs samples to round weights by; pass --calibration")
    model = job.prepared.model
    layers = _affordable(_layers(model, plan, rewrite), job.rounding)
    if not layers:
        return {}
    largest = max(matrices.inputs for _, matrices, _ in layers.values())
    with job.clock.step("gptq"), blas_threads(largest):
        copy = model.clone()
        emit(copy, rewrite, "qdq")
        places = {node.name or "": node for node in copy.graph}
        seen = {
            name: LayerInput(_value(node, places.get(name)), matrices) for name, (node, matrices, _) in layers.items()
        }
        count = min(job.data.calibration.count_feeds(), _FEEDS)
        kept = max(1, count // _CHECKED)
        samples = job.data.calibration
        parts = [samples.part(0, max(count - kept, 1)), samples.part(count - kept, count)]
        found: dict[tuple[str, int], QTensor] = {}
        report = job.clock.report("gptq")
        for names in _in_groups(layers):
            rows = {name: max(8, -(-_rows(layers[name][1]) // max(count, 1))) for name in names}
            wanted = {name: seen[name] for name in names}
            try:
                fit, check = (layer_moments(copy, wanted, part, rows=rows, threads=job.threads) for part in parts)
            except ModelError:  # whoever builds and verifies the model says what is wrong
                break
            for name in names:
                if name not in fit or name not in check:
                    continue
                node, matrices, tensor = layers[name]
                values = _rounded(node, matrices, tensor, fit.pop(name), check.pop(name))
                if values is not None:
                    found[name, 1] = QTensor(values, tensor.params)
                report(len(found), len(layers))
    return found


def with_rounded(job: Job, plan: Plan, solution: Solution, statistics: Statistics | None, rounded: Rounded) -> Solution:
    """The solution with weights that were rounded anew, where it has them on the same scales; biases go with them.

    Args:
        job: whose model it is.
        plan: decisions.
        solution: the plan with weights rounded to nearest.
        statistics: for bias correction; None where there is none.
        rounded: of `compensated`.
    """
    nodes = {node.name or "": node for node in job.prepared.model.graph}
    rewrite = solution.rewrite
    changed, dynamic, storage = dict(rewrite.nodes), dict(rewrite.dynamic), dict(rewrite.storage)
    for (name, position), tensor in rounded.items():
        had = _tensor(rewrite, name) if name in plan.nodes else None
        if had is None or not _same_grid(had.params, tensor.params):
            continue
        if name in changed:
            known = Weights({(name, i): old for i, old in changed[name].constants.items()} | {(name, position): tensor})
            changed[name] = node_rewrite(nodes[name], plan.nodes[name], rewrite.values, known, statistics)
        elif name in dynamic:
            dynamic[name] = replace(dynamic[name], constants={**dynamic[name].constants, position: tensor})
        else:
            storage[name] = {**storage[name], position: tensor}
    return replace(solution, rewrite=replace(rewrite, nodes=changed, dynamic=dynamic, storage=storage))


def _same_grid(one: QParams, other: QParams) -> bool:
    same = np.array_equal(one.scale, other.scale) and np.array_equal(one.zero_point, other.zero_point)
    return same and one.spec == other.spec


_Layer = tuple[Node, Matrices, QTensor]


def _layers(model: Model, plan: Plan, rewrite: Rewrite) -> dict[str, _Layer]:
    """The layers whose weights can be rounded anew, those first that cost least."""
    found: dict[str, _Layer] = {}
    for node in model.graph:
        name = node.name or ""
        planned, tensor = plan.nodes.get(name), _tensor(rewrite, name)
        matrices = matrices_of(node)
        if planned is None or planned.action not in (INTEGER, DYNAMIC, STORAGE):
            continue
        if planned.trained or planned.grids or planned.channels or tensor is None or matrices is None:
            continue
        shared = node.inputs[1] is not None and len(walk.consumers(node.inputs[1])) > 1
        if shared or matrices.inputs > _MOST_INPUTS:
            continue
        if _by_row(tensor.params, matrices) is not None:
            found[name] = node, matrices, tensor
    return dict(sorted(found.items(), key=lambda entry: _cost(entry[1][1])))


def _tensor(rewrite: Rewrite, name: str) -> QTensor | None:
    if name in rewrite.nodes:
        return rewrite.nodes[name].constants.get(1)
    if name in rewrite.dynamic:
        return rewrite.dynamic[name].constants.get(1)
    return rewrite.storage.get(name, {}).get(1)


def _rows(matrices: Matrices) -> int:
    return min(max(2 * matrices.inputs, _LEAST_ROWS), _MOST_ROWS)


def _cost(matrices: Matrices) -> float:
    """Multiplications, about: of the second moment, its factor and the columns."""
    return float(matrices.groups) * matrices.inputs**2 * (matrices.inputs + matrices.outputs + _rows(matrices))


def _affordable(layers: dict[str, _Layer], most: float) -> dict[str, _Layer]:
    """The layers that cost least, as far as so many multiplications go."""
    total, found = 0.0, {}
    for name, layer in layers.items():
        total += _cost(layer[1])
        if total > most:
            break
        found[name] = layer
    return found


def _in_groups(layers: Mapping[str, _Layer]) -> Iterator[list[str]]:
    """Names of layers whose second moments fit in memory together."""
    group: list[str] = []
    size = 0
    for name, (_, matrices, _) in layers.items():
        needed = 16 * matrices.groups * matrices.inputs**2
        if group and size + needed > _MOST_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += needed
    if group:
        yield group


def _value(node: Node, there: Node | None) -> str:
    """What a layer reads in the quantized model, where it still is a node of its kind."""
    source = node.inputs[0] if there is None or there.op_type != node.op_type else there.inputs[0]
    return "" if source is None else source.name or ""


def _by_row(params: QParams, matrices: Matrices) -> tuple[Array, Array] | None:
    """Scale and zero point as (groups, outputs or 1, 1); None where they do not lie along outputs."""
    wanted = (matrices.groups, matrices.outputs, 1)
    size = matrices.groups * matrices.outputs
    if params.scale.size == 1:
        scale, zero = (np.broadcast_to(array.reshape(1, 1, 1), wanted) for array in _pair(params))
        return scale, zero
    axis = -1 if matrices.transposed else 0
    if params.scale.size != size or params.scale.shape[axis] != size:
        return None
    scale, zero = (array.reshape(wanted) for array in _pair(params))
    return scale, zero


def _pair(params: QParams) -> tuple[Array, Array]:
    return params.scale, params.zero_point


def _rounded(node: Node, matrices: Matrices, tensor: QTensor, fit: LayerMoments, check: LayerMoments) -> Array | None:
    """The integers of one layer: of those that several dampings give, the best on samples that they were not fitted to.

    With few samples, or many inputs, correlations are seen that are not there, and weights fitted to them are worse
    than those that were rounded to nearest.

    Returns:
        In the shape of the weight; None where none is better than rounding to nearest.
    """
    weight = walk.const_array(node.inputs[1])
    pair = _by_row(tensor.params, matrices)
    assert weight is not None and pair is not None
    hessian = np.stack([shrunk(moment, fit.rows) for moment in fit.moment])
    split = matrices.split(weight).astype(np.float32)
    params = QParams(matrices.spec(tensor.params.spec), *pair)
    best, least = None, _error(split, matrices.split(tensor.values), params, check.moment)
    for damping in _DAMPINGS:
        try:
            if matrices.groups > 1:
                found = gptq_by_group(split, hessian, params, damping)
            else:
                one = QParams(params.spec, pair[0][0], pair[1][0])
                found = gptq(split[0], hessian[0], params.spec, GPTQConfig(damping), one).values[None]
        except CalibrationError:
            continue
        error = _error(split, found, params, check.moment)
        if error >= least:
            continue
        best, least = found, error
    return None if best is None else matrices.join(best, weight.shape)


def _error(weight: Array, values: Array, params: QParams, moment: Array) -> float:
    """Mean square of what rounding changes in the outputs, summed over them."""
    scale, zero = params.scale.astype(np.float32), params.zero_point.astype(np.float32)
    lost = ((values.astype(np.float32) - zero) * scale - weight).astype(np.float64)
    return float(np.einsum("goi,goi->", lost @ moment, lost))
