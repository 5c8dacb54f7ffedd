"""Small transformers in the spellings of several exporters, built node by node, with weights that make sense."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
F = np.float32


class Maker:
    """Collects nodes and constants."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.generator = np.random.default_rng(seed)

    def const(self, array: Any, name: str = "") -> str:
        name = name or f"c{len(self.constants)}"
        self.constants[name] = numpy_helper.from_array(np.asarray(array), name)
        return name

    def __call__(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def linear(self, x: str, rows: int, columns: int, bias: bool = True) -> str:
        y = self("MatMul", x, self.const((self.generator.normal(size=(rows, columns)) / np.sqrt(rows)).astype(F)))
        return self("Add", y, self.const(self.generator.normal(0, 0.1, columns).astype(F))) if bias else y

    def mean(self, x: str, opset: int) -> str:
        return self("ReduceMean", x, self.const(np.array([-1]))) if opset >= 18 else self("ReduceMean", x, axes=[-1])

    def norm(self, x: str, width: int, style: str, opset: int) -> str:
        gain = self.const((1 + 0.2 * self.generator.normal(size=width)).astype(F))
        if style == "dynamo":
            return self("LayerNormalization", x, gain, self.const(np.zeros(width, F)), axis=-1)
        d = self("Sub", x, self.mean(x, opset))
        v = self.mean(self("Pow", d, self.const(F(2))), opset)
        n = self("Div", d, self("Sqrt", self("Add", v, self.const(F(1e-5)))))
        return self("Add", self("Mul", n, gain), self.const(np.zeros(width, F)))

    def rms_norm(self, x: str, width: int, style: str, opset: int) -> str:
        gain = self.const((1 + 0.2 * self.generator.normal(size=width)).astype(F))
        root = self("Sqrt", self("Add", self.mean(self("Pow", x, self.const(F(2))), opset), self.const(F(1e-5))))
        inverse = self("Reciprocal", root) if style == "dynamo" else self("Div", self.const(F(1)), root)
        return self("Mul", gain, self("Mul", x, inverse))

    def gelu(self, x: str, style: str) -> str:
        gate = self("Add", self("Erf", self("Div", x, self.const(F(np.sqrt(2))))), self.const(F(1)))
        if style == "dynamo":
            return self("Mul", x, self("Mul", self.const(F(0.5)), gate))
        return self("Mul", self("Mul", x, gate), self.const(F(0.5)))

    def heads(self, x: str, count: int, size: int) -> str:
        shaped = self("Reshape", x, self.const(np.array([0, 0, count, size])))
        return self("Transpose", shaped, perm=[0, 2, 1, 3])

    def model(self, inputs: list[tuple[str, int, list[Any]]], output: str, shape: list[Any], opset: int) -> Any:
        graph = helper.make_graph(
            self.nodes, "g", [helper.make_tensor_value_info(*entry) for entry in inputs],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)], list(self.constants.values()),
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


IDS = [("input_ids", TensorProto.INT64, ["N", "S"]), ("attention_mask", TensorProto.INT64, ["N", "S"])]


def encoder(style: str = "torch", mask: float = -10000.0, way: str = "add", layers: int = 1, width: int = 32) -> Any:
    """A BERT: ids (N, S) and attention_mask (N, S) → (N, S, width).

    Args:
        style: "torch" for decomposed norms at operator set 13, "dynamo" for the operators of 18.
        mask: what masked logits get.
        way: "add" for x + (1 − m) · mask; "where" for Where(m, x, mask).
        layers: how many.
        width: of the residual stream; heads have 16.
    """
    m, opset, heads = Maker(), 13 if style == "torch" else 18, width // 16
    table = m.generator.normal(size=(50, width)).astype(F)
    table[0] *= 40  # the padding token: far from all others
    x = m.norm(m("Gather", m.const(table, "words"), "input_ids"), width, style, opset) if layers < 1 else ""
    x = x or m("Gather", m.const(table, "words"), "input_ids")
    wide = m("Unsqueeze", "attention_mask", m.const(np.array([1, 2])))
    if way == "add":
        less = m("Sub", m.const(F(1)), m("Cast", wide, to=TensorProto.FLOAT))
        added = m("Mul", less, m.const(F(mask)))
    seen = m("Cast", wide, to=TensorProto.BOOL)
    for _ in range(layers):
        q, k, v = (m.heads(m.linear(x, width, width), heads, 16) for _ in range(3))
        logits = m("Div", m("MatMul", q, m("Transpose", k, perm=[0, 1, 3, 2])), m.const(F(4)))
        logits = m("Add", logits, added) if way == "add" else m("Where", seen, logits, m.const(F(mask)))
        read = m("Transpose", m("MatMul", m("Softmax", logits, axis=-1), v), perm=[0, 2, 1, 3])
        joined = m("Reshape", read, m.const(np.array([0, 0, width])))
        x = m.norm(m("Add", m.linear(joined, width, width), x), width, style, opset)
        inner = m.gelu(m.linear(x, width, 4 * width), style)
        x = m.norm(m("Add", m.linear(inner, 4 * width, width), x), width, style, opset)
    return m.model(IDS, x, ["N", "S", width], opset)


def decoder(style: str = "torch", width: int = 32, length: int = 12) -> Any:
    """A LLaMA: ids (N, length) → (N, length, width); RMSNorm, rotary embeddings, one key head for two, SiLU gates."""
    m, opset = Maker(1), 13 if style == "torch" else 18
    x = m("Gather", m.const(m.generator.normal(size=(50, width)).astype(F), "words"), "input_ids")
    angle = np.arange(length)[:, None] / 100 ** (np.arange(0, 16, 2) / 16)
    cos, sin = (m.const(f(np.concatenate([angle, angle], 1)).astype(F)) for f in (np.cos, np.sin))
    axis, zero, half, end = (m.const(np.array([v])) for v in (-1, 0, 8, 16))
    n = m.rms_norm(x, width, style, opset)

    def turned(value: str) -> str:
        first, second = m("Slice", value, zero, half, axis), m("Slice", value, half, end, axis)
        return m("Add", m("Mul", value, cos), m("Mul", m("Concat", m("Neg", second), first, axis=-1), sin))

    def repeated(value: str) -> str:
        wide = m("Expand", m("Unsqueeze", value, m.const(np.array([2]))), m.const(np.array([1, 1, 2, 1, 1])))
        return m("Reshape", wide, m.const(np.array([0, 2, length, 16])))

    q = turned(m.heads(m.linear(n, width, 32, bias=False), 2, 16))
    k = repeated(turned(m.heads(m.linear(n, width, 16, bias=False), 1, 16)))
    v = repeated(m.heads(m.linear(n, width, 16, bias=False), 1, 16))
    logits = m("Mul", m("MatMul", q, m("Transpose", k, perm=[0, 1, 3, 2])), m.const(F(0.25)))
    causal = np.where(np.tri(length, dtype=bool), 0, np.finfo(F).min).astype(F)
    p = m("Softmax", m("Add", logits, m.const(causal)), axis=-1)
    joined = m("Reshape", m("Transpose", m("MatMul", p, v), perm=[0, 2, 1, 3]), m.const(np.array([0, 0, 32])))
    x = m("Add", x, m.linear(joined, 32, width, bias=False))
    n = m.rms_norm(x, width, style, opset)
    gate = m.linear(n, width, 64, bias=False)
    up = m("Mul", m("Mul", gate, m("Sigmoid", gate)), m.linear(n, width, 64, bias=False))
    x = m("Add", x, m.linear(up, 64, width, bias=False))
    return m.model([("input_ids", TensorProto.INT64, ["N", length])], x, ["N", length, width], opset)


def sentences(count: int = 12, seed: int = 0, length: int | None = None, padded: bool = True) -> list[dict[str, Array]]:
    """Feeds of two sentences of several lengths; token 0 is padding."""
    generator = np.random.default_rng(seed)
    feeds = []
    for i in range(count):
        size = length or 6 + i % 5
        ids, mask = generator.integers(1, 50, (2, size)), np.ones((2, size), np.int64)
        if padded:
            mask[1, size - 1 - i % 4 :] = 0
        feeds.append({"input_ids": ids * mask, "attention_mask": mask})
    return feeds
