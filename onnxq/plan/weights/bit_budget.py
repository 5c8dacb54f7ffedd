"""Spend a budget of bits over layers: those whose error falls most for a bit get more of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from onnxq.algorithms.knapsack import StorageChoice, allocate
from onnxq.algorithms.rtn import rtn
from onnxq.core.affine import dequantize
from onnxq.core.dtypes import Array
from onnxq.core.spec import QTensor
from onnxq.errors import RecipeError
from onnxq.graph import walk
from onnxq.graph.emit.rewrite import WeightRewrite
from onnxq.graph.types import Model, Node
from onnxq.plan.decisions import STORAGE, WEIGHT, NodePlan, Plan
from onnxq.plan.weights.needed_moments import layer_input
from onnxq.plan.weights.weight_algorithms import PackedWeights
from onnxq.plan.weights.weight_errors import packed_bits
from onnxq.plan.weights.weight_only import BLOCKED, GATHERED, NBITS, block_sizes, grid, matrix_of
from onnxq.recipe.recipe import Recipe, Rule
from onnxq.stats.statistics import Statistics

BITS = (2, 4, 8)
BLOCKS = (32, 64, 128)

_CORRELATED = 2048
"""Inputs up to which their correlations count."""


@dataclass
class _Weight:
    """A weight that one node or several share."""

    matrix: Array
    nodes: list[NodePlan] = field(default_factory=list)
    options: list[tuple[int, int]] = field(default_factory=list)
    choices: list[StorageChoice] = field(default_factory=list)


def spend_bits(
    model: Model, plan: Plan, recipe: Recipe, statistics: Statistics | None = None, fewest: int = 2
) -> Recipe:
    """Give each packed layer the bits and the block size that serve the model best within ``recipe.target_bits``.

    A layer's error is the share of noise in its output when its weight W is rounded to nearest, with E[xxᵀ] = H of its
    inputs tr(EHEᵀ) / tr(WHWᵀ) for the error E; where nothing is known of the inputs, H is the identity. The shares of
    all layers are summed.

    Args:
        model: the prepared model.
        plan: its plan without the budget.
        recipe: what the user asked for.
        statistics: with second moments of layer inputs, where there are any.
        fewest: bits that the kernels take.

    Returns:
        The recipe with a rule for each packed layer; the user's own rules win over them.

    Raises:
        RecipeError: the plan packs no weights in blocks, or the budget is too small for the fewest bits.
    """
    assert recipe.target_bits is not None
    nodes = {node.name or "": node for node in walk.all_nodes(model.graph)}
    weights = _weights(nodes, plan, recipe, statistics, fewest)
    if not weights:
        raise RecipeError(
            f"--target-bits {recipe.target_bits:g}: nothing is packed in blocks with --preset {recipe.preset}; use w4, "
            "w2 or w8 on a model with large MatMul, Gemm or Gather layers"
        )
    sizes = [weight.matrix.size for weight in weights]
    choices = [weight.choices for weight in weights]
    for size, bits in _stored(nodes, plan):
        sizes.append(size)
        choices.append([StorageChoice(bits, 0.0)])
    picks = allocate(sizes, choices, recipe.target_bits)
    rules = [
        Rule(node.name, bits=weight.options[pick][0], block_size=weight.options[pick][1])
        for weight, pick in zip(weights, picks, strict=False)
        for node in weight.nodes
    ]
    return replace(recipe, rules=(*rules, *recipe.rules))


def _weights(
    nodes: dict[str, Node], plan: Plan, recipe: Recipe, statistics: Statistics | None, fewest: int
) -> list[_Weight]:
    known, found = PackedWeights(), []
    for node_plan in plan.nodes.values():
        if node_plan.action != WEIGHT or node_plan.form not in (NBITS, BLOCKED, GATHERED):
            continue
        matrix = matrix_of(nodes[node_plan.name])
        assert not isinstance(matrix, str)
        weight = known.find(matrix)
        if weight is None:
            weight = known.add(matrix, _Weight(matrix))
            found.append(weight)
        weight.nodes.append(node_plan)
    for weight in found:
        plain = np.ascontiguousarray(weight.matrix, np.float32)
        moment = _moment([nodes[node.name] for node in weight.nodes], statistics)
        for bits, size in _options(weight, recipe, fewest):
            spec = grid(bits, size, recipe)
            tensor = rtn(plain, spec)
            form = weight.nodes[0].form
            cost = packed_bits(tensor, WeightRewrite(form, {}), 8 * weight.matrix.dtype.itemsize) / plain.size
            weight.options.append((bits, size))
            weight.choices.append(StorageChoice(cost, _noise(plain, tensor, moment)))
    return found


def _options(weight: _Weight, recipe: Recipe, fewest: int) -> Iterable[tuple[int, int]]:
    """(bits, block size) that every reader of a weight can have."""
    fixed = [rule for node in weight.nodes if (rule := recipe.rule_for([node.name])).bits is not None]
    table = any(node.form == GATHERED for node in weight.nodes)
    odd = table and weight.matrix.shape[1] % 2
    for bits in (fixed[0].bits,) if fixed else BITS:
        assert bits is not None
        if not fixed and (bits < fewest or (table and bits < 4) or (odd and bits < 8)):
            continue
        given = fixed[0].block_size if fixed and fixed[0].block_size is not None else recipe.block_size
        for size in BLOCKS if given is None else (given,):
            if size == 0 or size in block_sizes(bits):
                yield bits, size


def _moment(nodes: list[Node], statistics: Statistics | None) -> Array | None:
    """Second moments of what the first of the layers multiplies, up to a factor; None where they are not known.

    They are (in, in), or (in,) where inputs are so many that products of all pairs would take longer than quantizing.
    """
    for read in filter(None, map(layer_input, nodes)):
        known = statistics.of_input(read[0]) if statistics is not None else None
        matrix = known.moment.matrix if known is not None else None
        if matrix is not None and np.isfinite(matrix).all():
            whole = matrix / max(float(np.abs(matrix).max()), np.finfo(np.float64).tiny)
            return np.asarray(whole if matrix.shape[0] <= _CORRELATED else np.diagonal(whole), np.float32)
    return None


def _noise(matrix: Array, tensor: QTensor, moment: Array | None) -> float:
    power = _power(matrix, moment)
    return _power(matrix - dequantize(tensor.values, tensor.params), moment) / power if power > 0 else 0.0


def _power(matrix: Array, moment: Array | None) -> float:
    if moment is None:
        return float(np.vdot(matrix, matrix))
    return float(np.vdot(matrix, matrix @ moment if moment.ndim == 2 else matrix * moment))


def _stored(nodes: dict[str, Node], plan: Plan) -> Iterable[tuple[int, float]]:
    """(elements, bits a weight) of each weight that is stored in 8 bits, shared ones once."""
    seen: set[str] = set()
    for node_plan in plan.nodes.values():
        for position in node_plan.weights if node_plan.action == STORAGE else ():
            value = walk.input_at(nodes[node_plan.name], position)
            array = walk.const_array(value)
            if value is None or array is None or value.name in seen:
                continue
            seen.add(value.name or "")
            yield array.size, 8.0 + 32 * max(array.shape) / array.size
