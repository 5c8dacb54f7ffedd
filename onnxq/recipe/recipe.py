"""A recipe: everything a user can choose about a quantization, as immutable data that round-trips through YAML."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from onnxq.errors import RecipeError
from onnxq.recipe.node_rules import RANGES, Rule, node_rules
from onnxq.recipe.patterns_of_names import matches, sorted_patterns
from onnxq.recipe.presets import PRESETS, Preset
from onnxq.recipe.rounding import ROUNDINGS
from onnxq.recipe.value_rules import ValueRule, as_data, value_rules
from onnxq.recipe.values import (
    check_choice,
    check_keys,
    check_numbers,
    check_smooth,
    check_types,
    check_weights,
    field_types,
    names,
    plain,
    settle,
    sizes,
)

__all__ = ["CACHES", "DEVICES", "FLOAT_TYPES", "FORMATS", "RANGES", "RECIPE_OPTIONS", "Recipe", "Rule"]

FORMATS = ("qdq", "qoperator")
CACHES = ("float", "int8", "int4")
DEVICES = ("cpu", "cuda")
FLOAT_TYPES = ("float16", "bfloat16")
_LISTS = ("include", "exclude", "op_types", "fix_dims", "float_outputs")
_LARGEST = 1 << 20
"""Bytes of a recipe's file; one line for each of 10,000 nodes is less."""


@dataclass(frozen=True)
class Recipe:
    """How a model is to be quantized.

    Attributes:
        preset: a key of `PRESETS`.
        format: "qdq" or "qoperator"; None takes the target's default.
        range: method that turns calibration statistics into ranges.
        percentile: share of the values, in percent, that the method "percentile" keeps.
        per_channel: weight scales by output channel, or by tensor.
        symmetric: activations with their zero at the middle of the grid; None takes the target's choice.
        bias_correct: take what rounding the weights adds to the mean of a layer's output from its bias.
        target: name of the target.
        include: only nodes that match one of these patterns are quantized, even where that is expected to be slower.
        exclude: nodes that match one of these patterns stay float.
        op_types: only nodes of these operator types are quantized.
        rules: exceptions by node.
        values: exceptions by value: ranges, grids, and what stays float.
        min_sqnr: verification fails below this SQNR, in dB.
        max_drop: verification fails if the metric falls by more than this, in points of accuracy where the data has
            labels, else of top-1 agreement with the float model.
        bits: bits of a weight in blocks; None takes the preset's.
        block_size: elements of a weight that share a scale in weight-only presets and w8a8-token; 0 for one scale a
            column, None for the preset's choice.
        algorithm: how packed weights are rounded; None takes gptq with data, kquant without, rtn at 8 bits. Where none
            are packed, "gptq" rounds those of integer layers by how they are used.
        sequential: round packed weights in the order of the graph, each by what the quantized layers before it give.
        accuracy_level: of MatMulNBits: 0 computes in float32, 4 rounds activations to int8; None chooses by layer.
        target_bits: average bits a weight, scales and zero points included, that weight-only presets may spend.
        fuse: model type that `onnxruntime.transformers` fuses before planning, or "auto"; None does not fuse.
        smooth: SmoothQuant's α in 0…1, or "auto" for the best of a few by output error; None takes the preset's.
        equalize: equalize weight ranges across layers.
        adaround: learn whether weights are rounded up or down.
        reconstruct: let blocks of the network learn weights' rounding, activations' grids and biases, in PyTorch.
        finetune: learn end to end from the float model, in PyTorch.
        minutes: time that learning may take.
        epochs: passes of finetuning over the samples; None chooses by their number.
        learning_rate: of finetuning, as a share of scales and grids; None takes 0.002.
        seed: of the order of the samples in finetuning.
        device: that finetuning runs on: "cpu" or "cuda".
        outliers: magnitude from which a layer's input channels are float (LLM.int8()); None takes the preset's.
        max_memory: GiB that second moments of activations may take at a time; beyond it the samples are run again.
        kv_cache: what a decoder's caches of keys and values hold: "float", "int8" or "int4"; None leaves them.
        rotate: turn the residual stream and heads of values by orthogonal matrices folded into the weights (QuaRot).
        learn_rotation: let these learn from the samples (SpinQuant).
        float_type: what computes in float becomes "float16" or "bfloat16"; None takes the preset's.
        store_only: weights alone are stored in this type; everything computes in float32.
        keep_io: inputs and outputs keep their types where what computes between them is in another float type.
        fix_dims: ``name=number``: sizes that symbolic dimensions of the model get.
        float_outputs: operator types whose results stay float where they are outputs of the model, for targets that
            quantize outputs too.
        float_bias: biases stay float, in QDQ models.
        dedicated_pairs: each reader of a value has a Q/DQ pair of its own.
        asymmetric_weights: weights of layers on integers have a zero point of their own, and one scale a tensor.
        unsigned_weights: weights of layers on integers are uint8, or uint16 where they are wide.
        wide_weights: these weights have 16 bits, beside activations of 16.
        signed_activations: activations of 16 bits are int16.
        own_pairs: Q and DQ are ONNX Runtime's own operators (com.microsoft).
        own_grids: each value and constant has its own ``NAME_scale`` and ``NAME_zero_point``, equal to others or not;
            a value that takes another's grid, as behind a Reshape, reads that one's.
        drop_tail: take post-processing off, which changes the model's outputs.
        opset: default operator set of the model that is written; None takes what the model has and the target needs.
    """

    preset: str = "auto"
    format: str | None = None
    range: str = "mse"
    percentile: float = 99.99
    per_channel: bool = True
    symmetric: bool | None = None
    bias_correct: bool = True
    target: str = "cpu"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    op_types: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    values: tuple[ValueRule, ...] = ()
    min_sqnr: float | None = None
    max_drop: float | None = None
    bits: int | None = None
    block_size: int | None = None
    algorithm: str | None = None
    sequential: bool = False
    accuracy_level: int | None = None
    target_bits: float | None = None
    fuse: str | None = None
    smooth: float | str | None = None
    equalize: bool = False
    adaround: bool = False
    reconstruct: bool = False
    finetune: bool = False
    minutes: float = 4.0
    epochs: int | None = None
    learning_rate: float | None = None
    seed: int = 0
    device: str = "cpu"
    outliers: float | None = None
    max_memory: float = 2.0
    kv_cache: str | None = None
    rotate: bool = False
    learn_rotation: bool = False
    float_type: str | None = None
    store_only: bool = False
    keep_io: bool = True
    fix_dims: tuple[str, ...] = ()
    float_outputs: tuple[str, ...] = ()
    float_bias: bool = False
    dedicated_pairs: bool = False
    own_pairs: bool = False
    own_grids: bool = False
    drop_tail: bool = False
    asymmetric_weights: bool = False
    unsigned_weights: bool = False
    wide_weights: bool = False
    signed_activations: bool = False
    opset: int | None = None

    def __post_init__(self) -> None:
        settle(self, "recipe", _RECIPE_TYPES)
        for key in _LISTS:
            object.__setattr__(self, key, names(key, getattr(self, key) or ()))
        object.__setattr__(self, "rules", node_rules(self.rules, "recipe"))
        object.__setattr__(self, "values", value_rules(self.values, "recipe"))
        check_choice("--preset", self.preset, tuple(PRESETS))
        check_choice("--format", self.format, FORMATS)
        check_choice("--range", self.range, RANGES)
        check_choice("--algorithm", self.algorithm, tuple(ROUNDINGS))
        check_choice("--kv-cache", self.kv_cache, CACHES)
        check_choice("--float-type", self.float_type, FLOAT_TYPES)
        sizes("--fix-dim", self.fix_dims)
        check_weights("--", self.bits, self.block_size, self.accuracy_level)
        check_smooth("--smooth", self.smooth)
        check_choice("--device", self.device, DEVICES)
        check_numbers({field.name: getattr(self, field.name) for field in fields(self)})

    def override(self, **options: object) -> Recipe:
        """A copy in which each option that is not None or empty replaces the recipe's own.

        Raises:
            RecipeError: an option has no such name or value.
        """
        given = {
            key: value
            for key, value in options.items()
            if value is not None and not (isinstance(value, tuple | list) and not value)
        }
        check_keys("recipe", given, [field.name for field in fields(self)])
        for key in _LISTS:
            if key in given and (listed := names(key, given.pop(key))):
                given[key] = listed
        return replace(self, **given)  # type: ignore[arg-type]

    def rule_for(self, names: Iterable[str]) -> Rule:
        """All rules that match one of the names, joined into one; later ones win key by key."""
        names, (exact, patterns) = tuple(names), self._sorted_rules
        found = {index for name in names for index in exact.get(name, ())}
        found |= {index for index in patterns if any(matches(self.rules[index].match, name) for name in names)}
        if not found:
            return _NO_RULE
        joined: dict[str, Any] = {}
        for index in sorted(found):
            joined |= {key: value for key, value in vars(self.rules[index]).items() if value is not None}
        return Rule(**(joined | {"match": ""}))

    @functools.cached_property
    def _sorted_rules(self) -> tuple[dict[str, list[int]], list[int]]:
        return sorted_patterns(rule.match for rule in self.rules)

    def smooth_for(self, names: Iterable[str]) -> float | str | None:
        """SmoothQuant's α for the input of a node: the rules', else the recipe's, else its preset's."""
        rule = self.rule_for(names)
        if rule.smooth is not None:
            return rule.smooth
        return self.smooth if self.smooth is not None else PRESETS[rule.preset or self.preset].smooth

    @property
    def smooths(self) -> bool:
        """Whether any layer's input may be smoothed."""
        found = (self.smooth, *(rule.smooth for rule in self.rules), *(preset.smooth for preset in self.presets))
        return any(alpha is not None for alpha in found)

    @property
    def learns(self) -> bool:
        """Whether the rounding of weights is learned."""
        return self.adaround or any(preset.distill for preset in self.presets)

    @property
    def reconstructs(self) -> bool:
        """Whether blocks of the network learn together."""
        return self.reconstruct or any(preset.reconstruct for preset in self.presets)

    @property
    def dimensions(self) -> dict[str, int]:
        """The sizes of `fix_dims` by the names of the dimensions."""
        return sizes("--fix-dim", self.fix_dims)

    @property
    def half(self) -> str | None:
        """The 16-bit type that what computes in float gets, or that weights are stored in; None for float32."""
        return self.float_type or next((preset.float_type for preset in self.presets if preset.float_type), None)

    @property
    def only_cleans(self) -> bool:
        """Whether nothing is asked for but the float model, rewritten."""
        return self.preset == "float" and not (self.kv_cache or self.rotate or self.half)

    @property
    def presets(self) -> list[Preset]:
        """The presets of the recipe and its rules."""
        return [PRESETS[name] for name in dict.fromkeys((self.preset, *(r.preset for r in self.rules if r.preset)))]

    def to_yaml(self) -> str:
        """The recipe as YAML, without the keys that have their default."""
        import yaml

        plain = asdict(self)
        plain["values"] = [as_data(rule) for rule in self.values]
        plain["rules"] = [{k: v for k, v in rule.items() if v is not None} for rule in plain["rules"]]
        default = asdict(Recipe())
        kept = {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items() if v != default[k] and v != []}
        return yaml.safe_dump({"preset": self.preset, **kept}, sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, text: str, where: str = "recipe") -> Recipe:
        """Read a recipe.

        Raises:
            RecipeError: not YAML, not a mapping, an unknown key or a value that does not fit.
        """
        import yaml

        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
            reason = f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark and problem else str(error)
            raise RecipeError(f"{where}: not YAML ({reason}); write keys and values, such as 'preset: w8a8'") from None
        except RecursionError:
            raise RecipeError(f"{where}: nested too deeply; write keys and values, such as 'preset: w8a8'") from None
        except Exception as error:  # dates, numbers and tags that PyYAML's own constructors stumble over
            reason = f"a value that cannot be read, {type(error).__name__}: {error}"[:200]
            raise RecipeError(f"{where}: not YAML ({reason}); write keys and values, such as 'preset: w8a8'") from None
        return cls.from_mapping({} if data is None else data, where)

    @classmethod
    def from_mapping(cls, data: object, where: str = "recipe") -> Recipe:
        """Read a recipe from keys and values, as YAML and JSON give them.

        Raises:
            RecipeError: not a mapping, an unknown key or a value that does not fit.
        """
        if not isinstance(data, Mapping):
            raise RecipeError(
                f"{where}: a {type(data).__name__}, not a mapping; write keys and values, such as 'preset: w8a8'"
            )
        check_keys(where, data, [field.name for field in fields(cls)])
        values: dict[str, Any] = {key: plain(value) for key, value in data.items() if value is not None}
        values["rules"] = node_rules(values.get("rules") or (), where)
        values["values"] = value_rules(values.get("values") or (), where)
        for key in _LISTS:
            if key in values:
                values[key] = names(f"{where}: {key}", values[key])
        check_types(where, values, _RECIPE_TYPES)
        return cls(**values)

    @classmethod
    def given(cls, value: object) -> Recipe:
        """A recipe in any form: itself, a mapping, the path of a YAML file, or None for the default.

        Raises:
            RecipeError: it is none of these, or says what makes no sense.
        """
        if value is None:
            return cls()
        if isinstance(value, Recipe):
            return value
        if isinstance(value, Mapping):
            return cls.from_mapping(value)
        if isinstance(value, str | os.PathLike):
            return cls.from_file(os.fspath(value))
        raise RecipeError(
            f"recipe: is a {type(value).__name__}; pass a Recipe, a dict of its keys, or the path of a YAML file"
        )

    @classmethod
    def from_file(cls, path: str | Path) -> Recipe:
        """Read a recipe from a YAML file.

        Raises:
            RecipeError: the file cannot be read or is no recipe.
        """
        place = Path(path)
        try:
            if place.exists() and not place.is_file() and not place.is_dir():
                raise RecipeError(f"--recipe {path}: is not a regular file; pass a YAML file")
            if place.stat().st_size > _LARGEST:
                raise RecipeError(f"--recipe {path}: more than {_LARGEST} bytes are no recipe; pass a YAML file")
            text = place.read_text("utf8")
        except (OSError, ValueError) as error:
            other = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "no file has such a name"
            reason = error.strerror if isinstance(error, OSError) else other
            raise RecipeError(f"--recipe {path}: cannot be read ({reason}); pass a YAML file") from None
        return cls.from_yaml(text, where=f"--recipe {path}")


_RECIPE_TYPES = field_types(Recipe)
_IN_FILES = (
    "rules values float_bias dedicated_pairs own_pairs own_grids asymmetric_weights unsigned_weights wide_weights "
    "signed_activations"
).split()
RECIPE_OPTIONS = tuple(field.name for field in fields(Recipe) if field.name not in _IN_FILES)
"""Every option that recipe, command line and `onnxq.quantize` share, by its one name."""


_NO_RULE = Rule(match="")
