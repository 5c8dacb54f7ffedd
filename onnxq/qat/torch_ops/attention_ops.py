"""Attention in one operator, with the caches that it will have.

References:
    ONNX Runtime, ContribOperators.md, com.microsoft.GroupQueryAttention; Liu et al., LLM-QAT, arXiv:2305.17888, section
    2.2, for caches that are fake-quantized in training.
"""

from __future__ import annotations

import math

import torch

from onnxq.qat.torch_ops.call import Call, Function, Tensor
from onnxq.qat.torch_ops.integers import round_through

_KEY_SCALE, _VALUE_SCALE, _SINK = 12, 13, 11


def _grouped_attention(call: Call) -> list[Tensor | None]:
    """Output, keys and values; these are what a cache of integers stands for where the node has scales."""
    if call.at(_SINK) is not None or call.attribute("smooth_softmax", 0):
        raise NotImplementedError("GroupQueryAttention with a sink")
    heads, groups = call.attribute("num_heads"), call.attribute("kv_num_heads")
    query, key, value = call.need(0), call.at(1), call.at(2)
    if key is None or value is None:
        size = query.shape[-1] // (heads + 2 * groups)
        query, key, value = query.split([heads * size, groups * size, groups * size], dim=-1)
    query, key, value = (_apart(x, count) for x, count in ((query, heads), (key, groups), (value, groups)))
    older_key, older_value = call.at(3), call.at(4)
    past = 0 if older_key is None else older_key.shape[2]
    if call.attribute("do_rotary", 0):
        query, key = (_turned(call, x, past) for x in (query, key))
    if past and older_key is not None and older_value is not None:
        key, value = torch.cat([older_key, key], dim=2), torch.cat([older_value, value], dim=2)
    bits = call.attribute("kv_cache_bit_width", 0)
    key, value = _stored(key, call.at(_KEY_SCALE), bits), _stored(value, call.at(_VALUE_SCALE), bits)
    scale = call.attribute("scale", 0.0) or 1.0 / math.sqrt(query.shape[-1])
    scores = query @ key.repeat_interleave(heads // groups, dim=1).mT * scale
    cap = call.attribute("softcap", 0.0)
    scores = cap * torch.tanh(scores / cap) if cap else scores
    bias = call.at(10)
    scores = scores if bias is None else scores + bias[..., : scores.shape[-1]]
    scores = scores.masked_fill(_hidden(scores, past, call.attribute("local_window_size", -1)), -math.inf)
    mixed = torch.softmax(scores, dim=-1) @ value.repeat_interleave(heads // groups, dim=1)
    return [mixed.transpose(1, 2).flatten(2), key, value]


def _apart(x: Tensor, heads: int) -> Tensor:
    """(batch, heads, tokens, size) of (batch, tokens, heads · size)."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _turned(call: Call, x: Tensor, past: int) -> Tensor:
    """Rotary positions, of the first channels of a head where the tables are for fewer."""
    cos, sin, positions = call.need(7), call.need(8), call.at(9)
    if positions is None:
        positions = torch.arange(past, past + x.shape[2], device=x.device)[None]
    cos, sin = cos[positions.long()][:, None], sin[positions.long()][:, None]
    pairs = cos.shape[-1]
    turned, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    if call.attribute("rotary_interleaved", 0):
        one, other = turned[..., 0::2], turned[..., 1::2]
        found = torch.stack([one * cos - other * sin, other * cos + one * sin], dim=-1).flatten(-2)
    else:
        one, other = turned[..., :pairs], turned[..., pairs:]
        found = torch.cat([one * cos - other * sin, other * cos + one * sin], dim=-1)
    return torch.cat([found, rest], dim=-1)


def _stored(cache: Tensor, scale: Tensor | None, bits: int) -> Tensor:
    """What a cache of integers stands for; the gradient passes where the grid reaches."""
    if scale is None:
        return cache
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return round_through((cache / scale).clamp(low, high)) * scale


def _hidden(scores: Tensor, past: int, window: int) -> Tensor:
    """(queries, keys), True where a key is later than the query, or further back than the window."""
    queries, keys = (torch.arange(length, device=scores.device) for length in scores.shape[-2:])
    distance = (queries[:, None] + past) - keys[None]
    hidden = distance < 0
    return hidden if window <= 0 else hidden | (distance >= window)


OPERATORS: dict[tuple[str, str], Function] = {("com.microsoft", "GroupQueryAttention"): _grouped_attention}
"""By domain and operator."""
