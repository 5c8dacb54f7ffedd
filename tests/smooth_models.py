"""Small random networks of five kinds in which nothing stands out, so that SmoothQuant has nothing to even out.

A vision transformer, a ConvNeXt, an encoder like DistilBERT, and the feed-forward and attention layers of T5 and of
Gemma 2, initialised as their libraries do it (normal weights of deviation 0.02, gains of 1).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from tests.transformers import F, Maker

Array = np.ndarray[Any, Any]
WIDTH, HEADS, TOKENS = 64, 4, 16


class _Plain(Maker):
    """Weights as the libraries initialise them."""

    deviation = 0.02

    def linear(self, x: str, rows: int, columns: int, bias: bool = True) -> str:
        weight = self.generator.normal(0, self.deviation, (rows, columns)).astype(F)
        y = self("MatMul", x, self.const(weight))
        return self("Add", y, self.const(np.zeros(columns, F))) if bias else y

    def layer_norm(self, x: str, width: int) -> str:
        return self("LayerNormalization", x, self.const(np.ones(width, F)), self.const(np.zeros(width, F)), axis=-1)

    def rms(self, x: str, width: int) -> str:
        power = self("ReduceMean", self("Pow", x, self.const(F(2))), self.const(np.array([-1])))
        scaled = self("Div", x, self("Sqrt", self("Add", power, self.const(F(1e-6)))))
        return self("Mul", scaled, self.const(np.ones(width, F)))

    def attention(self, x: str, *, bias: bool = True, scale: float = 0.25, cap: float = 0.0, mask: str = "") -> str:
        size = WIDTH // HEADS
        q, k, v = (self.heads(self.linear(x, WIDTH, WIDTH, bias), HEADS, size) for _ in range(3))
        logits = self("MatMul", q, self("Transpose", k, perm=[0, 1, 3, 2]))
        logits = self("Mul", logits, self.const(F(scale))) if scale != 1.0 else logits
        if cap:
            capped = self("Tanh", self("Div", logits, self.const(F(cap))))
            logits = self("Mul", capped, self.const(F(cap)))
        logits = self("Add", logits, mask) if mask else logits
        mixed = self("MatMul", self("Softmax", logits, axis=-1), v)
        joined = self("Transpose", mixed, perm=[0, 2, 1, 3])
        return self.linear(self("Reshape", joined, self.const(np.array([0, 0, WIDTH]))), WIDTH, WIDTH, bias)


def vit(layers: int = 2) -> Any:
    """Images (N, 3, 32, 32) → (N, 10)."""
    m = _Plain(2)
    kernel = m.generator.normal(0, 0.05, (WIDTH, 3, 8, 8)).astype(F)
    x = m("Conv", "x", m.const(kernel), m.const(np.zeros(WIDTH, F)), kernel_shape=[8, 8], strides=[8, 8])
    x = m("Transpose", m("Reshape", x, m.const(np.array([0, WIDTH, TOKENS]))), perm=[0, 2, 1])
    x = m("Add", x, m.const(m.generator.normal(0, 0.02, (1, TOKENS, WIDTH)).astype(F)))
    for _ in range(layers):
        x = m("Add", x, m.attention(m.layer_norm(x, WIDTH)))
        inner = m.gelu(m.linear(m.layer_norm(x, WIDTH), WIDTH, 4 * WIDTH), "dynamo")
        x = m("Add", x, m.linear(inner, 4 * WIDTH, WIDTH))
    x = m("ReduceMean", m.layer_norm(x, WIDTH), m.const(np.array([1])), keepdims=0)
    y = m.linear(x, WIDTH, 10)
    return m.model([("x", TensorProto.FLOAT, ["N", 3, 32, 32])], y, ["N", 10], 18)


def convnext(blocks: int = 3) -> Any:
    """Images (N, 3, 32, 32) → (N, 10)."""
    m = _Plain(3)
    kernel = m.generator.normal(0, 0.05, (WIDTH, 3, 4, 4)).astype(F)
    x = m("Conv", "x", m.const(kernel), m.const(np.zeros(WIDTH, F)), kernel_shape=[4, 4], strides=[4, 4])
    for _ in range(blocks):
        depth = m.generator.normal(0, 0.02, (WIDTH, 1, 7, 7)).astype(F)
        settings = {"kernel_shape": [7, 7], "pads": [3, 3, 3, 3], "group": WIDTH}
        y = m("Conv", x, m.const(depth), m.const(np.zeros(WIDTH, F)), **settings)
        y = m.layer_norm(m("Transpose", y, perm=[0, 2, 3, 1]), WIDTH)
        y = m.linear(m.gelu(m.linear(y, WIDTH, 4 * WIDTH), "dynamo"), 4 * WIDTH, WIDTH)
        y = m("Mul", y, m.const(np.full(WIDTH, 1.0, F)))
        x = m("Add", x, m("Transpose", y, perm=[0, 3, 1, 2]))
    x = m.layer_norm(m("ReduceMean", x, m.const(np.array([2, 3])), keepdims=0), WIDTH)
    y = m("Gemm", x, m.const(m.generator.normal(0, 0.02, (10, WIDTH)).astype(F)), m.const(np.zeros(10, F)), transB=1)
    return m.model([("x", TensorProto.FLOAT, ["N", 3, 32, 32])], y, ["N", 10], 18)


def _tokens(m: _Plain, deviation: float) -> str:
    return m("Gather", m.const(m.generator.normal(0, deviation, (50, WIDTH)).astype(F)), "ids")


_IDS = [("ids", TensorProto.INT64, ["N", TOKENS])]


def distilbert(layers: int = 2) -> Any:
    """Ids (N, 16) → (N, 16, 64)."""
    m = _Plain(4)
    x = m("Add", _tokens(m, 0.02), m.const(m.generator.normal(0, 0.02, (1, TOKENS, WIDTH)).astype(F)))
    x = m.layer_norm(x, WIDTH)
    for _ in range(layers):
        x = m.layer_norm(m("Add", m.attention(x), x), WIDTH)
        inner = m.gelu(m.linear(x, WIDTH, 4 * WIDTH), "torch")
        x = m.layer_norm(m("Add", m.linear(inner, 4 * WIDTH, WIDTH), x), WIDTH)
    return m.model(_IDS, x, ["N", TOKENS, WIDTH], 18)


def t5(layers: int = 2) -> Any:
    """Ids (N, 16) → (N, 16, 64): norms before layers, relative positions, ReLU."""
    m = _Plain(5)
    m.deviation = WIDTH**-0.5
    x = _tokens(m, 1.0)
    bias = m.const(m.generator.normal(0, 0.1, (1, HEADS, TOKENS, TOKENS)).astype(F))
    for _ in range(layers):
        x = m("Add", x, m.attention(m.rms(x, WIDTH), bias=False, scale=0.25, mask=bias))
        inner = m("Relu", m.linear(m.rms(x, WIDTH), WIDTH, 4 * WIDTH, bias=False))
        x = m("Add", x, m.linear(inner, 4 * WIDTH, WIDTH, bias=False))
    return m.model(_IDS, m.rms(x, WIDTH), ["N", TOKENS, WIDTH], 18)


def gemma2(layers: int = 2) -> Any:
    """Ids (N, 16) → (N, 16, 64): norms before and behind layers, soft caps, gated tanh-GELU."""
    m = _Plain(6)
    x = m("Mul", _tokens(m, 0.02), m.const(F(WIDTH**0.5)))
    causal = m.const(np.where(np.tri(TOKENS, dtype=bool), 0, np.finfo(F).min).astype(F))
    for _ in range(layers):
        mixed = m.attention(m.rms(x, WIDTH), bias=False, cap=50.0, mask=causal)
        x = m("Add", x, m.rms(mixed, WIDTH))
        n = m.rms(x, WIDTH)
        gate = m.linear(n, WIDTH, 4 * WIDTH, bias=False)
        cube = m("Mul", m("Mul", m("Mul", gate, gate), gate), m.const(F(0.044715)))
        tanh = m("Tanh", m("Mul", m("Add", gate, cube), m.const(F(0.7978846))))
        gelu = m("Mul", m("Mul", gate, m("Add", tanh, m.const(F(1)))), m.const(F(0.5)))
        inner = m("Mul", gelu, m.linear(n, WIDTH, 4 * WIDTH, bias=False))
        x = m("Add", x, m.rms(m.linear(inner, 4 * WIDTH, WIDTH, bias=False), WIDTH))
    return m.model(_IDS, m.rms(x, WIDTH), ["N", TOKENS, WIDTH], 18)


KINDS = {"vit": vit, "convnext": convnext, "distilbert": distilbert, "t5": t5, "gemma2": gemma2}


def feeds(model: Any, count: int = 16, seed: int = 0) -> list[dict[str, Array]]:
    """Samples of one image, or of one sentence."""
    generator = np.random.default_rng(seed)
    if model.graph.input[0].name == "x":
        return [{"x": generator.normal(size=(1, 3, 32, 32)).astype(F)} for _ in range(count)]
    return [{"ids": generator.integers(0, 50, (1, TOKENS))} for _ in range(count)]
