"""Types, formats and range methods of ``onnxruntime.quantization`` as presets, targets and options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxq.compat.onnxruntime.quant_types import (
    CalibrationMethod,
    QuantFormat,
    QuantType,
    UnsupportedError,
    as_member,
)

_RANGES = {
    CalibrationMethod.MinMax: "minmax",
    CalibrationMethod.Entropy: "entropy",
    CalibrationMethod.Percentile: "percentile",
    CalibrationMethod.Distribution: "minmax",  # beside float8, ends as far from zero on both sides
}
_FORMATS = {QuantFormat.QDQ: "qdq", QuantFormat.QOperator: "qoperator"}
_BITS = {"QInt4": 4, "QUInt4": 4, "QInt8": 8, "QUInt8": 8, "QInt16": 16, "QUInt16": 16}
_FLOAT8 = "QFLOAT8E4M3FN"
_PRESETS = {(8, 8): "w8a8", (16, 8): "w8a16", (16, 16): "w8a16", (16, 4): "w4a16", (_FLOAT8, _FLOAT8): "fp8"}
"""By bits of activations and weights; weights of 16 bits are a key of the recipe."""

TARGETS = {"w4a16": "qnn", "fp8": "tensorrt"}
"""The engines that have kernels for types which a CPU does not know."""


def preset_of(activation: Any, weight: Any) -> str:
    """The preset of two types.

    Raises:
        UnsupportedError: there is none.
    """
    kinds = [as_member(QuantType, activation, "activation_type"), as_member(QuantType, weight, "weight_type")]
    bits = [_BITS.get(kind.name, kind.name) for kind in kinds]
    preset = _PRESETS.get((bits[0], bits[1]))
    if preset is None:
        argument, kind = ("weight_type", kinds[1]) if bits[0] in (8, 16, _FLOAT8) else ("activation_type", kinds[0])
        raise UnsupportedError(
            f"{argument} {kind}: weights of 8 bits (QInt8, QUInt8) go with activations of 8 or 16, weights of 4 or 16 "
            f"bits with 16, {_FLOAT8} with itself; for 4-bit weights and float activations use MatMulNBitsQuantizer"
        )
    return preset


def form_of(preset: str, form: QuantFormat) -> dict[str, str]:
    """What the model is written as; float8 has one form.

    Raises:
        UnsupportedError: integer operators of float8.
    """
    if preset != "fp8":
        return {"format": _FORMATS[form]}
    if form is not QuantFormat.QDQ:
        raise UnsupportedError("quant_format QOperator: no engine has such operators for float8; pass QuantFormat.QDQ")
    return {}


def target_of(wishes: Mapping[str, Any], reduce_range: bool) -> str:
    """What the model is for: this processor, unless a type is asked for that only other engines know.

    Raises:
        UnsupportedError: weights of 7 bits, which are for processors, together with such a type.
    """
    presets = [wishes["preset"], *(rule.get("preset") for rule in wishes["rules"])]
    target = next((TARGETS[preset] for preset in presets if preset in TARGETS), None)
    if target is None and any("convert" in rule for rule in wishes["values"]):
        target = "qnn"
    if target is not None and reduce_range:
        raise UnsupportedError(f"reduce_range: is for processors, and these types are for {target}; leave it out")
    return target or ("cpu-avx2" if reduce_range else "cpu")


def asks_unsigned(preset: str, weight: Any) -> bool:
    """Whether weights are to be uint8, or uint16; those of 4 bits are signed."""
    return preset in ("w8a8", "w8a16") and getattr(weight, "name", "") in ("QUInt8", "QUInt16")


def wide_keys(activation: Any, weight: Any, target: str) -> dict[str, bool]:
    """Keys of a recipe for 16 bits: of weights, and with a sign where a processor, which computes in float, runs them.

    Raises:
        UnsupportedError: another engine is to run weights of 16 bits.
    """
    processor = target.startswith("cpu")
    if _BITS.get(weight.name) == 16 and not processor:
        raise UnsupportedError(f"weight_type {weight}: {target} takes weights of 8 and 4 bits; pass QInt8")
    found = {"wide_weights": True} if _BITS.get(weight.name) == 16 else {}
    return {**found, "signed_activations": True} if activation.name == "QInt16" and processor else found


def weight_keys(unsigned: bool, *, even: bool) -> dict[str, bool]:
    """Keys of a recipe for uint8 weights, which are asymmetric by themselves; none for signed ones."""
    return {"unsigned_weights": True, **({} if even else {"asymmetric_weights": True})} if unsigned else {}


def ranges_of(preset: str, method: CalibrationMethod, *, average: bool) -> dict[str, Any]:
    """How ranges are found; float8 clips none."""
    if preset == "fp8":
        return {}
    name = "average" if average and method is CalibrationMethod.MinMax else _RANGES[method]
    return {"range": name, **({"symmetric": True} if method is CalibrationMethod.Distribution else {})}
