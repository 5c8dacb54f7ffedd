"""``extra_options`` of ``onnxruntime.quantization``, one by one: what each becomes here, or what to use instead."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnxq.compat.onnxruntime.quant_types import UnsupportedError
from onnxq.errors import closest
from onnxq.recipe.values import plain

logger = logging.getLogger("onnxq.compat.onnxruntime")

Wishes = dict[str, Any]
"""Options of `onnxq.quantize`."""

Meaning = Callable[[Any], Wishes]


def _none(value: Any) -> Wishes:
    return {}


def _only(allowed: Any, remedy: str) -> Meaning:
    """An option that has one value here."""

    def meaning(value: Any) -> Wishes:
        if value != allowed:
            raise UnsupportedError(f"has no equal here; {remedy}")
        return {}

    return meaning


def _symmetric(value: Any) -> Wishes:
    return {"symmetric": True} if value else {}


def _key(name: str, when: bool = True) -> Meaning:
    """An option that sets a key of the recipe."""
    return lambda value: {"recipe_keys": {name: True}} if bool(value) is when else {}


def _float_outputs(value: Any) -> Wishes:
    return {"float_outputs_of": tuple(map(str, value))} if value else {}


def _smooth(value: Any) -> Wishes:
    return {"preset": "w8a8-smooth"} if value else {}


def _constant(value: Any) -> Wishes:
    if not 0 <= float(value) <= 1:
        raise UnsupportedError("Invalid averaging constant, which should not be < 0 or > 1; pass 0.01")
    return {}


def _exclude_products(value: Any) -> Wishes:
    return {"constant_products": True} if value else {}


def _least_range(value: Any) -> Wishes:
    return {} if value is None else {"values": [{"match": "*", "min_range": float(value)}]}


_OVERRIDES = {"quant_type", "scale", "zero_point", "symmetric", "rmin", "rmax", "reduce_range", "convert"}


def _overrides(value: Any) -> Wishes:
    rules = [rule for name, entries in dict(value).items() if (rule := rule_of(name, entries))]
    return {"values": rules} if rules else {}


def rule_of(name: str, entries: Sequence[Mapping[str, Any]], bits: int = 8, signed: bool = False) -> dict[str, Any]:
    """The rule of an activation, which has one grid and not one a channel; empty where nothing is said.

    Args:
        name: of the tensor.
        entries: its overrides.
        bits: of activations about which nothing is said.
        signed: activations are counted with a sign.

    Raises:
        UnsupportedError: as for `override_of`.
    """
    if len(entries) != 1:
        raise UnsupportedError(f"{name!r} has {len(entries)} grids; an activation has one, weights find their own")
    rule = override_of(name, entries[0], bits, signed)
    return {"match": literal(name), **rule} if rule else {}


def override_of(name: str, given: Mapping[str, Any], bits: int = 8, signed: bool = False) -> dict[str, Any]:
    """The keys of a value rule that say what an override says.

    Args:
        name: of the tensor, for messages.
        given: the override.
        bits: of tensors about which nothing is said.
        signed: the integers of the grid have a sign, so that zero points of unsigned ones move; else those of signed.

    Raises:
        UnsupportedError: it has no equal here, or contradicts itself.
    """
    unknown = set(given) - _OVERRIDES
    if unknown:
        raise UnsupportedError(f"{name!r}: {', '.join(sorted(unknown))} has no equal here; leave it out")
    kind = getattr(given.get("quant_type"), "name", f"QInt{bits}")
    if kind not in ("QInt8", "QUInt8", "QInt16", "QUInt16"):
        raise UnsupportedError(f"{name!r}: quant_type {kind} is no type of an activation here; pass 8 or 16 bits")
    if ("scale" in given) != ("zero_point" in given):
        raise UnsupportedError(f"{name!r}: Must provide both 'scale' and 'zero_point', since they belong together")
    if "scale" in given and (more := sorted({"symmetric", "reduce_range", "rmin", "rmax"} & set(given))):
        raise UnsupportedError(
            f"{name!r}: option(s) [{', '.join(more)}] are invalid with 'scale' and 'zero_point', which say it all"
        )
    if ("rmin" in given) != ("rmax" in given):
        raise UnsupportedError(f"{name!r}: rmin and rmax belong together here; give both")
    rule = {key: plain(given[key]) for key in ("scale", "zero_point", "symmetric") if key in given}
    if isinstance(rule.get("zero_point"), float) and rule["zero_point"].is_integer():
        rule["zero_point"] = int(rule["zero_point"])
    width = 16 if kind.endswith("16") else 8
    if width != bits:
        rule["bits"] = width
    if "zero_point" in rule and signed == kind.startswith("QU"):  # the same grid, counted as the other type
        rule["zero_point"] += (-1 if signed else 1) << (width - 1)
    if "rmin" in given:
        rule["range"] = [plain(given["rmin"]), plain(given["rmax"])]
    return {**rule, **_conversion(name, given["convert"], width)} if "convert" in given else rule


def _conversion(name: str, given: Any, bits: int) -> dict[str, Any]:
    """The keys of a value rule for a second grid that some nodes read.

    Raises:
        UnsupportedError: it has no equal here.
    """
    if not isinstance(given, Mapping) or "quant_type" not in given:
        raise UnsupportedError(f"{name!r}: convert is {given!r}; pass a mapping with quant_type and recv_nodes")
    if more := sorted(set(given) - {"quant_type", "recv_nodes"}):
        raise UnsupportedError(f"{name!r}: {more[0]} of convert: its range is calibrated here; leave it out")
    kind = getattr(given["quant_type"], "name", str(given["quant_type"]))
    to = {"QInt8": 8, "QUInt8": 8, "QInt16": 16, "QUInt16": 16}.get(kind)
    if to is None or to == bits:
        raise UnsupportedError(f"{name!r}: converts {bits} bits to {kind}; pass a type of {24 - bits} bits")
    readers = given.get("recv_nodes")
    return {"bits": bits, "convert": to, **({"readers": sorted(map(literal, readers))} if readers else {})}


def literal(name: str) -> str:
    """A name whose characters are none of a pattern's."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


MEANINGS: dict[str, tuple[Meaning, str]] = {
    "ActivationSymmetric": (_symmetric, "`symmetric=True`"),
    "CalibTensorRangeSymmetric": (_symmetric, "`symmetric=True`"),
    "WeightSymmetric": (
        lambda value: {"recipe_keys": {"asymmetric_weights": True}} if value is False else {},
        "false: `asymmetric_weights: true` in a recipe; one scale a tensor",
    ),
    "SmoothQuant": (_smooth, '`preset="w8a8-smooth"`; needs no further package'),
    "SmoothQuantAlpha": (lambda value: {"smooth": float(value)}, "`smooth=α`, with SmoothQuant"),
    "SmoothQuantFolding": (_only(True, "factors always go into the node before"), "always"),
    "CalibPercentile": (lambda value: {"percentile": float(value)}, "`percentile`"),
    "CalibMaxIntermediateOutputs": (_none, "not needed: memory does not grow with the samples"),
    "CalibStridedMinMax": (_none, "not needed: memory does not grow with the samples"),
    "EnableSubgraph": (_none, "always: subgraphs of If, Loop and Scan are quantized"),
    "DefaultTensorType": (_none, "not needed: types and shapes come from a run"),
    "DisableShapeInference": (_none, "not needed: types and shapes come from a run"),
    "MatMulConstBOnly": (_exclude_products, "MatMuls of two activations are left out"),
    "QDQKeepRemovableActivations": (
        _only(False, "a Relu or Clip is left out only where the grid does the same; --exclude keeps one float"),
        "no",
    ),
    "QDQDisableWeightAdjustForInt32Bias": (
        _only(False, "a bias that is too large for int32 would be wrong"),
        "no",
    ),
    "extra.Sigmoid.nnapi": (_only(False, "--target says what will run the model"), "no"),
    "ForceQuantizeNoInputCheck": (
        lambda value: {"insist": True} if value else {},
        '`include=["*"]`: whatever can be quantized is, faster or not',
    ),
    "ActivationRestrictedAsymmetric": (_only(False, "ActivationSymmetric has its zero point in the middle"), "no"),
    "AddQDQPairToWeight": (_only(False, "weights are stored as integers"), "no"),
    "QuantizeBias": (_key("float_bias", when=False), "false: `float_bias: true` in a recipe; QDQ alone"),
    "DedicatedQDQPair": (_key("dedicated_pairs"), "`dedicated_pairs: true` in a recipe; QDQ alone"),
    "UseQDQContribOps": (_key("own_pairs"), "`own_pairs: true` in a recipe; QDQ alone"),
    "OpTypesToExcludeOutputQuantization": (
        _float_outputs,
        "`onnxq.ValueRule(quantize=False)` for each output; MatMul and Gemm stay on integers",
    ),
    "QDQOpTypePerChannelSupportToAxis": (_only({}, "scales go along the output channels of each operator"), "no"),
    "CalibMovingAverage": (
        lambda value: {"average": True} if value else {},
        '`range="average"`, with MinMax: the mean of the samples\' extrema',
    ),
    "CalibMovingAverageConstant": (
        _constant,
        "none: a mean needs no constant; `create_calibrator` uses it from one call of `collect_data` to the next",
    ),
    "MinimumRealRange": (_least_range, "`onnxq.ValueRule(min_range=…)`"),
    "TensorQuantOverrides": (
        _overrides,
        "`onnxq.ValueRule` for each tensor; of a weight, `axis`: a scale a channel; of activations also 16 bits, and "
        "`convert` with `quant_type` and `recv_nodes`; of weights also 4 bits, whose grid is found here",
    ),
    "BlockSize": (_only(0, "MatMulNBitsQuantizer packs weights in blocks"), "no"),
}
"""By option: what becomes of its value, and the same in words for the documentation."""


def wishes_of(extra_options: Mapping[str, Any] | None) -> Wishes:
    """Options of `onnxq.quantize` that mean the same.

    Raises:
        UnsupportedError: an option has no equal here; the message says what to use.
    """
    found: Wishes = {}
    for name, value in (extra_options or {}).items():
        if name not in MEANINGS:
            if near := closest(name, MEANINGS):
                raise UnsupportedError(f"extra_options[{name!r}]: there is no such option; did you mean {near!r}?")
            logger.warning("extra_options[%r]: there is no such option, so that it has no effect", name)
            continue
        try:
            wished = MEANINGS[name][0](value)
            values = [*found.get("values", []), *wished.get("values", [])]
            keys = {**found.get("recipe_keys", {}), **wished.get("recipe_keys", {})}
            found.update(wished)
            found.update({"values": values} if values else {})
            found.update({"recipe_keys": keys} if keys else {})
        except UnsupportedError as error:
            raise UnsupportedError(f"extra_options[{name!r}] = {value!r}: {error}") from None
        except (TypeError, ValueError) as error:
            raise UnsupportedError(f"extra_options[{name!r}] = {value!r}: {error}; pass a number") from None
    if "smooth" in found and found.get("preset") is None:
        found.pop("smooth")  # onnxruntime ignores the strength without SmoothQuant, too
    return found
