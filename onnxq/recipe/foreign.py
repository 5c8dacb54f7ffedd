"""Configurations of other tools as recipes: Olive, optimum, transformers.js, Quark.

Each is JSON. What says how weights and activations become integers is taken over; what a tool does beside it, and what
has no equal, is said in notes. The files' forms are those of Olive's workflows, optimum's ``ort_config.json``,
transformers.js' ``quantize_config.json`` and the ``quantization_config`` that Quark writes into a ``config.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxq.errors import RecipeError
from onnxq.recipe.recipe import Recipe
from onnxq.recipe.values import shown

_LARGEST = 1 << 22
"""Bytes of a configuration; a workflow with all its data is less."""

_RANGES = {"minmax": "minmax", "entropy": "entropy", "percentile": "percentile"}
_ROUNDINGS = {"rtn": "rtn", "hqq": "hqq", "gptq": "gptq", "k_quant": "kquant", "default": "rtn"}
_OWN_TYPES = 5
"""Operator types up to which a list is somebody's choice."""
_BLOCK_SIZES = (16, 32, 64, 128, 256)


@dataclass
class ForeignRecipe:
    """A recipe, and what was not taken over.

    Attributes:
        recipe: what `onnxq.quantize` takes.
        tool: whose configuration it was.
        notes: what has no equal, and what to do about it.
    """

    recipe: Recipe
    tool: str
    notes: list[str] = field(default_factory=list)


def convert(path: str | Path) -> ForeignRecipe:
    """Read a configuration.

    Raises:
        RecipeError: the file cannot be read, is no JSON, or none of a tool that is known.
    """
    place = Path(path)
    try:
        if place.stat().st_size > _LARGEST:
            raise RecipeError(f"{path}: more than {_LARGEST} bytes are no configuration; pass a JSON file")
        data = json.loads(place.read_text("utf8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RecipeError(f"{path}: cannot be read ({reason}); pass a JSON file") from None
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: not JSON ({str(error) or 'nested too deeply'}); pass a JSON file") from None
    return converted(data, str(path))


def converted(data: Any, where: str) -> ForeignRecipe:
    """Read a configuration that is at hand.

    Raises:
        RecipeError: it is of no tool that is known, or says what no recipe can.
    """
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where}: holds a {type(data).__name__}, not an object with keys; pass a configuration")
    quark = data.get("quantization_config", data)
    if isinstance(data.get("passes"), Mapping):
        found = _olive(data["passes"], where)
    elif isinstance(quark, Mapping) and isinstance(quark.get("global_quant_config"), Mapping):
        found = _quark(quark, where)
    elif isinstance(data.get("quantization"), Mapping) or "activations_dtype" in data:
        found = _optimum(data.get("quantization") or data, where)
    elif "per_model_config" in data:
        found = _transformers_js(data)
    else:
        raise RecipeError(
            f"{where}: no configuration of Olive ('passes'), optimum ('quantization'), transformers.js "
            f"('per_model_config') or Quark ('global_quant_config'); its keys are {shown(sorted(map(str, data)))}"
        )
    return found


class _Options:
    """The options of one configuration, and which of them were looked at."""

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self._data = {key: value for key, value in data.items() if value not in (None, [], {}, "")}
        self.where = where
        self._used: set[str] = set()

    def take(self, *names: str) -> Any:
        """The value of the first of these names that is there."""
        self._used.update(names)
        return next((self._data[name] for name in names if name in self._data), None)

    def word(self, *names: str) -> str:
        """The same in lower case, an empty text for none; members of enumerations by their last part."""
        found = self.take(*names)
        return "" if found is None else str(found).rpartition(".")[2].lower()

    def left(self, idle: frozenset[str]) -> list[str]:
        """A note of what was not looked at, leaving out what has no effect on a recipe."""
        rest = sorted(set(self._data) - self._used - idle)
        return [f"{self.where}: {', '.join(rest)} not taken over"] if rest else []


_STATIC_IDLE = frozenset(
    "data_config dataloader_func calibration_data_config user_script script_dir batch_size quant_preprocess evaluator "
    "host save_as_external_data all_tensors_to_one_file external_data_name size_threshold convert_attribute "
    "prepare_qnn_config quant_mode extra_options mode weights_symmetric qdq_add_pair_to_weight qdq_dedicated_pair "
    "qdq_op_type_per_channel_support_to_axis use_external_data_format calibrate_method "
    "append_first_op_types_to_quantize_list algorithm precision disable_search type config".split()
)
"""Options that say where data is, how the file is written, or what is so here anyway."""


def _eight_bits(options: _Options, where: str, *, static: bool) -> tuple[dict[str, Any], list[str]]:
    """A static or dynamic configuration in the words of onnxruntime, which Olive and optimum use."""
    recipe: dict[str, Any] = {"preset": "w8a8" if static else "w8a8-dynamic"}
    notes = []
    for names in (("activation_type", "activations_dtype"), ("weight_type", "weights_dtype", "precision")):
        kind = options.word(*names)
        if kind and kind not in ("qint8", "quint8", "int8", "uint8"):
            raise RecipeError(f"{where}: {names[0]} {kind} has no integer kernel on a CPU; 8 bits have")
    if static:
        method = options.word("calibrate_method")
        if method in _RANGES:
            recipe["range"] = _RANGES[method]
        elif method:
            notes.append(f"{where}: calibrate_method {method} not taken over; --range mse is the default here")
        form = options.word("quant_format", "format")
        if form in ("qdq", "qoperator"):
            recipe["format"] = form
        extra = options.take("extra_options") or {}
        symmetric = options.take("activations_symmetric", "ActivationSymmetric", "activation_symmetric")
        if symmetric or (isinstance(extra, Mapping) and extra.get("ActivationSymmetric")):
            recipe["symmetric"] = True
    per_channel = options.take("per_channel")
    if per_channel is not None:
        recipe["per_channel"] = bool(per_channel)
    if options.take("reduce_range"):
        recipe["target"] = "cpu-avx2"
    nodes, said = _nodes(options)
    return recipe | nodes, notes + said


def _nodes(options: _Options) -> tuple[dict[str, Any], list[str]]:
    """Which nodes. A long list of types is a tool's own default, and here what pays is quantized."""
    found = {
        "op_types": options.take("op_types_to_quantize", "operators_to_quantize"),
        "include": options.take("nodes_to_quantize", "nodes_to_include"),
        "exclude": options.take("nodes_to_exclude"),
    }
    recipe = {key: list(value) for key, value in found.items() if value}
    if len(recipe.get("op_types", ())) <= _OWN_TYPES:
        return recipe, []
    count = len(recipe.pop("op_types"))
    return recipe, [f"{options.where}: its {count} operator types not taken over; what pays is quantized"]


_OLIVE_STATIC = ("onnxstaticquantization", "incstaticquantization", "vitisquantization", "quarkquantization")
_OLIVE_DYNAMIC = ("onnxdynamicquantization", "incdynamicquantization")
_OLIVE_BLOCKS = {
    "onnxmatmul4quantizer": None,
    "onnxblockwisertnquantization": "rtn",
    "onnxhqqquantization": "hqq",
    "onnxkquantquantization": "kquant",
}


def _olive(passes: Mapping[str, Any], where: str) -> ForeignRecipe:
    ours = []
    for name, entry in passes.items():
        for step in entry if isinstance(entry, list) else [entry]:
            kind = str(step.get("type", "")).lower() if isinstance(step, Mapping) else ""
            config = step.get("config") if isinstance(step, Mapping) else None
            flat = {**step, **(config if isinstance(config, Mapping) else {})} if isinstance(step, Mapping) else {}
            if kind in (*_OLIVE_STATIC, *_OLIVE_DYNAMIC, *_OLIVE_BLOCKS, "onnxquantization"):
                ours.append((name, kind, flat))
    if not ours:
        kinds = sorted({str(step.get("type")) for step in passes.values() if isinstance(step, Mapping)})
        raise RecipeError(f"{where}: none of its passes quantizes an ONNX model; they are {', '.join(kinds) or 'none'}")
    name, kind, flat = ours[0]
    place = f"{where}: pass {name!r}"
    options = _Options(flat, place)
    if kind in _OLIVE_BLOCKS:
        recipe, notes = _blocks(options, _OLIVE_BLOCKS[kind], place)
    else:
        mode = options.word("quant_mode")
        static = kind in _OLIVE_STATIC or (kind == "onnxquantization" and mode != "dynamic")
        recipe, notes = _eight_bits(options, place, static=static)
    notes += options.left(_STATIC_IDLE)
    notes += [f"{where}: pass {other!r} quantizes too and was not taken over" for other, _, _ in ours[1:]]
    return ForeignRecipe(Recipe.from_mapping(recipe, place), "Olive", notes)


def _blocks(options: _Options, algorithm: str | None, where: str) -> tuple[dict[str, Any], list[str]]:
    """Weights in blocks, as onnxruntime's MatMulNBits quantizer names its options."""
    asked = options.word("algorithm")
    algorithm = algorithm or {"rtn": "rtn", "hqq": "hqq", "gptq": "gptq", "k_quant": "kquant", "default": "rtn"}.get(
        asked
    )
    bits = options.take("bits") or {"int8": 8, "uint8": 8}.get(options.word("precision"), 4)
    if bits not in (2, 4, 8):
        raise RecipeError(f"{where}: weights of {bits} bits have no kernel; 2, 4 and 8 have")
    recipe: dict[str, Any] = {"preset": f"w{bits}"}
    size = options.take("block_size")
    if size is not None:
        recipe["block_size"] = _block_size(size, where)
    symmetric = options.take("is_symmetric", "symmetric")
    level = options.take("accuracy_level")
    more = {"symmetric": symmetric, "accuracy_level": level, "algorithm": algorithm}
    recipe |= {key: value for key, value in more.items() if value is not None}
    nodes, said = _nodes(options)
    return recipe | nodes, said


def _block_size(size: Any, where: str) -> int:
    if size == -1:
        return 0
    if size not in _BLOCK_SIZES:
        listed = ", ".join(map(str, _BLOCK_SIZES))
        raise RecipeError(f"{where}: blocks of {shown(size)} have no kernel; {listed} have, and -1, a column")
    return int(size)


def _optimum(data: Mapping[str, Any], where: str) -> ForeignRecipe:
    options = _Options(data, where)
    static = bool(options.take("is_static"))
    recipe, notes = _eight_bits(options, where, static=static)
    if not static:
        options.take("format", "activations_symmetric")
    return ForeignRecipe(Recipe.from_mapping(recipe, where), "optimum", notes + options.left(_STATIC_IDLE))


def _transformers_js(data: Mapping[str, Any]) -> ForeignRecipe:
    recipe: dict[str, Any] = {"preset": "w8a8-dynamic"}
    if data.get("per_channel") is not None:
        recipe["per_channel"] = bool(data["per_channel"])
    if data.get("reduce_range"):
        recipe["target"] = "cpu-avx2"
    models = data["per_model_config"]
    notes = []
    if isinstance(models, Mapping) and len(models) > 1:
        notes.append(f"holds {len(models)} models ({', '.join(map(str, models))}); one recipe serves them all")
    return ForeignRecipe(Recipe.from_mapping(recipe, "transformers.js"), "transformers.js", notes)


def _quark(data: Mapping[str, Any], where: str) -> ForeignRecipe:
    whole = data["global_quant_config"]
    weight, inputs = whole.get("weight"), whole.get("input_tensors")
    if isinstance(weight, list):
        weight = weight[0] if weight else None
    if not isinstance(weight, Mapping):
        raise RecipeError(f"{where}: global_quant_config has no 'weight' to quantize; pass one that has")
    kind = str(weight.get("dtype", "")).lower()
    bits = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "int8": 8, "uint8": 8}.get(kind)
    if bits is None:
        raise RecipeError(f"{where}: weights of {kind or 'no type'} have no kernel on a CPU; int2, int4 and int8 have")
    notes = []
    if isinstance(inputs, Mapping):
        if bits != 8 or not str(inputs.get("dtype", "")).lower().endswith("int8"):
            raise RecipeError(f"{where}: {kind} weights with {inputs.get('dtype')} inputs have no kernel on a CPU")
        recipe: dict[str, Any] = {"preset": "w8a8-dynamic" if inputs.get("is_dynamic") else "w8a8"}
        if inputs.get("is_dynamic") and inputs.get("qscheme") in ("per_channel", "per_token"):
            recipe["preset"] = "w8a8-token"
        recipe["per_channel"] = weight.get("qscheme") == "per_channel"
        if recipe["preset"] == "w8a8" and inputs.get("symmetric"):
            recipe["symmetric"] = True
    else:
        recipe = {"preset": f"w{bits}", "symmetric": bool(weight.get("symmetric"))}
        recipe["block_size"] = _block_size(weight.get("group_size") or -1, where)
        names = [str(entry.get("name")) for entry in _entries(data.get("algo_config"))]
        known = [name for name in names if name in ("awq", "gptq")]
        recipe |= {"algorithm": known[0]} if known else {}
        notes += [f"{where}: algorithm {name} not taken over" for name in names if name not in known]
    patterns = [str(pattern) for pattern in data.get("exclude") or []]
    if patterns:
        recipe["exclude"] = [f"*{pattern.strip('*').replace('.', '*')}*" for pattern in patterns]
        notes.append(f"{where}: exclude names modules of PyTorch; check that the patterns fit the ONNX model's nodes")
    if data.get("layer_quant_config") or data.get("layer_type_quant_config"):
        notes.append(f"{where}: exceptions by layer not taken over; write them as rules")
    return ForeignRecipe(Recipe.from_mapping(recipe, where), "Quark", notes)


def _entries(given: Any) -> list[Mapping[str, Any]]:
    entries = given if isinstance(given, list) else [given]
    return [entry for entry in entries if isinstance(entry, Mapping)]
