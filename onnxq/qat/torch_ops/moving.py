"""Operators that move, select or make elements, and those that tell shapes."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from onnxq.qat.torch_ops.call import Call, Function, Tensor


def _reshape(call: Call) -> Tensor:
    x = call.need(0)
    shape = call.numbers(1) or [int(n) for n in call.attribute("shape", [])]
    if not call.attribute("allowzero", 0):
        shape = [x.shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return x.reshape(shape)


def _transpose(call: Call) -> Tensor:
    x = call.need(0)
    return x.permute(call.attribute("perm") or list(reversed(range(x.ndim))))


def _squeeze(call: Call) -> Tensor:
    x, axes = call.need(0), call.axes()
    if axes is None:
        axes = [axis for axis, length in enumerate(x.shape) if length == 1]
    gone = {axis % max(x.ndim, 1) for axis in axes}
    return x.reshape([length for axis, length in enumerate(x.shape) if axis not in gone])


def _unsqueeze(call: Call) -> Tensor:
    x, axes = call.need(0), call.axes() or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _flatten(call: Call) -> Tensor:
    x, axis = call.need(0), call.attribute("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _slice(call: Call) -> Tensor:
    x = call.need(0)
    if call.opset < 10:
        starts, ends = list(call.attribute("starts")), list(call.attribute("ends"))
        axes, steps = call.attribute("axes"), None
    else:
        starts, ends, axes, steps = call.numbers(1) or [], call.numbers(2) or [], call.numbers(3), call.numbers(4)
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = (axes[index] if axes is not None else index) % x.ndim
        step = steps[index] if steps is not None else 1
        length = x.shape[axis]
        picked = range(length)[slice(_bound(start), _bound(end) if end > -(1 << 62) else None, step)]
        if step > 0:
            x = x[(slice(None),) * axis + (slice(picked.start, picked.stop, step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(picked), dtype=torch.int64, device=x.device))
    return x


def _bound(number: int) -> int:
    return max(min(number, 1 << 62), -(1 << 62))


def _split(call: Call) -> list[Tensor]:
    x, axis, count = call.need(0), call.attribute("axis", 0), len(call.node.outputs)
    sizes = call.attribute("split") or call.numbers(1)
    if sizes is None:
        length = x.shape[axis]
        piece = -(-length // call.attribute("num_outputs", count))
        sizes = [piece] * (length // piece) + ([length % piece] if length % piece else [])
    return list(torch.split(x, list(sizes), dim=axis))


def _gather(call: Call) -> Tensor:
    x, axis = call.need(0), call.attribute("axis", 0)
    indices = call.need(1).to(torch.int64)
    axis %= x.ndim
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    picked = x.index_select(axis, indices.reshape(-1))
    return picked.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _gather_elements(call: Call) -> Tensor:
    x, indices, axis = call.need(0), call.need(1).to(torch.int64), call.attribute("axis", 0)
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def _gather_nd(call: Call) -> Tensor:
    x, indices = call.need(0), call.need(1).to(torch.int64)
    if call.attribute("batch_dims", 0):
        raise NotImplementedError("GatherND with batch_dims")
    return x[tuple(indices.unbind(-1))]


def _expand(call: Call) -> Tensor:
    x, shape = call.need(0), call.numbers(1) or []
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape)))


def _depth_to_space(call: Call) -> Tensor:
    x, block = call.need(0), call.attribute("blocksize")
    n, c, h, w = x.shape
    if call.attribute("mode", "DCR") == "DCR":
        parts = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, c // block**2, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(call: Call) -> Tensor:
    x, block = call.need(0), call.attribute("blocksize")
    n, c, h, w = x.shape
    parts = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return parts.reshape(n, c * block**2, h // block, w // block)


def _pad(call: Call) -> Tensor:
    x = call.need(0)
    pads = call.attribute("pads") or call.numbers(1) or []
    axes = call.numbers(3)
    begin, end = [0] * x.ndim, [0] * x.ndim
    for index, axis in enumerate(axes if axes is not None else range(x.ndim)):
        begin[axis], end[axis] = pads[index], pads[index + len(pads) // 2]
    mode, value = call.attribute("mode", "constant"), call.at(2)
    for axis in range(x.ndim):
        if begin[axis] < 0 or end[axis] < 0:
            x = x.narrow(axis, max(-begin[axis], 0), x.shape[axis] - max(-begin[axis], 0) - max(-end[axis], 0))
    begin, end = [max(n, 0) for n in begin], [max(n, 0) for n in end]
    if mode != "constant":
        for axis in range(x.ndim):
            x = x.index_select(axis, _mirrored(x.shape[axis], begin[axis], end[axis], mode).to(x.device))
        return x
    if isinstance(value, Tensor) and value.requires_grad:  # a learned zero point
        inside = F.pad(torch.ones_like(x), _reversed(begin, end))
        return F.pad(x, _reversed(begin, end)) + (1 - inside) * value
    return F.pad(x, _reversed(begin, end), value=float(value) if value is not None else call.attribute("value", 0.0))


def _reversed(begin: list[int], end: list[int]) -> list[int]:
    return [n for pair in zip(reversed(begin), reversed(end), strict=True) for n in pair]


def _mirrored(length: int, begin: int, end: int, mode: str) -> Tensor:
    modes = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}
    return torch.from_numpy(np.pad(np.arange(length), (begin, end), mode=modes[mode]))  # type: ignore[call-overload]


def _shape(call: Call) -> Tensor:
    x = call.need(0)
    shape = list(x.shape)[call.attribute("start", 0) : call.attribute("end", x.ndim)]
    return torch.tensor(shape, dtype=torch.int64, device=x.device)


def _constant_of_shape(call: Call) -> Tensor:
    value = call.attribute("value")
    filling = torch.from_numpy(np.atleast_1d(value).copy()) if value is not None else torch.zeros(1)
    shape = call.numbers(0) or []
    return torch.full(shape, filling[0].item(), dtype=filling.dtype, device=call.need(0).device)


def _range(call: Call) -> Tensor:
    start, limit, step = (call.need(i) for i in range(3))
    return torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype, device=start.device)


def _trilu(call: Call) -> Tensor:
    diagonal = (call.numbers(1) or [0])[0]
    return torch.triu(call.need(0), diagonal) if call.attribute("upper", 1) else torch.tril(call.need(0), diagonal)


def _one_hot(call: Call) -> Tensor:
    indices, depth, values = call.need(0).to(torch.int64), int(call.need(1).reshape(-1)[0]), call.need(2)
    axis = call.attribute("axis", -1)
    hot = F.one_hot(torch.where(indices < 0, indices + depth, indices), depth).movedim(-1, axis).bool()
    return torch.where(hot, values[1], values[0])


def _scatter_nd(call: Call) -> Tensor:
    if call.attribute("reduction", "none") != "none":
        raise NotImplementedError("ScatterND with a reduction")
    x, indices = call.need(0), call.need(1).to(torch.int64)
    return x.index_put(tuple(indices.unbind(-1)), call.need(2))


def _scatter_elements(call: Call) -> Tensor:
    if call.attribute("reduction", "none") != "none":
        raise NotImplementedError("ScatterElements with a reduction")
    x, indices, axis = call.need(0), call.need(1).to(torch.int64), call.attribute("axis", 0)
    return x.scatter(axis, torch.where(indices < 0, indices + x.shape[axis], indices), call.need(2))


OPERATORS: dict[tuple[str, str], Function] = {
    ("", "Reshape"): _reshape, ("", "Transpose"): _transpose, ("", "Squeeze"): _squeeze,
    ("", "Unsqueeze"): _unsqueeze, ("", "Flatten"): _flatten, ("", "Slice"): _slice, ("", "Split"): _split,
    ("", "Gather"): _gather, ("", "GatherElements"): _gather_elements, ("", "GatherND"): _gather_nd,
    ("", "Expand"): _expand, ("", "DepthToSpace"): _depth_to_space, ("", "SpaceToDepth"): _space_to_depth,
    ("", "Pad"): _pad, ("", "Shape"): _shape, ("", "ConstantOfShape"): _constant_of_shape, ("", "Range"): _range,
    ("", "Trilu"): _trilu, ("", "OneHot"): _one_hot, ("", "ScatterND"): _scatter_nd,
    ("", "ScatterElements"): _scatter_elements,
    ("", "Concat"): lambda call: torch.cat([x for x in call.inputs if x is not None], call.attribute("axis")),
    ("", "Tile"): lambda call: call.need(0).repeat(call.numbers(1) or []),
    ("", "Size"): lambda call: torch.tensor(call.need(0).numel(), device=call.need(0).device),
    ("", "NonZero"): lambda call: torch.nonzero(call.need(0)).T,
}  # fmt: skip
"""By domain and operator."""
