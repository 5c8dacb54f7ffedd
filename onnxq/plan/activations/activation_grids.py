"""The grids of activations: those of a recipe on a target, and the same in another width."""

from __future__ import annotations

from dataclasses import replace

from onnxq.core.dtypes import QType
from onnxq.core.spec import PerTensor, TensorSpec
from onnxq.errors import RecipeError
from onnxq.graph import walk
from onnxq.graph.types import Graph
from onnxq.plan.weights.weight_only import FLOAT8_OPSET
from onnxq.recipe.recipe import Recipe
from onnxq.targets import Target

WIDE = 16
"""Bits of the wider of the two types that activations can have."""


def activation_spec(recipe: Recipe, target: Target) -> TensorSpec:
    """The grid of quantized activations."""
    symmetric = target.symmetric_activations if recipe.symmetric is None else recipe.symmetric
    asked = max((p.activation_bits for p in recipe.presets if p.activations == "static"), default=8)
    if any(preset.float8 for preset in recipe.presets):
        return TensorSpec(QType.FLOAT8, PerTensor(), symmetric=True)
    if asked == 16:
        dtype = QType.INT16 if recipe.signed_activations else QType.UINT16
        return TensorSpec(dtype, PerTensor(), symmetric=symmetric)
    dtype = QType.INT8 if symmetric and QType.INT8 in target.activations else target.activation
    return TensorSpec(dtype, PerTensor(), symmetric=symmetric, grid_bits=asked if asked < dtype.bits else None)


def of_width(spec: TensorSpec, bits: int) -> TensorSpec:
    """A grid of activations with 16 bits, or with 8."""
    if spec.dtype.is_float or (spec.bits >= WIDE) == (bits >= WIDE):
        return spec
    return replace(
        spec, dtype=QType(f"{'' if spec.dtype.signed else 'u'}int{WIDE if bits >= WIDE else 8}"), grid_bits=None
    )


def check_float8(spec: TensorSpec, graph: Graph) -> None:
    """Refuse a graph whose operator set does not know float8.

    Raises:
        RecipeError: it could not be raised.
    """
    if spec.dtype.is_float and walk.opset(graph) < FLOAT8_OPSET:
        raise RecipeError(
            f"--preset fp8: needs operator set {FLOAT8_OPSET}, and the model cannot be raised from "
            f"{walk.opset(graph)}; export it with a newer one"
        )
