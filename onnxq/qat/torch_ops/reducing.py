"""Operators that reduce axes, sort or accumulate."""

from __future__ import annotations

from collections.abc import Callable

import torch

from onnxq.qat.torch_ops.call import Call, Function, Tensor


def _reduce(function: Callable[[Tensor, list[int], bool], Tensor]) -> Function:
    def run(call: Call) -> Tensor:
        x, axes = call.need(0), call.axes()
        if not axes:
            if call.attribute("noop_with_empty_axes", 0):
                return x
            axes = list(range(x.ndim))
        return function(x, axes, bool(call.attribute("keepdims", 1)))

    return run


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted((axis % x.ndim for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _arg(largest: bool) -> Function:
    def run(call: Call) -> Tensor:
        x, axis = call.need(0), call.attribute("axis", 0)
        if call.attribute("select_last_index", 0):
            raise NotImplementedError("ArgMax with select_last_index")
        # the first of equal elements, which torch does not promise
        best = x.amax(axis, keepdim=True) if largest else x.amin(axis, keepdim=True)
        return (x == best).to(torch.int8).argmax(axis, keepdim=bool(call.attribute("keepdims", 1)))

    return run


def _top_k(call: Call) -> list[Tensor]:
    count = (call.numbers(1) or [0])[0] if call.opset >= 10 else call.attribute("k")
    largest, axis = bool(call.attribute("largest", 1)), call.attribute("axis", -1)
    order = torch.argsort(call.need(0), dim=axis, descending=largest, stable=True)
    indices = order.narrow(axis, 0, count)
    return [torch.gather(call.need(0), axis, indices), indices]


def _cum_sum(call: Call) -> Tensor:
    x, axis = call.need(0), int(call.need(1).reshape(-1)[0])
    x = x.flip(axis) if call.attribute("reverse", 0) else x
    y = x.cumsum(axis)
    y = y - x if call.attribute("exclusive", 0) else y
    return y.flip(axis) if call.attribute("reverse", 0) else y


OPERATORS: dict[tuple[str, str], Function] = {
    ("", "ReduceMax"): _reduce(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    ("", "ReduceMin"): _reduce(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    ("", "ReduceMean"): _reduce(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    ("", "ReduceSum"): _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    ("", "ReduceProd"): _reduce(_prod),
    ("", "ReduceL1"): _reduce(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    ("", "ReduceL2"): _reduce(lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep)),
    ("", "ReduceSumSquare"): _reduce(lambda x, axes, keep: (x * x).sum(axes, keepdim=keep)),
    ("", "ReduceLogSum"): _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    ("", "ReduceLogSumExp"): _reduce(lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
    ("", "ArgMax"): _arg(largest=True), ("", "ArgMin"): _arg(largest=False), ("", "TopK"): _top_k,
    ("", "CumSum"): _cum_sum,
}  # fmt: skip
"""By domain and operator."""
