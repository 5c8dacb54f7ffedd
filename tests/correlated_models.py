"""Small models with correlated inputs, on which rounding weights by their inputs pays."""

from __future__ import annotations

import numpy as np
import onnx

from tests.graph.build import build

Array = np.ndarray
WIDTH = 64


def samples(count: int, seed: int = 0, width: int = WIDTH, rows: int = 8) -> list[dict[str, Array]]:
    """Feeds of (1, rows, width) whose channels are mixtures of a few, some much larger than others."""
    rng = np.random.default_rng(7)
    mixing = rng.normal(size=(width // 4, width)) * 10.0 ** rng.uniform(-1, 1, width)
    rng = np.random.default_rng([seed, count])
    found = []
    for _ in range(count):
        x = rng.normal(size=(1, rows, width // 4)) @ mixing + 0.05 * rng.normal(size=(1, rows, width))
        found.append({"x": x.astype(np.float32)})
    return found


def network(width: int = WIDTH) -> onnx.ModelProto:
    """A gated feed-forward network behind a normalization, with a residual connection and a head."""
    rng = np.random.default_rng(1)

    def weight(*shape: int) -> Array:
        return (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)

    text = (
        f"g (float[N,S,{width}] x) => (float[N,S,{width // 2}] y) {{ n = LayerNormalization (x, g, b) \n"
        " [gate] a = MatMul (n, G) \n s = Sigmoid (a) \n [up] u = MatMul (n, U) \n h = Mul (s, u) \n"
        " [down] d = MatMul (h, D) \n r = Add (x, d) \n [mix] m = MatMul (r, M) \n [shift] t = Add (m, c) \n"
        " k = Relu (t) \n [head] y = MatMul (k, H) }"
    )
    return build(
        text,
        opset=21,
        ir=10,
        g=rng.uniform(0.2, 3, width).astype(np.float32),
        b=rng.normal(size=width).astype(np.float32),
        c=rng.normal(size=2 * width).astype(np.float32),
        G=weight(width, 2 * width),
        U=weight(width, 2 * width),
        D=weight(2 * width, width),
        M=weight(width, 2 * width),
        H=weight(2 * width, width // 2),
    )
