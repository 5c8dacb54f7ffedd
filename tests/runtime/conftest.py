"""Small models, as text, and sessions on them."""

from __future__ import annotations

import onnx
import onnx.parser
import pytest

from onnxq.graph.files import io
from onnxq.runtime.session import open_session

HEADER = '<ir_version: 8, opset_import: ["": 17, "my.ops": 1]>\n'

MODELS = {
    # two inputs with a dynamic batch, and one scalar
    "mixed": "g (float[N,2,3] x, int64[N,S] ids, float scale) => (float[N,2,3] y) {"
    " a = Mul(x, scale) \n c = Cast<to=1>(ids) \n s = ReduceSum<keepdims=1>(c) \n y = Add(a, s) }",
    "chain": "g (float[N,4] x) => (float[N,4] y) { r = Relu(x) \n e = Exp(r) \n n = Shape(e) \n y = Neg(e) }",
    "batch2": "g (float[2,4] x) => (float[2,4] y) { y = Relu(x) }",
    "state": "g (float[batch,4] x, float[2,batch,4] h) => (float[2,batch,4] y) { y = Add(x, h) }",
    "square": "g (float[N,M] x) => (float[N,M] y) { y = MatMul(x, x) }",
    "custom": "g (float[N,4] x) => (float[N,4] y) { y = my.ops.Warp(x) }",
    "unknown": "g (float[N,4] x) => (float[N,4] y) { y = NoSuchThing(x) }",
    "sequence": "g (float[N,4] x) => (float[N,4] y) {"
    " r = Relu(x) \n q = SequenceConstruct(x, r) \n i = Constant<value_int=1>() \n y = SequenceAt(q, i) }",
    "branch": "g (float[N,4] x, bool flag) => (float[N,4] y) { r = Relu(x) \n"
    " y = If (flag) <then_branch = t () => (float[N,4] p) { inner = Neg(r) \n p = Neg(inner) },"
    " else_branch = e () => (float[N,4] q) { q = Identity(r) }> }",
    "indices": "g (float[N,M] x) => (float[K] y) { r = Relu(x) \n i = NonZero(r) \n f = Cast<to=1>(i) \n"
    " y = ReduceSum<keepdims=0>(f) }",
}


def parse(text):
    model = onnx.parser.parse_model(HEADER + text)
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used | {""}]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return model


@pytest.fixture
def make():
    """A model by name or text, as `onnxq.graph.files.io.load` gives it."""
    return lambda name: io.load(parse(MODELS.get(name, name)))


@pytest.fixture
def content(make):
    """The bytes of a model by name or text."""
    return lambda name: io.to_bytes(make(name))


@pytest.fixture
def inputs(content):
    """The inputs of a model by name or text."""
    return lambda name: open_session(content(name), threads=1).input_specs
