"""A BERT-shaped encoder with random weights in the spelling of torch's TorchScript exporter, and inputs for it.

Norms, Gelu and the shapes of heads are written out operator by operator, as that exporter did. Weights are drawn so
that activations keep a sane size; accuracy means nothing here, so agreement with the float model takes its place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.feeds import Feed
from benchmarks.networks import Builder

OPSET = 14
LAYERS, WIDTH, HEADS, VOCABULARY, POSITIONS = 6, 384, 12, 1000, 512
MASKED = -10000.0
TOKENS = 128


class _Encoder(Builder):
    """Adds what encoders are made of; a value stands for (batch, length, width)."""

    def whole(self, name: str, values: int | list[int]) -> str:
        """Append an int64 initializer."""
        self.initializers.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name

    def linear(self, x: str, name: str, columns: int, rows: int = WIDTH, gain: float = 1.0) -> str:
        """MatMul and Add; columns differ in size by a factor of a few, as in trained models."""
        size = self.rng.uniform(0.5, 1.4, columns)
        weight = self.rng.normal(0, gain / np.sqrt(rows), (rows, columns)) * size
        product = self.node("MatMul", [x, self.constant(f"{name}.weight", weight)], f"{name}/MatMul")
        bias = self.constant(f"{name}.bias", self.rng.normal(0, 0.05, columns))
        return self.node("Add", [bias, product], f"{name}/Add")

    def norm(self, x: str, name: str) -> str:
        """LayerNormalization, written out."""
        mean = self.node("ReduceMean", [x], f"{name}/ReduceMean", axes=[-1])
        centred = self.node("Sub", [x, mean], f"{name}/Sub")
        square = self.node("Pow", [centred, "two"], f"{name}/Pow")
        variance = self.node("ReduceMean", [square], f"{name}/ReduceMean_1", axes=[-1])
        root = self.node("Sqrt", [self.node("Add", [variance, "epsilon"], f"{name}/Add")], f"{name}/Sqrt")
        scaled = self.node("Div", [centred, root], f"{name}/Div")
        gain = self.constant(f"{name}.weight", 1 + 0.2 * self.rng.normal(size=WIDTH))
        bias = self.constant(f"{name}.bias", self.rng.normal(0, 0.1, WIDTH))
        return self.node("Add", [self.node("Mul", [scaled, gain], f"{name}/Mul"), bias], f"{name}/Add_1")

    def gelu(self, x: str, name: str) -> str:
        """Gelu by Erf, written out."""
        part = self.node("Erf", [self.node("Div", [x, "root of two"], f"{name}/Div")], f"{name}/Erf")
        product = self.node("Mul", [x, self.node("Add", [part, "one"], f"{name}/Add")], f"{name}/Mul")
        return self.node("Mul", [product, "half"], f"{name}/Mul_1")

    def shaped(self, x: str, name: str, tail: list[str]) -> str:
        """Reshape to (batch, length, …): the two come from Shape, as traced code takes them."""
        sizes = []
        for axis in ("zero", "one as index"):
            shape = self.node("Shape", [x], f"{name}/Shape_{axis[0]}")
            size = self.node("Gather", [shape, axis], f"{name}/Gather_{axis[0]}", axis=0)
            sizes.append(self.node("Unsqueeze", [size, "first axis"], f"{name}/Unsqueeze_{axis[0]}"))
        target = self.node("Concat", [*sizes, *tail], f"{name}/Concat", axis=0)
        return self.node("Reshape", [x, target], f"{name}/Reshape")

    def heads(self, x: str, name: str, perm: list[int]) -> str:
        """(batch, length, width) → heads, in the order of ``perm``."""
        return self.node("Transpose", [self.shaped(x, name, ["heads", "size of head"])], f"{name}/Transpose", perm=perm)

    def layer(self, x: str, name: str, added: str) -> str:
        """Attention and MLP, each with its residual sum and norm behind it."""
        attention = f"{name}/attention"
        query = self.heads(self.linear(x, f"{attention}/query", WIDTH), f"{attention}/query_heads", [0, 2, 1, 3])
        key = self.heads(self.linear(x, f"{attention}/key", WIDTH), f"{attention}/key_heads", [0, 2, 3, 1])
        value = self.heads(self.linear(x, f"{attention}/value", WIDTH), f"{attention}/value_heads", [0, 2, 1, 3])
        logits = self.node("MatMul", [query, key], f"{attention}/MatMul")
        logits = self.node("Div", [logits, "root of size"], f"{attention}/Div")
        logits = self.node("Add", [logits, added], f"{attention}/Add")
        chances = self.node("Softmax", [logits], f"{attention}/Softmax", axis=-1)
        read = self.node("MatMul", [chances, value], f"{attention}/MatMul_1")
        read = self.node("Transpose", [read], f"{attention}/Transpose", perm=[0, 2, 1, 3])
        joined = self.shaped(read, f"{attention}/joined", ["width"])
        y = self.linear(joined, f"{attention}/output", WIDTH)
        x = self.norm(self.node("Add", [y, x], f"{attention}/output/Add_1"), f"{attention}/output/LayerNorm")
        inner = self.gelu(self.linear(x, f"{name}/intermediate", 4 * WIDTH, gain=1.5), f"{name}/intermediate/gelu")
        y = self.linear(inner, f"{name}/output", WIDTH, rows=4 * WIDTH)
        return self.norm(self.node("Add", [y, x], f"{name}/output/Add_1"), f"{name}/output/LayerNorm")


def encoder(seed: int = 0, layers: int = LAYERS) -> onnx.ModelProto:
    """BERT of width 384 with 12 heads: ``input_ids`` and ``attention_mask`` (batch, length) → (batch, length, 384)."""
    b = _Encoder(seed)
    numbers = {"one": 1.0, "two": 2.0, "half": 0.5, "epsilon": 1e-12, "masked": MASKED, "root of two": np.sqrt(2.0)}
    for name, number in {**numbers, "root of size": np.sqrt(WIDTH / HEADS)}.items():
        b.constant(name, np.array(number))
    for name, whole in {"zero": 0, "one as index": 1}.items():
        b.whole(name, whole)
    for name, wholes in {"first axis": [0], "end": [1], "mask axes": [1, 2]}.items():
        b.whole(name, wholes)
    for name, count in {"heads": HEADS, "size of head": WIDTH // HEADS, "width": WIDTH}.items():
        b.whole(name, [count])
    words = b.constant("embeddings.words", b.rng.normal(size=(VOCABULARY, WIDTH)))
    places = b.constant("embeddings.positions", 0.3 * b.rng.normal(size=(POSITIONS, WIDTH)))
    x = b.node("Gather", [words, "input_ids"], "/embeddings/words/Gather", axis=0)
    b.whole("all positions", np.arange(POSITIONS)[None].tolist())
    shape = b.node("Shape", ["input_ids"], "/embeddings/Shape")
    length = b.node("Gather", [shape, "one as index"], "/embeddings/Gather", axis=0)
    length = b.node("Unsqueeze", [length, "first axis"], "/embeddings/Unsqueeze")
    ids = b.node("Slice", ["all positions", "first axis", length, "end"], "/embeddings/Slice")
    place = b.node("Gather", [places, ids], "/embeddings/positions/Gather", axis=0)
    x = b.norm(b.node("Add", [x, place], "/embeddings/Add"), "/embeddings/LayerNorm")
    wide = b.node("Unsqueeze", ["attention_mask", "mask axes"], "/mask/Unsqueeze")
    wide = b.node("Cast", [wide], "/mask/Cast", to=TensorProto.FLOAT)
    added = b.node("Mul", [b.node("Sub", ["one", wide], "/mask/Sub"), "masked"], "/mask/Mul")
    for number in range(layers):
        x = b.layer(x, f"/encoder/layer.{number}", added)
    b.nodes.append(helper.make_node("Identity", [x], ["last_hidden_state"], name="/Identity"))
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "length", WIDTH])
    graph = helper.make_graph(b.nodes, "encoder", inputs, [output], b.initializers)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="benchmarks", ir_version=8
    )


def token_feeds(count: int, seed: int, tokens: int = TOKENS) -> list[Feed]:
    """Feeds of batch 1 without padding; a few words are frequent, as in texts."""
    rng = np.random.default_rng(seed)
    chances: Any = 1 / np.arange(1, VOCABULARY + 1)
    chances /= chances.sum()
    mask = np.ones((1, tokens), np.int64)
    return [{"input_ids": rng.choice(VOCABULARY, (1, tokens), p=chances), "attention_mask": mask} for _ in range(count)]
