"""Operators that work element by element."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F

from onnxq.graph.views.plain_graph import ELEMENT_TYPES
from onnxq.qat.torch_ops.call import Call, Function, Tensor

_TYPES = {
    "float": torch.float32,
    "double": torch.float64,
    "bool": torch.bool,
    "int64": torch.int64,
    "int32": torch.int32,
}
_NARROW = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535)}


def cast_to(x: Tensor, name: str) -> Tensor:
    """A tensor as another element type, by its ONNX name."""
    if name in _TYPES:
        dtype = _TYPES[name]
        if dtype in (torch.int64, torch.int32) and x.is_floating_point():
            return x.trunc().to(dtype)
        return x.to(dtype)
    if name in ("float16", "bfloat16"):  # computed as float32, at the precision of the narrow type
        return x.to(torch.float16 if name == "float16" else torch.bfloat16).float()
    if name in _NARROW:
        return x.to(torch.float32).trunc()
    raise NotImplementedError(f"Cast to {name}")


def _cast(call: Call) -> Tensor:
    return cast_to(call.need(0), ELEMENT_TYPES[int(call.attribute("to"))])


def _one(function: Callable[[Tensor], Tensor]) -> Function:
    return lambda call: function(call.need(0))


def _two(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda call: function(call.need(0), call.need(1))


def _many(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda call: functools.reduce(function, [x for x in call.inputs if x is not None])


def _div(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _mod(call: Call) -> Tensor:
    a, b = call.need(0), call.need(1)
    return torch.fmod(a, b) if call.attribute("fmod", 0) else torch.remainder(a, b)


def _pow(a: Tensor, b: Tensor) -> Tensor:
    if b.numel() == 1 and float(b) == 2.0:
        return a * a
    return torch.pow(a, b.to(a.dtype) if a.is_floating_point() else b)


def _clip(call: Call) -> Tensor:
    x = call.need(0)
    low, high = call.attribute("min"), call.attribute("max")
    if call.opset >= 11:
        low, high = call.at(1), call.at(2)
    ends = [None if end is None else torch.as_tensor(end, dtype=x.dtype, device=x.device) for end in (low, high)]
    # not maximum and minimum, which halve the gradient of what lies at an end
    return x if ends == [None, None] else torch.clamp(x, ends[0], ends[1])


def _hard_sigmoid(call: Call) -> Tensor:
    return (call.need(0) * call.attribute("alpha", 0.2) + call.attribute("beta", 0.5)).clamp(0.0, 1.0)


def _gelu(call: Call) -> Tensor:
    return F.gelu(call.need(0), approximate=call.attribute("approximate", "none"))


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _shrink(call: Call) -> Tensor:
    x, bias, bound = call.need(0), call.attribute("bias", 0.0), call.attribute("lambd", 0.5)
    return torch.where(x < -bound, x + bias, torch.where(x > bound, x - bias, torch.zeros_like(x)))


def _mean(call: Call) -> Tensor:
    return _many(torch.add)(call) / len(call.inputs)  # type: ignore[operator]


def _is_inf(call: Call) -> Tensor:
    x = call.need(0)
    found = torch.zeros_like(x, dtype=torch.bool)
    if call.attribute("detect_positive", 1):
        found |= x == float("inf")
    if call.attribute("detect_negative", 1):
        found |= x == -float("inf")
    return found


def _bias_gelu(call: Call) -> Tensor:
    bias = call.at(1)
    x = call.need(0) if bias is None else call.need(0) + bias
    return F.gelu(x)


def _fast_gelu(call: Call) -> Tensor:
    bias = call.at(1)
    x = call.need(0) if bias is None else call.need(0) + bias
    return F.gelu(x, approximate="tanh")


def _quick_gelu(call: Call) -> Tensor:
    x = call.need(0)
    return x * torch.sigmoid(x * call.attribute("alpha", 1.702))


OPERATORS: dict[tuple[str, str], Function] = {
    **{
        ("", name): _one(function)
        for name, function in {
            "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Exp": torch.exp, "Log": torch.log,
            "Sqrt": torch.sqrt, "Neg": torch.neg, "Abs": torch.abs, "Erf": torch.erf, "Floor": torch.floor,
            "Ceil": torch.ceil, "Round": torch.round, "Sign": torch.sign, "Reciprocal": torch.reciprocal,
            "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos,
            "Atan": torch.atan, "Sinh": torch.sinh, "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh,
            "Atanh": torch.atanh, "Not": torch.logical_not, "IsNaN": torch.isnan, "Softplus": F.softplus,
            "Softsign": F.softsign, "Mish": F.mish, "Identity": lambda x: x, "Dropout": lambda x: x,
            "HardSwish": lambda x: x * (x / 6 + 0.5).clamp(0.0, 1.0),
        }.items()
    },
    **{
        ("", name): _two(function)
        for name, function in {
            "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": _div, "Pow": _pow, "PRelu": _prelu,
            "Equal": torch.eq, "Less": torch.lt, "Greater": torch.gt, "LessOrEqual": torch.le,
            "GreaterOrEqual": torch.ge, "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
        }.items()
    },
    ("", "Sum"): _many(torch.add), ("", "Max"): _many(torch.maximum), ("", "Min"): _many(torch.minimum),
    ("", "Mean"): _mean, ("", "Mod"): _mod, ("", "Cast"): _cast, ("", "Clip"): _clip, ("", "IsInf"): _is_inf,
    ("", "CastLike"): lambda call: call.need(0).to(call.need(1).dtype),
    ("", "Where"): lambda call: torch.where(call.need(0).bool(), call.need(1), call.need(2)),
    ("", "LeakyRelu"): lambda call: F.leaky_relu(call.need(0), call.attribute("alpha", 0.01)),
    ("", "Elu"): lambda call: F.elu(call.need(0), call.attribute("alpha", 1.0)),
    ("", "Celu"): lambda call: F.celu(call.need(0), call.attribute("alpha", 1.0)),
    ("", "Selu"): lambda call: F.selu(call.need(0)),
    ("", "ThresholdedRelu"): lambda call: F.threshold(call.need(0), call.attribute("alpha", 1.0), 0.0),
    ("", "HardSigmoid"): _hard_sigmoid, ("", "Gelu"): _gelu, ("", "Shrink"): _shrink,
    ("com.microsoft", "Gelu"): lambda call: F.gelu(call.need(0)),
    ("com.microsoft", "BiasGelu"): _bias_gelu, ("com.microsoft", "FastGelu"): _fast_gelu,
    ("com.microsoft", "QuickGelu"): _quick_gelu,
}  # fmt: skip
"""By domain and operator."""
