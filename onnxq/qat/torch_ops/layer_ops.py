"""Operators that multiply and accumulate, normalize or go over a window."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from onnxq.qat.torch_ops.call import Call, Function, Tensor


def window_pads(call: Call, shape: tuple[int, ...], kernel: list[int], *, ceil: bool = False) -> list[tuple[int, int]]:
    """Padding before and after each axis of the image, ``auto_pad`` and ``ceil_mode`` worked out."""
    rank = len(kernel)
    strides = call.attribute("strides") or [1] * rank
    dilations = call.attribute("dilations") or [1] * rank
    auto = call.attribute("auto_pad", "NOTSET")
    given = call.attribute("pads") or [0] * 2 * rank
    found = []
    for axis in range(rank):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        before, after = (0, 0) if auto == "VALID" else (given[axis], given[axis + rank])
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            total = max((math.ceil(shape[axis] / strides[axis]) - 1) * strides[axis] + reach - shape[axis], 0)
            before = total // 2 if auto == "SAME_UPPER" else total - total // 2
            after = total - before
        if ceil:
            count = -(-(shape[axis] + before + after - reach) // strides[axis]) + 1
            if (count - 1) * strides[axis] >= shape[axis] + before:
                count -= 1  # a window that starts in the padding behind is left out
            after += max((count - 1) * strides[axis] + reach - shape[axis] - before - after, 0)
        found.append((before, after))
    return found


def _padded(x: Tensor, pads: list[tuple[int, int]], value: float = 0.0) -> Tensor:
    if not any(before or after for before, after in pads):
        return x
    return F.pad(x, [n for pair in reversed(pads) for n in pair], value=value)


def _conv(call: Call) -> Tensor:
    return convolve(call, call.need(0), call.need(1), call.at(2))


def convolve(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution that a node's attributes describe."""
    rank = weight.ndim - 2
    pads = window_pads(call, tuple(x.shape[2:]), list(weight.shape[2:]))
    function: Callable[..., Tensor] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[rank]
    padding: Any = [before for before, _ in pads]
    if any(before != after for before, after in pads):
        x, padding = _padded(x, pads), 0
    return function(
        x, weight, bias, call.attribute("strides") or 1, padding, call.attribute("dilations") or 1,
        call.attribute("group", 1),
    )  # fmt: skip


def _conv_transpose(call: Call) -> Tensor:
    x, weight = call.need(0), call.need(1)
    rank = weight.ndim - 2
    if call.attribute("output_shape") or call.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise NotImplementedError("ConvTranspose with output_shape or auto_pad")
    pads = call.attribute("pads") or [0] * 2 * rank
    function: Callable[..., Tensor] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[rank]
    y = function(
        x, weight, call.at(2), call.attribute("strides") or 1, 0, call.attribute("output_padding") or 0,
        call.attribute("group", 1), call.attribute("dilations") or 1,
    )  # fmt: skip
    return _padded(y, [(-pads[axis], -pads[axis + rank]) for axis in range(rank)])


def _gemm(call: Call) -> Tensor:
    a, b, c = call.need(0), call.need(1), call.at(2)
    a = a.T if call.attribute("transA", 0) else a
    b = b.T if call.attribute("transB", 0) else b
    alpha, beta = call.attribute("alpha", 1.0), call.attribute("beta", 1.0)
    y = a @ b if alpha == 1.0 else alpha * (a @ b)
    return y if c is None else y + (c if beta == 1.0 else beta * c)


def _fused_matmul(call: Call) -> Tensor:
    a, b = call.need(0), call.need(1)
    if call.attribute("transBatchA", 0) or call.attribute("transBatchB", 0):
        raise NotImplementedError("FusedMatMul with a transposed batch")
    a = a.mT if call.attribute("transA", 0) else a
    b = b.mT if call.attribute("transB", 0) else b
    return call.attribute("alpha", 1.0) * (a @ b)


def _max_pool(call: Call) -> Tensor:
    x, kernel = call.need(0), call.attribute("kernel_shape")
    if len(call.node.outputs) > 1 and call.node.outputs[1]:
        raise NotImplementedError("MaxPool with indices")
    pads = window_pads(call, tuple(x.shape[2:]), kernel, ceil=bool(call.attribute("ceil_mode", 0)))
    function = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(kernel)]
    x = _padded(x, pads, float("-inf"))
    strides, dilations = call.attribute("strides") or 1, call.attribute("dilations") or 1
    result: Tensor = function(x, kernel, strides, 0, dilations)
    return result


def _average_pool(call: Call) -> Tensor:
    x, kernel = call.need(0), call.attribute("kernel_shape")
    if any(d != 1 for d in call.attribute("dilations") or []):
        raise NotImplementedError("AveragePool with dilations")
    ceil, whole = bool(call.attribute("ceil_mode", 0)), bool(call.attribute("count_include_pad", 0))
    pads = window_pads(call, tuple(x.shape[2:]), kernel, ceil=ceil)
    function = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel)]
    strides, area = call.attribute("strides") or 1, math.prod(kernel)
    counted = torch.ones_like(x[:1, :1])
    if whole:
        own = window_pads(call, tuple(x.shape[2:]), kernel)
        counted = _padded(counted, own, 1.0)
        pads_of_count = [(a - c, b - d) for (a, b), (c, d) in zip(pads, own, strict=True)]
    else:
        pads_of_count = pads
    sums = function(_padded(x, pads), kernel, strides) * area
    count = function(_padded(counted, pads_of_count), kernel, strides) * area
    result: Tensor = sums / count
    return result


def _batch_norm(call: Call) -> Tensor:
    x, scale, bias, mean, variance = (call.need(i) for i in range(5))
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, call.attribute("epsilon", 1e-5))


def _layer_norm(call: Call) -> list[Tensor]:
    x, axis = call.need(0), call.attribute("axis", -1)
    return [F.layer_norm(x, x.shape[axis:], call.at(1), call.at(2), call.attribute("epsilon", 1e-5))]


def _skip_layer_norm(call: Call) -> list[Tensor | None]:
    both = call.need(0) + call.need(1)
    extra = call.at(4)
    if extra is not None:
        both = both + extra
    y = F.layer_norm(both, both.shape[-1:], call.at(2), call.at(3), call.attribute("epsilon", 1e-12))
    return [y, None, None, both]


def _rms_norm(call: Call) -> list[Tensor]:
    x, scale, axis = call.need(0), call.need(1), call.attribute("axis", -1)
    axes = list(range(axis % x.ndim, x.ndim))
    return [x * torch.rsqrt((x * x).mean(axes, keepdim=True) + call.attribute("epsilon", 1e-5)) * scale]


def _skip_rms_norm(call: Call) -> list[Tensor | None]:
    both = call.need(0) + call.need(1)
    extra = call.at(3)
    both = both if extra is None else both + extra
    y = both * torch.rsqrt((both * both).mean(-1, keepdim=True) + call.attribute("epsilon", 1e-12)) * call.need(2)
    return [y, None, None, both]


def _group_norm(call: Call) -> Tensor:
    x, scale, bias, groups = call.need(0), call.need(1), call.need(2), call.attribute("num_groups")
    if scale.numel() != x.shape[1]:  # before operator set 21 there is one a group
        scale, bias = (p.repeat_interleave(x.shape[1] // groups) for p in (scale, bias))
    return F.group_norm(x, groups, scale, bias, call.attribute("epsilon", 1e-5))


def _lrn(call: Call) -> Tensor:
    x, size = call.need(0), call.attribute("size")
    squares = F.pad((x * x).movedim(1, -1), ((size - 1) // 2, size - 1 - (size - 1) // 2))
    sums = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    factor = call.attribute("bias", 1.0) + call.attribute("alpha", 1e-4) / size * sums
    return x / torch.pow(factor, call.attribute("beta", 0.75))


def _softmax(function: Callable[..., Tensor]) -> Function:
    def run(call: Call) -> Tensor:
        x = call.need(0)
        if call.opset >= 13:
            return function(x, dim=call.attribute("axis", -1))
        axis = call.attribute("axis", 1) % max(x.ndim, 1)
        return function(x.reshape(math.prod(x.shape[:axis]), -1), dim=-1).reshape(x.shape)

    return run


def _resize(call: Call) -> Tensor:
    x = call.need(0)
    scales = call.at(1 if call.opset < 11 else 2)
    sizes = call.numbers(3) if call.opset >= 11 else None
    if call.attribute("axes") or call.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NotImplementedError("Resize with axes or a policy")
    factors = [float(f) for f in scales.reshape(-1).tolist()] if scales is not None and scales.numel() else None
    if sizes is None:
        assert factors is not None
        sizes = [math.floor(length * f) for length, f in zip(x.shape, factors, strict=True)]
    if factors is None:
        factors = [size / length for size, length in zip(sizes, x.shape, strict=True)]
    mode = call.attribute("mode", "nearest")
    where = call.attribute("coordinate_transformation_mode", "half_pixel" if call.opset >= 11 else "asymmetric")
    for axis, (size, factor) in enumerate(zip(sizes, factors, strict=True)):
        if size == x.shape[axis] and factor == 1.0:
            continue
        at = _coordinates(size, x.shape[axis], factor, where).to(x.device)
        if mode == "nearest":
            x = x.index_select(axis, _nearest(at, call.attribute("nearest_mode", "round_prefer_floor"), x.shape[axis]))
        elif mode == "linear":
            x = _linear(x, axis, at)
        else:
            raise NotImplementedError(f"Resize in mode {mode}")
    return x


def _coordinates(size: int, length: int, factor: float, where: str) -> Tensor:
    position = torch.arange(size, dtype=torch.float64)
    match where:
        case "asymmetric":
            return position / factor
        case "half_pixel":
            return (position + 0.5) / factor - 0.5
        case "pytorch_half_pixel":
            return (position + 0.5) / factor - 0.5 if size > 1 else torch.zeros(size, dtype=torch.float64)
        case "align_corners":
            return position * (length - 1) / max(size - 1, 1)
    raise NotImplementedError(f"Resize with {where}")


def _nearest(at: Tensor, mode: str, length: int) -> Tensor:
    match mode:
        case "floor":
            found = at.floor()
        case "ceil":
            found = at.ceil()
        case "round_prefer_ceil":
            found = (at + 0.5).floor()
        case _:
            found = (at - 0.5).ceil()
    return found.clamp(0, length - 1).to(torch.int64)


def _linear(x: Tensor, axis: int, at: Tensor) -> Tensor:
    length = x.shape[axis]
    at = at.clamp(0, length - 1)
    low = at.floor().to(torch.int64)
    high = (low + 1).clamp(max=length - 1)
    share = (at - low).to(x.dtype).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share


OPERATORS: dict[tuple[str, str], Function] = {
    ("", "Conv"): _conv, ("", "ConvTranspose"): _conv_transpose, ("", "Gemm"): _gemm,
    ("", "MatMul"): lambda call: torch.matmul(call.need(0), call.need(1)),
    ("com.microsoft", "FusedMatMul"): _fused_matmul,
    ("", "Einsum"): lambda call: torch.einsum(call.attribute("equation"), *call.inputs),
    ("", "MaxPool"): _max_pool, ("", "AveragePool"): _average_pool,
    ("", "GlobalAveragePool"): lambda call: call.need(0).mean(list(range(2, call.need(0).ndim)), keepdim=True),
    ("", "GlobalMaxPool"): lambda call: call.need(0).amax(list(range(2, call.need(0).ndim)), keepdim=True),
    ("", "BatchNormalization"): _batch_norm, ("", "LayerNormalization"): _layer_norm,
    ("", "InstanceNormalization"): lambda call: F.instance_norm(
        call.need(0), None, None, call.need(1), call.need(2), True, 0.0, call.attribute("epsilon", 1e-5)
    ),
    ("", "GroupNormalization"): _group_norm, ("", "LRN"): _lrn, ("", "RMSNormalization"): _rms_norm,
    ("", "SimplifiedLayerNormalization"): _rms_norm,
    ("com.microsoft", "SkipLayerNormalization"): _skip_layer_norm,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip_rms_norm,
    ("", "Softmax"): _softmax(torch.softmax), ("", "LogSoftmax"): _softmax(torch.log_softmax), ("", "Resize"): _resize,
}  # fmt: skip
"""By domain and operator."""
