"""What a model message is refused for, and that what the runtime loads passes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

import onnxq
from onnxq.errors import ModelError
from onnxq.graph.files import io
from onnxq.graph.files.endless import nesting
from onnxq.graph.files.sound import sound
from tests import mutations
from tests.graph.build import build, weights

LINE = "g (float[N,16] x) => (float[N,16] y) { a = MatMul (x, w) b = Relu (a) c = Add (b, x) y = MatMul (c, v) }"


def line() -> onnx.ModelProto:
    return build(LINE, w=weights(16, 16), v=weights(16, 16, seed=1))


def shuffled(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    random.Random(seed).shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


@pytest.mark.parametrize("make", [*mutations.BASES, line])
def test_good_models_pass_as_they_are(make: object) -> None:
    assert callable(make)
    model = make()
    assert sound(model, "model") is model


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", [mutations.attention, mutations.branches, line])
def test_an_unsorted_model_is_sorted_and_quantized(make: object, seed: int) -> None:
    assert callable(make)
    model = shuffled(make(), seed)
    before = model.SerializeToString()
    onnxruntime.InferenceSession(before)  # which sorts it too
    result = onnxq.quantize(model, preset="w8", include=["*"], benchmark=False)
    assert result.model is not None
    onnx.checker.check_model(result.model)
    assert model.SerializeToString() == before
    again = sound(sound(model, "model"), "model")
    assert sound(again, "model") is again


def test_what_a_body_reads_from_outside_comes_first() -> None:
    model = mutations.branches()
    late = onnx.NodeProto.FromString(helper.make_node("Identity", ["w"], ["u"], name="late").SerializeToString())
    model.graph.node.append(late)
    model.graph.node[2].attribute[0].g.node[0].input[0] = "u"  # the first branch of the If
    ordered = [node.name or node.op_type for node in sound(model, "model").graph.node]
    assert ordered.index("late") < ordered.index("If")
    assert [name for name in ordered if name != "late"] == [n.name or n.op_type for n in model.graph.node][:-1]


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "b"


def twice(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = "a"
    model.graph.node[2].input[0] = "a"


def unknown(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "nowhere"


def no_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "nowhere"


def untyped(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute.add(name="axis")


def other_type(model: onnx.ModelProto) -> None:
    model.graph.node[1].op_type = "Softmax"
    model.graph.node[1].attribute.append(helper.make_attribute("axis", 1.5))


def two_values(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute.append(helper.make_attribute("axis", 1))
    model.graph.node[1].attribute[0].s = b"text"


def too_few(model: onnx.ModelProto) -> None:
    del model.graph.node[2].input[1]


def two_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(model.graph.input[0])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cycle, "MatMul that writes 'a' needs its own result"),
        (twice, "'a' is written twice, the second time by Relu that writes 'a'"),
        (unknown, "Relu that writes 'b' reads 'nowhere', which nothing writes"),
        (no_output, "output 'nowhere' is written by nothing"),
        (untyped, "attribute 'axis' of Relu that writes 'b' has no type"),
        (other_type, "attribute 'axis' of Softmax that writes 'b' is a float, the operator takes an int"),
        (two_values, "says that it is an int and holds something else"),
        (too_few, "Add that writes 'c' has 1 inputs, and takes at least 2"),
        (two_inputs, "value 'x' is twice among the inputs"),
    ],
)
def test_damage_is_said_with_its_place(damage: object, said: str) -> None:
    assert callable(damage)
    model = line()
    damage(model)
    with pytest.raises(ModelError, match=said):
        io.load(model)


def test_a_function_that_calls_itself() -> None:
    model = mutations.functions()
    model.functions[-1].node[0].domain, model.functions[-1].node[0].op_type = "my", "F0"
    with pytest.raises(ModelError, match="calls itself"):
        io.load(model)


@pytest.mark.parametrize("trips", [0, 2, 1 << 20])
def test_a_loop_that_ends_passes(trips: int) -> None:
    io.load(mutations.turns(trips))


def test_a_loop_that_ends_itself_passes() -> None:
    text = """g (float[N,16] x) => (float[N,16] y) {
        y = Loop (trips, yes, x) <body = l (int64 i, bool k, float[N,16] a) => (bool k2, float[N,16] a2)
            { k2 = Less (i, most) a2 = MatMul (a, w) }> }"""
    most = np.array(2, np.int64)
    io.load(build(text, w=weights(16, 16), trips=np.array(1 << 62, np.int64), yes=np.array(True), most=most))


def test_bodies_too_deep_for_protobuf_are_called_that(tmp_path: Path) -> None:
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["o"])], "g", [], [])
    content = inner.SerializeToString()

    def field(number: int, payload: bytes) -> bytes:
        length, size = len(payload), b""
        while length > 127:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + payload

    for _ in range(90):
        content = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, content)))
    path = tmp_path / "deep.onnx"
    path.write_bytes(field(7, content))
    assert nesting(field(7, content)) == 90
    with pytest.raises(ModelError, match=r"lie more than 30 deep .*at least 90"):
        io.load(path)


def test_nesting_survives_any_bytes() -> None:
    chance = random.Random(0)
    for size in range(0, 400, 7):
        assert nesting(chance.randbytes(size)) >= 0
