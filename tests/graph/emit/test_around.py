"""What emitters do around the operators: subgraphs, shared constants, idle nodes, names and shapes of outputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.core.error_measures import sqnr_db
from onnxq.graph import walk
from onnxq.graph.emit.qdq import emit_qdq
from onnxq.graph.emit.qoperator import emit_qoperator
from onnxq.graph.types import Model
from tests.graph.build import Array, build, run, weights
from tests.plan.planning import plan_of
from tests.runtime_version import needs_runtime

EMITTERS = {"qdq": emit_qdq, "qoperator": emit_qoperator}
IMAGE = "g (float[N,8,6,6] x) => (float[A,B,C,D] y)"


@pytest.fixture(params=EMITTERS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def emitted(proto: onnx.ModelProto, form: str, **options: object) -> Model:
    """Rewritten as planned, without a session that would open the result."""
    planned = plan_of(proto, **options)  # type: ignore[arg-type]
    EMITTERS[form](planned.model, planned.solve().rewrite)
    return planned.model


def samples(proto: onnx.ModelProto, count: int = 10) -> list[dict[str, Array]]:
    generator = np.random.default_rng(1)
    shape = [2 if dim.dim_param else dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    return [{"x": generator.normal(size=shape).astype(np.float32)} for _ in range(count)]


def quantized(proto: onnx.ModelProto, form: str, **options: object) -> onnx.ModelProto:
    arguments = {"preset": "w8a8", "range": "minmax", "include": ["*"], "format": form, "benchmark": False, **options}
    result = onnxq.quantize(proto, calibration=samples(proto), threads=1, **arguments)  # type: ignore[arg-type]
    assert result.model is not None
    return result.model


def close(proto: onnx.ModelProto, form: str, decibels: float = 25.0, **options: object) -> onnx.ModelProto:
    model = quantized(proto, form, **options)
    feed = samples(proto)[0]
    expected, got = (run(m.SerializeToString(), feed) for m in (proto, model))
    assert all(sqnr_db(expected[name], got[name]) > decibels for name in expected)
    return model


MOVES = {
    "Transpose": "b = Transpose <perm = [0, 2, 3, 1]> (a)",
    "Reshape": "b = Reshape (a, shape)",
    "a chain": "c = Transpose <perm = [0, 2, 3, 1]> (a) b = Reshape (c, shape)",
    "MaxPool": "b = MaxPool <kernel_shape = [2, 2]> (a)",
}


@pytest.mark.parametrize("moves", MOVES)
def test_a_body_reads_no_float_that_the_runtime_moves_a_dequantize_linear_past(form: str, moves: str) -> None:
    # onnxruntime 1.32 looks for the reader among the inputs of the If, finds none and ends the process.
    text = f"""g (float[N,8,6,6] x, bool flag) => (float[A,B,C,D] y, float[E,F,G,H] z) {{
        [conv] a = Conv (x, w) {MOVES[moves]} [next] z = Conv (a, w)
        y = If (flag) <then_branch = t () => (float[A,B,C,D] p) {{ p = Relu (b) }},
                       else_branch = e () => (float[A,B,C,D] q) {{ q = Neg (b) }}> }}"""
    proto = build(text, w=weights(8, 8, 1, 1), shape=np.array([0, 8, -1, 3], np.int64))
    for include in (("conv", "next"), ("*",)):
        model = emitted(proto, form, include=include)
        branch = next(node for node in model.graph if node.op_type == "If")
        for _, body in walk.subgraphs(branch):
            producer = next(iter(body)).inputs[0].producer()
            assert producer is not None and producer.op_type == "DequantizeLinear"


def test_a_constant_is_not_taken_for_a_value_whose_zero_point_equals_it(form: str) -> None:
    # −1 at scale 1/255 is the integer 0, as is the zero point of the Softmax, whose scale is the same.
    text = f"{IMAGE} {{ s = Softmax (x) y = Where (c, minus, s) }}"
    proto = build(text, c=np.arange(6) % 2 == 0, minus=np.float32(-1).reshape(()))
    close(proto, form)


def test_no_node_is_left_that_nothing_reads(form: str) -> None:
    text = f"{IMAGE} {{ a = Conv (x, w) r = Clip (a, low, high) p = Pad (r, pads) y = Conv <strides = [2,2]> (p, w) }}"
    constants = {"low": np.float32(0).reshape(()), "high": np.float32(6).reshape(())}
    pads = np.array([0, 0, 1, 1, 0, 0, -1, 1], np.int64)
    model = emitted(build(text, w=weights(8, 8, 1, 1), pads=pads, **constants), form, include=("*",))
    for node in model.graph:
        assert any(output.uses() or output.is_graph_output() for output in node.outputs), node.name
    for value in model.graph.initializers.values():
        assert value.uses(), value.name


def test_the_shape_that_the_model_declares_for_an_output_stays(form: str) -> None:
    proto = build(f"{IMAGE} {{ a = Conv (x, w) y = Relu (a) }}", w=weights(8, 8, 1, 1))
    output = quantized(proto, form).graph.output[0].type.tensor_type
    assert [dim.dim_param for dim in output.shape.dim] == ["A", "B", "C", "D"]


JOINED = needs_runtime("1.32", "joins a Pad with a pool that refuses so much of it")


@pytest.mark.parametrize("mode", [pytest.param("constant", marks=JOINED), "edge", "reflect"])
def test_a_pad_with_zeros_runs_on_integers_in_every_mode(form: str, mode: str) -> None:
    pad = f'p = Pad <mode = "{mode}"> (a, pads, zero)'
    text = f"{IMAGE} {{ a = Conv (x, w) {pad} y = MaxPool <kernel_shape = [2,2]> (p) }}"
    constants = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 2], np.int64), "zero": np.float32(0).reshape(())}
    model = close(build(text, w=weights(8, 8, 1, 1), **constants), form)
    source = next(node.input[0] for node in model.graph.node if node.op_type == "Pad")
    assert {node.op_type for node in model.graph.node if node.output[0] == source} <= {
        "QuantizeLinear",
        "QLinearConv",
    }


def test_a_split_of_which_only_a_part_is_read(form: str) -> None:
    text = f"{IMAGE} {{ a = Conv (x, w) b, c = Split <axis = 1> (a, sizes) y = Conv (c, v) }}"
    close(build(text, w=weights(8, 8, 1, 1), v=weights(4, 6, 1, 1), sizes=np.array([2, 6], np.int64)), form)


def test_indices_that_nothing_reads_do_not_keep_a_pool_from_integers(form: str) -> None:
    text = f"{IMAGE} {{ a = Conv (x, w) b, i = MaxPool <kernel_shape = [2, 2]> (a) y = Conv (b, w) }}"
    close(build(text, w=weights(8, 8, 1, 1)), form)


@pytest.mark.parametrize("opset", [11, 12])
def test_a_model_that_cannot_be_raised(form: str, opset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxq.graph.prepare.whole.opset.raise_to", lambda model, version, notes: False)
    text = """g (float[2,8,6,6] x) => (float[A,B,C,D] y) {
        a = Conv (x, w) b = MaxPool <kernel_shape = [3, 3], strides = [3, 3]> (a) s = Softmax (b) y = Conv (s, w) }"""
    model = close(build(text, opset=opset, ir=6, w=weights(8, 8, 1, 1)), form, 20)
    assert model.opset_import[0].version == opset
    assert sum(node.op_type in ("QLinearSoftmax", "Softmax") for node in model.graph.node) == 1


def test_convolutions_of_four_dimensions(form: str) -> None:
    text = "g (float[N,2,3,4,3,4] x) => (float[A,B,C,D,E,F] y) { a = Conv (x, w) y = Conv (a, v) }"
    close(build(text, w=weights(4, 2, 2, 2, 2, 2), v=weights(3, 4, 1, 1, 1, 1)), form)
