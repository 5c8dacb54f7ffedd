"""What ``extra_options`` say of a model's tensors by name or by the type of their operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxq.compat.onnxruntime.quant_types import UnsupportedError
from onnxq.compat.onnxruntime.wishes import literal, override_of, rule_of
from onnxq.core.affine import params_from_range
from onnxq.core.dtypes import QType
from onnxq.core.spec import TensorSpec
from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.reading.ops import row_of
from onnxq.graph.types import Model, Value
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.float_model import Source, load_and_prepare
from onnxq.targets import target_named

_OVERRIDES = "TensorQuantOverrides"
_OF_WEIGHTS = {"quant_type", "symmetric", "reduce_range", "axis", "rmin", "rmax", "scale", "zero_point"}


def weights_apart(
    model: Source,
    extra_options: Mapping[str, Any] | None,
    preset: str,
    types: tuple[Any, Any] = (None, None),
    processor: bool = True,
) -> tuple[dict[str, Any], list[dict[str, object]], list[dict[str, object]]]:
    """Options without overrides, and rules that say what those say: of nodes, and of values.

    Args:
        model: path or ``onnx.ModelProto``.
        extra_options: as given.
        preset: what the types stand for.
        types: of activations whose override names none, and of weights.
        processor: a processor runs the model, and takes what is unsigned and signed as it is asked for.

    Raises:
        UnsupportedError: a tensor is not in the model, or what is said of a weight has no equal here.
    """
    options = dict(extra_options or {})
    given = overrides_of(options)
    if not given:
        return options, [], []
    graph = io.load(model).graph
    known = {value.name: value for scope in walk.all_graphs(graph) for value in scope.inputs}
    known |= {value.name: value for node in walk.all_nodes(graph) for value in (*node.inputs, *node.outputs) if value}
    rules: list[dict[str, object]] = []
    values: list[dict[str, object]] = []
    activation_type, weight_type = types
    bits = 16 if preset in ("w8a16", "w4a16") else 8
    signed = processor and getattr(activation_type, "name", "") == "QInt16"
    del options[_OVERRIDES]
    for name, overrides in list(given.items()):
        value = known.get(name)
        if value is None:
            raise UnsupportedError(f"extra_options[{_OVERRIDES!r}]: tensor {name!r} is not present in the model")
        operand = walk.is_constant(value) and not _is_weight(value)
        default = weight_type if walk.is_constant(value) and not operand else activation_type
        entries = [_of_type(entry, default) for entry in overrides]
        try:
            if not walk.is_constant(value):
                values.append(rule_of(name, entries, bits, signed))
                continue
            if operand:
                values.append(_of_operand(name, entries, bits, signed))
                continue
        except UnsupportedError as error:
            raise UnsupportedError(f"extra_options[{_OVERRIDES!r}]: {error}") from None
        readers = [node.name for node in value.consumers() if node.name]
        by_channel = any("axis" in entry for entry in entries)
        small = _of_four_bits(name, entries, preset)
        rules += [{"match": literal(reader), "per_channel": by_channel, **small} for reader in readers]
        grid = {} if small else _grid(name, entries, weight_type, processor)
        values.append({"match": literal(name), **grid} if grid else {})
    return options, rules, [rule for rule in values if rule]


def overrides_of(extra_options: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is said of single tensors, by their names."""
    return dict((extra_options or {}).get(_OVERRIDES) or {})


def asks_other_engine(extra_options: Mapping[str, Any] | None) -> bool:
    """Whether an override is of what a processor has no kernels for."""
    entries = [entry for entries in overrides_of(extra_options).values() for entry in entries]
    kinds = {getattr(entry.get("quant_type"), "name", "") for entry in entries}
    return bool(kinds & {"QInt4", "QUInt4"}) or any("convert" in entry for entry in entries)


def _is_weight(value: Value) -> bool:
    """Whether a layer reads a constant as its weight or its bias, and not as one of two values that it joins."""
    found = False
    for node, position in value.uses():
        row = row_of(node)
        found = found or row is None or position in (row.weight, row.bias)
    return found


def _of_operand(name: str, entries: Sequence[Mapping[str, Any]], bits: int, signed: bool) -> dict[str, Any]:
    """The rule of a constant that has a grid as activations have it.

    Raises:
        UnsupportedError: it says what has no equal here.
    """
    if any("convert" in entry for entry in entries):
        raise UnsupportedError(f"{name!r}: convert is of activations, and this is a constant; leave it out")
    rule = rule_of(name, entries, bits, signed)
    if "bits" in rule:
        raise UnsupportedError(
            f"{name!r}: {rule['bits']} bits beside activations of {bits}; pass a type of their width"
        )
    return rule


def _of_four_bits(name: str, entries: Sequence[Mapping[str, Any]], preset: str) -> dict[str, Any]:
    """The keys of a node's rule for a weight of 4 bits; none for others.

    Raises:
        UnsupportedError: activations have no 16 bits, or the grid is given.
    """
    kinds = [getattr(entry.get("quant_type"), "name", "") for entry in entries]
    if not any(kind in ("QInt4", "QUInt4") for kind in kinds):
        return {}
    where = f"extra_options[{_OVERRIDES!r}]: weight {name!r}"
    if preset not in ("w8a16", "w4a16"):
        raise UnsupportedError(
            f"{where}: 4 bits go with activations of 16; pass activation_type=QuantType.QUInt16, or use "
            "MatMulNBitsQuantizer"
        )
    more = sorted({key for entry in entries for key in entry} - {"quant_type", "axis", "symmetric"})
    if more or len(set(kinds) - {""}) > 1:
        raise UnsupportedError(f"{where}: {more[0] if more else 'its channels differ'}: 4 bits find their own grid")
    return {"preset": "w4a16"}


def _of_type(entry: Mapping[str, Any], default: Any) -> Mapping[str, Any]:
    """An override that names its type."""
    known = getattr(default, "name", "") in ("QInt8", "QUInt8", "QInt16", "QUInt16")
    return {"quant_type": default, **entry} if known else entry


def _grid(name: str, entries: Sequence[Mapping[str, Any]], weight_type: Any, processor: bool) -> dict[str, Any]:
    """The keys of a value rule that say of a weight what overrides say, by tensor or by channel.

    Raises:
        UnsupportedError: they say what has no equal here, or not the same of each channel.
    """
    where = f"extra_options[{_OVERRIDES!r}]: weight {name!r}"
    asked = getattr(weight_type, "name", "QInt8")
    bits = 16 if asked.endswith("16") else 8
    unsigned = processor and asked.startswith("QU")
    for entry in entries:
        more = sorted(set(entry) - _OF_WEIGHTS)
        kind = getattr(entry.get("quant_type"), "name", asked)
        if more or kind not in (f"QInt{bits}", f"QUInt{bits}"):
            raise UnsupportedError(
                f"{where}: {more[0] if more else 'quant_type'} has no equal here, since weights have "
                f"{bits} bits; leave it out"
            )
    given = [{key: entry[key] for key in entry if key != "axis"} for entry in entries]
    each = [override_of(name, entry, bits, not unsigned) for entry in given]
    if len({frozenset(rule) - {"symmetric"} for rule in each}) > 1:
        raise UnsupportedError(f"{where}: its channels have different keys; say the same of each")
    if len(each) == 1:
        return {"symmetric": False, **each[0]} if unsigned and "range" in each[0] else each[0]
    if "range" in each[0]:
        low, high = (np.array([rule["range"][end] for rule in each], np.float64) for end in (0, 1))
        even = bool(each[0].get("symmetric", True))
        spec = TensorSpec(QType(f"{'u' if unsigned else ''}int{bits}"), symmetric=even, narrow_range=True)
        found = params_from_range(low, high, spec)
        return {"scale": found.scale, "zero_point": found.zero_point}
    if "scale" in each[0]:
        return {key: [rule[key] for rule in each] for key in ("scale", "zero_point")}
    return {}


def narrow_weights(model: Source, values: Sequence[Mapping[str, Any]], even: bool) -> list[dict[str, object]]:
    """Rules that widen the ranges of weights as the rule of all values does, which patterns leave out.

    Args:
        model: path or ``onnx.ModelProto``.
        values: rules of values.
        even: weights have zero in the middle of their grid.
    """
    least = max((rule["min_range"] for rule in values if rule["match"] == "*" and "min_range" in rule), default=0.0)
    found = {}
    for node in walk.all_nodes(io.load(model).graph) if least else ():
        row = row_of(node)
        value = None if row is None or row.weight is None else walk.input_at(node, row.weight)
        array = walk.const_array(value)
        if value is None or array is None or not np.issubdtype(array.dtype, np.floating):
            continue
        if float(array.max(initial=0.0)) - float(array.min(initial=0.0)) < least:
            found[value.name or ""] = {"match": literal(value.name or ""), "min_range": least, "symmetric": even}
    return list(found.values())


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
