"""LSTM, GRU and RNN, step by step, with the cell's default activations."""

from __future__ import annotations

from collections.abc import Callable

import torch

from onnxq.qat.torch_ops.call import Call, Function, Tensor

_Cell = Callable[[Call, Tensor, "_Weights", list[Tensor]], list[Tensor]]
_DEFAULTS = {
    "LSTM": ["Sigmoid", "Tanh", "Tanh"],
    "DynamicQuantizeLSTM": ["Sigmoid", "Tanh", "Tanh"],
    "GRU": ["Sigmoid", "Tanh"],
    "RNN": ["Tanh"],
}


class _Weights:
    """Weights of one direction: of the input, of the state, and both biases."""

    def __init__(self, w: Tensor, r: Tensor, bias: Tensor | None, peephole: Tensor | None = None) -> None:
        self.w, self.r, self.peephole = w, r, peephole
        self.bias_w: Tensor | float = 0.0
        self.bias_r: Tensor | float = 0.0
        if bias is not None:
            self.bias_w, self.bias_r = bias.chunk(2)


def _lstm_cell(call: Call, x: Tensor, weights: _Weights, state: list[Tensor]) -> list[Tensor]:
    h, c = state
    gates = x + h @ weights.r.T + weights.bias_r
    i, o, f, g = gates.chunk(4, dim=-1)
    if weights.peephole is not None:
        p_i, p_o, p_f = weights.peephole.chunk(3)
        i, f = i + p_i * c, f + p_f * c
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return [torch.sigmoid(o + p_o * c) * torch.tanh(c), c]
    i = torch.sigmoid(i)
    f = 1 - i if call.attribute("input_forget", 0) else torch.sigmoid(f)
    c = f * c + i * torch.tanh(g)
    return [torch.sigmoid(o) * torch.tanh(c), c]


def _gru_cell(call: Call, x: Tensor, weights: _Weights, state: list[Tensor]) -> list[Tensor]:
    h = state[0]
    x_z, x_r, x_h = x.chunk(3, dim=-1)
    w_z, w_r, w_h = weights.r.chunk(3)
    zero = torch.zeros(3, device=x.device)
    b_z, b_r, b_h = weights.bias_r.chunk(3) if isinstance(weights.bias_r, Tensor) else zero.unbind()
    z = torch.sigmoid(x_z + h @ w_z.T + b_z)
    r = torch.sigmoid(x_r + h @ w_r.T + b_r)
    if call.attribute("linear_before_reset", 0):
        new = torch.tanh(x_h + r * (h @ w_h.T + b_h))
    else:
        new = torch.tanh(x_h + (r * h) @ w_h.T + b_h)
    return [(1 - z) * new + z * h]


def _rnn_cell(call: Call, x: Tensor, weights: _Weights, state: list[Tensor]) -> list[Tensor]:
    return [torch.tanh(x + state[0] @ weights.r.T + weights.bias_r)]


def recurrent(
    call: Call, cell: _Cell, w: Tensor, r: Tensor, *, states: int, peepholes: Tensor | None = None
) -> list[Tensor]:
    """Run a recurrent node with weights as LSTM, GRU and RNN have them: [directions, gates, inputs]."""
    _check(call)
    x, bias, lengths = call.need(0), call.at(3), call.at(4)
    batch_first = bool(call.attribute("layout", 0))
    x = x.transpose(0, 1) if batch_first else x
    steps, batch, hidden = x.shape[0], x.shape[1], call.attribute("hidden_size")
    every: list[Tensor] = []
    last: list[list[Tensor]] = []
    for direction in range(w.shape[0]):
        backward = call.attribute("direction", "forward") == "reverse" or direction == 1
        own = _Weights(w[direction], r[direction], None if bias is None else bias[direction],
                       None if peepholes is None else peepholes[direction])  # fmt: skip
        state = []
        for index in range(states):
            start = call.at(5 + index)
            if start is not None and batch_first:
                start = start.transpose(0, 1)
            state.append(torch.zeros(batch, hidden, device=x.device) if start is None else start[direction])
        projected = x @ own.w.T + own.bias_w
        outputs: list[Tensor] = [x.new_zeros(())] * steps
        for step in reversed(range(steps)) if backward else range(steps):
            new = cell(call, projected[step], own, state)
            if lengths is not None:
                inside = (lengths > step).reshape(-1, 1)
                new = [torch.where(inside, after, before) for after, before in zip(new, state, strict=True)]
                outputs[step] = torch.where(inside, new[0], torch.zeros_like(new[0]))
            else:
                outputs[step] = new[0]
            state = new
        every.append(torch.stack(outputs))
        last.append(state)
    y = torch.stack(every, dim=1)
    finals = [torch.stack([state[index] for state in last]) for index in range(states)]
    if batch_first:
        return [y.permute(2, 0, 1, 3), *[final.transpose(0, 1) for final in finals]]
    return [y, *finals]


def _check(call: Call) -> None:
    usual = _DEFAULTS[call.node.op_type]
    activations = call.attribute("activations")
    if activations is not None and list(activations) != usual * (len(activations) // len(usual)):
        raise NotImplementedError(f"{call.node.op_type} with other activations than {usual}")
    if call.attribute("clip") is not None:
        raise NotImplementedError(f"{call.node.op_type} with clip")


def lstm_cell() -> _Cell:
    """The cell of LSTM, for other operators that have it."""
    return _lstm_cell


OPERATORS: dict[tuple[str, str], Function] = {
    ("", "LSTM"): lambda call: recurrent(
        call, _lstm_cell, call.need(1), call.need(2), states=2, peepholes=call.at(7)
    ),
    ("", "GRU"): lambda call: recurrent(call, _gru_cell, call.need(1), call.need(2), states=1),
    ("", "RNN"): lambda call: recurrent(call, _rnn_cell, call.need(1), call.need(2), states=1),
}  # fmt: skip
"""By domain and operator."""
