"""What ``extra_options`` say of a model's tensors by name or by the type of their operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxq.compat.onnxruntime.quant_types import UnsupportedError
from onnxq.compat.onnxruntime.wishes import literal
from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.types import Model
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.float_model import Source, load_and_prepare
from onnxq.targets import target_named

_OVERRIDES = "TensorQuantOverrides"
_OF_WEIGHTS = {"quant_type", "symmetric", "reduce_range", "axis"}


def weights_apart(
    model: Source, extra_options: Mapping[str, Any] | None
) -> tuple[dict[str, Any], list[dict[str, object]]]:
    """Options whose overrides are of activations alone, and rules for the nodes that read the other tensors.

    Raises:
        UnsupportedError: a tensor is not in the model, or a grid is given for a weight.
    """
    options = dict(extra_options or {})
    given = dict(options.get(_OVERRIDES) or {})
    if not given:
        return options, []
    graph = io.load(model).graph
    known = {value.name: value for scope in walk.all_graphs(graph) for value in scope.inputs}
    known |= {value.name: value for node in walk.all_nodes(graph) for value in (*node.inputs, *node.outputs) if value}
    rules: list[dict[str, object]] = []
    for name, entries in given.items():
        value = known.get(name)
        if value is None:
            raise UnsupportedError(f"extra_options[{_OVERRIDES!r}]: tensor {name!r} is not present in the model")
        if not walk.is_constant(value):
            continue
        options[_OVERRIDES] = given = {key: kept for key, kept in given.items() if key != name}
        per_channel = _per_channel(name, entries)
        readers = [node.name for node in value.consumers() if node.name]
        rules += [{"match": literal(reader), "per_channel": per_channel} for reader in readers]
    return options, rules


def _per_channel(name: str, entries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a weight is to have a scale for each channel."""
    where = f"extra_options[{_OVERRIDES!r}]: weight {name!r}"
    for entry in entries:
        more = sorted(set(entry) - _OF_WEIGHTS)
        kind = getattr(entry.get("quant_type"), "name", "QInt8")
        if more or kind not in ("QInt8", "QUInt8") or entry.get("symmetric") is False:
            what = more[0] if more else "quant_type" if kind not in ("QInt8", "QUInt8") else "symmetric"
            raise UnsupportedError(
                f"{where}: {what} has no equal here, since weights are symmetric int8 on a grid of their own; leave it "
                "out, or say with axis alone that each channel has a scale"
            )
    return any("axis" in entry for entry in entries)


def outputs_of(model: Source, op_types: Sequence[str]) -> list[dict[str, object]]:
    """Rules that keep the results of operators float, for those that are still there after clean-up.

    An operator counts that had one of the types before, or has it since.
    """
    prepared = load_and_prepare(model, target_named("cpu"), Clock(None)).model
    before, after = _written(io.load(model), op_types), _written(prepared, op_types)
    there = {value.name for value in walk.all_values(prepared.graph)}
    return [{"match": literal(name), "quantize": False} for name in sorted((before & there) | after)]


def _written(model: Model, op_types: Sequence[str]) -> set[str]:
    nodes = walk.all_nodes(model.graph)
    return {value.name for node in nodes if node.op_type in op_types for value in node.outputs if value.name}
