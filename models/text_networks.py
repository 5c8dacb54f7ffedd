"""The language networks, in torch. What each is for a quantizer: README.md.

Everything is written from plain operators, so that the exported graphs have the chains that exports of larger models
have: the mean of squares of RMSNorm, rotary positions, shared keys and values, masks added to scores.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MASKED = torch.finfo(torch.float32).min


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + ε) · weight over the last axis (Zhang and Sennrich, 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) -> (…, width)."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions (Su et al., 2021): (n, heads, length, d) with tables (length, d)."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


class RotaryAttention(nn.Module):
    """Causal attention; a head of keys and values serves ``heads / shared`` heads of queries (Ainslie et al., 2023)."""

    def __init__(self, width: int, heads: int, shared: int) -> None:
        super().__init__()
        self.heads, self.shared, self.size = heads, shared, width // heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, shared * self.size, bias=False)
        self.v_proj = nn.Linear(width, shared * self.size, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor) -> Tensor:
        """(n, length, width) -> (n, length, width); mask (length, length) is added to the scores."""
        n, length, width = x.shape
        q = self.q_proj(x).view(n, length, self.heads, self.size).transpose(1, 2)
        k = self.k_proj(x).view(n, length, self.shared, self.size).transpose(1, 2)
        v = self.v_proj(x).view(n, length, self.shared, self.size).transpose(1, 2)
        q, k = rotate(q, cosine, sine), rotate(k, cosine, sine)
        each = self.heads // self.shared
        k = k[:, :, None].expand(n, self.shared, each, length, self.size).reshape(n, self.heads, length, self.size)
        v = v[:, :, None].expand(n, self.shared, each, length, self.size).reshape(n, self.heads, length, self.size)
        scores = q @ k.transpose(2, 3) / math.sqrt(self.size) + mask
        y = torch.softmax(scores, dim=-1) @ v
        return self.o_proj(y.transpose(1, 2).reshape(n, length, width))


class GatedMLP(nn.Module):
    """down(SiLU(gate(x)) · up(x)) (Shazeer, 2020)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) -> (…, width)."""
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Attention and MLP, each after its norm and added to the stream."""

    def __init__(self, width: int, heads: int, shared: int, inner: int) -> None:
        super().__init__()
        self.input_norm = RMSNorm(width)
        self.attention = RotaryAttention(width, heads, shared)
        self.mlp_norm = RMSNorm(width)
        self.mlp = GatedMLP(width, inner)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor) -> Tensor:
        """(n, length, width) -> (n, length, width)."""
        x = x + self.dropout(self.attention(self.input_norm(x), cosine, sine, mask))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class Decoder(nn.Module):
    """A decoder-only language model of the LLaMA kind (Touvron et al., 2023), head and embedding not tied."""

    def __init__(self, pieces: int, width: int, layers: int, heads: int, shared: int, inner: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(pieces, width)
        self.layers = nn.ModuleList(DecoderLayer(width, heads, shared, inner) for _ in range(layers))
        self.norm = RMSNorm(width)
        self.lm_head = nn.Linear(width, pieces, bias=False)
        size = width // heads
        self.register_buffer("frequencies", 10000.0 ** (-torch.arange(0, size, 2).float() / size), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if last else 0.02)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(n, length) int64 -> logits of the next piece (n, length, pieces)."""
        positions = torch.arange(input_ids.shape[1])
        angles = positions[:, None].float() * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)
        later = positions[None, :] > positions[:, None]
        mask = torch.where(later, MASKED, 0.0)
        x = self.embedding(input_ids)
        cosine, sine = angles.cos(), angles.sin()
        for layer in self.layers:
            x = layer(x, cosine, sine, mask)
        return self.lm_head(self.norm(x))


def tiny_lm(pieces: int) -> Decoder:
    """Five layers of width 128, four heads on two of keys and values, a gated MLP of 384."""
    return Decoder(pieces, width=128, layers=5, heads=4, shared=2, inner=384)


class EncoderLayer(nn.Module):
    """Attention and MLP, each added to the stream and followed by its norm, as in BERT (Devlin et al., 2019)."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(n, length, width) -> (n, length, width); mask (n, 1, 1, length) is added to the scores."""
        n, length, width = x.shape
        q = self.query(x).view(n, length, self.heads, self.size).transpose(1, 2)
        k = self.key(x).view(n, length, self.heads, self.size).transpose(1, 2)
        v = self.value(x).view(n, length, self.heads, self.size).transpose(1, 2)
        scores = q @ k.transpose(2, 3) / math.sqrt(self.size) + mask
        y = (torch.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(n, length, width)
        x = self.attention_norm(x + self.dropout(self.output(y)))
        return self.mlp_norm(x + self.dropout(self.down(nn.functional.gelu(self.up(x)))))


class Encoder(nn.Module):
    """Learned positions, encoder layers, the mean over what is not padding and one linear layer."""

    def __init__(
        self, pieces: int, longest: int, width: int, layers: int, heads: int, inner: int, classes: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(pieces, width)
        self.position = nn.Embedding(longest, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.2)
        self.layers = nn.ModuleList(EncoderLayer(width, heads, inner) for _ in range(layers))
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Both (n, length) int64, the mask 1 or, at padding, 0 -> logits (n, classes)."""
        x = self.embedding(input_ids) + self.position(torch.arange(input_ids.shape[1]))
        x = self.dropout(self.norm(x))
        kept = attention_mask.float()
        mask = ((1.0 - kept) * MASKED)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        weights = kept[:, :, None]
        return self.head(self.dropout((x * weights).sum(1) / weights.sum(1)))


class Recurrent(nn.Module):
    """A language model of LSTM layers."""

    def __init__(self, pieces: int, embedding: int, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(pieces, embedding)
        self.lstm = nn.LSTM(embedding, width, layers, batch_first=True)
        self.head = nn.Linear(width, pieces)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(n, length) int64 -> logits of the next piece (n, length, pieces)."""
        return self.head(self.lstm(self.embedding(input_ids))[0])


def text_encoder(pieces: int, longest: int, classes: int) -> Encoder:
    """Three layers of width 96, four heads, an MLP of 384."""
    return Encoder(pieces, longest, width=96, layers=3, heads=4, inner=384, classes=classes)


def text_lstm(pieces: int) -> Recurrent:
    """Two layers of width 128 on an embedding of 32."""
    return Recurrent(pieces, embedding=32, width=128, layers=2)
