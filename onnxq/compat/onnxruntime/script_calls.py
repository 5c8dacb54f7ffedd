"""One quantization of a script: its samples, the nodes that it names, and what is done where nothing pays."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnxq import api
from onnxq.compat.onnxruntime.tensors import outputs_of
from onnxq.compat.onnxruntime.wishes import literal
from onnxq.data.carried_states import Recurrence
from onnxq.data.readers import Reader, open_reader
from onnxq.errors import RecipeError
from onnxq.graph import walk
from onnxq.graph.files import io, saving
from onnxq.pipeline.float_model import Source
from onnxq.pipeline.planning import NothingToQuantizeError
from onnxq.plan.decisions import Plan
from onnxq.recipe.recipe import Recipe
from onnxq.recipe.value_rules import ValueRule
from onnxq.report.results import QuantizeResult
from onnxq.runtime.session import open_session

logger = logging.getLogger("onnxq.compat.onnxruntime")


def threshold(external: bool) -> dict[str, int]:
    """Where weights are to lie, as saving takes it."""
    return {"threshold": 0} if external else {}


def samples_of(model: Source, reader: Any) -> Reader:
    """The samples of a reader, which may be read only once, as one that can be read again; all make the ranges."""
    session = open_session(Path(model) if isinstance(model, str | os.PathLike) else io.to_bytes(io.load(model)))
    samples = open_reader(reader, session.input_specs, recurrence=Recurrence(session.output_specs, session.run, {}))
    samples.calibrates_on_all = True
    return samples


def provider_of(providers: Sequence[Any] | None) -> str:
    """The first of the execution providers, without its options."""
    first = next(iter(providers or ()), "CPUExecutionProvider")
    return first[0] if isinstance(first, tuple) else str(first)


def nodes_of(
    model: Source,
    op_types: Sequence[str] | None,
    only: Sequence[str] | None,
    exclude: Sequence[str] | None,
    wishes: dict[str, Any],
) -> dict[str, Any]:
    """Which nodes: names and types that the model does not have are left out with a warning, as onnxruntime does."""
    nodes = list(walk.all_nodes(io.load(model).graph))
    names, types = {node.name for node in nodes}, {node.op_type for node in nodes}
    found: dict[str, Any] = {
        "op_types": [kind for kind in op_types or () if kind in types],
        "include": _known("nodes_to_quantize", only, names),
        "exclude": _known("nodes_to_exclude", exclude, names),
    }
    if (op_types and not found["op_types"]) or (only and not found["include"]):
        argument = "nodes_to_quantize" if found["op_types"] or not op_types else "op_types_to_quantize"
        raise RecipeError(f"{argument}: the model has none of these; it has nodes of {', '.join(sorted(types))}")
    if wishes.pop("insist", False) and not found["op_types"] and not found["include"]:
        found["include"] = ["*"]
    if op_types_float := wishes.pop("float_outputs_of", ()):
        wishes["values"] = [*wishes.get("values", []), *outputs_of(model, op_types_float)]
    if wishes.pop("constant_products", False):
        products = [n for n in nodes if n.op_type == "MatMul" and not any(walk.is_constant(i) for i in n.inputs)]
        found["exclude"] += [node.name for node in products if node.name]
    return found


def _known(argument: str, given: Sequence[str] | None, names: set[str | None]) -> list[str]:
    unknown = [name for name in given or () if name not in names]
    if unknown:
        logger.warning("%s: the model has no node %s", argument, ", ".join(map(repr, unknown)))
    return [literal(name) for name in given or () if name in names]


def quantized(
    model: Source, output: str | os.PathLike[str], wishes: Mapping[str, Any], **options: Any
) -> QuantizeResult:
    """What pays is quantized; where nothing pays, all that can be; where nothing can, the float model is written.

    Nodes and operators that were named are quantized or an error.
    """
    wishes = dict(wishes)
    lists = {key: found for key in ("values", "rules") if (found := wishes.pop(key, None))}
    if keys := {**lists, **wishes.pop("recipe_keys", {})}:
        wishes["recipe"] = Recipe.from_mapping(keys, "extra_options")
    try:
        return api.quantize(model, output, benchmark=False, **wishes, **options)
    except NothingToQuantizeError:
        if wishes["include"] or wishes["op_types"]:
            if wishes["preset"] == "w8a8-dynamic":
                raise
            return _steps_of_one(model, output, wishes, options)
    try:
        return api.quantize(model, output, benchmark=False, **{**wishes, "include": ["*"]}, **options)
    except NothingToQuantizeError as error:
        return _as_it_is(model, output, wishes, str(error))


def _steps_of_one(
    model: Source, output: str | os.PathLike[str], wishes: Mapping[str, Any], options: Mapping[str, Any]
) -> QuantizeResult:
    """Quantize nodes that were named although values around them were zero in all of calibration.

    Raises:
        NothingToQuantizeError: that is not the reason.
    """
    given: Recipe = wishes["recipe"]
    recipe = given.override(values=(ValueRule("*", zeros=True), *given.values))
    result = api.quantize(model, output, benchmark=False, **{**wishes, "recipe": recipe}, **options)
    said = "values that were zero in all of calibration have steps of 1, as from onnxruntime; use other samples"
    return replace(result, warnings=[*result.warnings, said])


def _as_it_is(model: Source, output: str | os.PathLike[str], wishes: Mapping[str, Any], reason: str) -> QuantizeResult:
    """Write the float model, as onnxruntime does where it has no integer form for any node; the result says so."""
    path = Path(output)
    saving.check_destination(path, (model,))
    loaded = io.load(model)
    source = model if isinstance(model, str | os.PathLike) else None
    saving.save(loaded, path, source=source, **threshold(bool(wishes.get("external_data"))))
    before = io.size_of(Path(model)) if isinstance(model, str | os.PathLike) else len(io.to_bytes(loaded))
    nodes = [(node.name or "", node.op_type, reason) for node in walk.all_nodes(loaded.graph)]
    return QuantizeResult(
        path, "float", None, wishes["target"], before, io.size_of(path), None, None, None, {}, nodes, {},
        [f"the float model was written as it is: {reason}"], None, {}, Plan({}, {}),
    )  # fmt: skip


def settled(result: QuantizeResult) -> QuantizeResult:
    """The result, whose warnings go to the log."""
    for line in result.warnings:
        logger.warning("%s", line)
    return result
