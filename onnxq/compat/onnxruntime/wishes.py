"""``extra_options`` of ``onnxruntime.quantization``, one by one: what each becomes here, or what to use instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onnxq.compat.onnxruntime.quant_types import UnsupportedError
from onnxq.errors import closest

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


def _smooth(value: Any) -> Wishes:
    return {"preset": "w8a8-smooth"} if value else {}


def _exclude_products(value: Any) -> Wishes:
    return {"constant_products": True} if value else {}


MEANINGS: dict[str, tuple[Meaning, str]] = {
    "ActivationSymmetric": (_symmetric, "`symmetric=True`"),
    "CalibTensorRangeSymmetric": (_symmetric, "`symmetric=True`"),
    "WeightSymmetric": (_only(True, "weights of integer kernels are symmetric"), "always"),
    "SmoothQuant": (_smooth, '`preset="w8a8-smooth"`; needs no further package'),
    "SmoothQuantAlpha": (lambda value: {"smooth": float(value)}, "`smooth=α`, with SmoothQuant"),
    "SmoothQuantFolding": (_only(True, "factors always go into the node before"), "always"),
    "CalibPercentile": (lambda value: {"percentile": float(value)}, "`percentile`"),
    "CalibMaxIntermediateOutputs": (_none, "not needed: memory does not grow with the samples"),
    "CalibStridedMinMax": (_none, "not needed: memory does not grow with the samples"),
    "EnableSubgraph": (_none, "always: bodies of If, Loop and Scan are quantized"),
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
    "ForceQuantizeNoInputCheck": (_only(False, "nodes_to_quantize insists on nodes by name"), "no"),
    "ActivationRestrictedAsymmetric": (_only(False, "ActivationSymmetric has its zero point in the middle"), "no"),
    "AddQDQPairToWeight": (_only(False, "weights are stored as integers"), "no"),
    "QuantizeBias": (_only(True, "--exclude keeps a node float, with its bias"), "always"),
    "DedicatedQDQPair": (_only(False, "a Q/DQ pair is shared by all readers, with the same numbers"), "no"),
    "UseQDQContribOps": (_only(False, "ONNX's own operators are written; they need no other domain"), "no"),
    "OpTypesToExcludeOutputQuantization": (_only([], "nodes_to_exclude keeps nodes float"), "no"),
    "QDQOpTypePerChannelSupportToAxis": (_only({}, "scales go along the output channels of each operator"), "no"),
    "CalibMovingAverage": (
        _only(False, 'calibrate_method Percentile, or onnxq.quantize(range="mse"), is robust'),
        "no",
    ),
    "CalibMovingAverageConstant": (_none, "only with CalibMovingAverage"),
    "MinimumRealRange": (_only(None, "a range that is 0 gets a scale that no engine refuses"), "no"),
    "TensorQuantOverrides": (_only({}, "rules of a recipe decide by node: onnxq.Rule"), "no"),
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
            near = closest(name, MEANINGS)
            hint = f"did you mean {near!r}?" if near else f"there are {', '.join(MEANINGS)}"
            raise UnsupportedError(f"extra_options[{name!r}]: there is no such option; {hint}")
        try:
            found.update(MEANINGS[name][0](value))
        except UnsupportedError as error:
            raise UnsupportedError(f"extra_options[{name!r}] = {value!r}: {error}") from None
        except (TypeError, ValueError) as error:
            raise UnsupportedError(f"extra_options[{name!r}] = {value!r}: {error}; pass a number") from None
    if "smooth" in found and found.get("preset") is None:
        found.pop("smooth")  # onnxruntime ignores the strength without SmoothQuant, too
    return found
