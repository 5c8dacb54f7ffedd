"""An operator set too new for the runtime's pair of Q and DQ is lowered, or the pair is the runtime's own."""

from __future__ import annotations

import onnx
import pytest

import onnxq
from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from onnxq.graph.prepare.whole import lower_opset
from tests.graph.build import build, prepared, weights
from tests.runtime_version import needs_runtime

KNOWS_28 = needs_runtime("1.32", "loads no operator set 28")

NET = """g (float[N,3,8,8] x) => (float[N,16,8,8] y) {
    c = Conv <pads = [1,1,1,1]> (x, w)  r = Relu (c)  y = Conv <pads = [1,1,1,1]> (r, v)
}"""


def net(opset: int = 28) -> onnx.ModelProto:
    return build(NET, opset=opset, ir=10, w=weights(16, 3, 3, 3), v=weights(16, 16, 3, 3))


def quantized(proto: onnx.ModelProto, **options: object) -> onnx.ModelProto:
    samples = [{"x": weights(1, 3, 8, 8, seed=i)} for i in range(8)]
    result = onnxq.quantize(proto, calibration=samples, benchmark=False, **options)  # type: ignore[arg-type]
    assert result.sqnr_db is not None and result.sqnr_db > 25
    assert result.warnings == []
    assert result.model is not None
    return result.model


def opset(proto: onnx.ModelProto) -> int:
    return next(entry.version for entry in proto.opset_import if entry.domain == "")


@KNOWS_28
@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_a_newer_operator_set_than_the_kernels_is_lowered(form: str) -> None:
    model = quantized(net(), preset="w8a8", format=form, include=["*"])
    assert opset(model) == lower_opset.NEWEST
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)


@KNOWS_28
@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_else_the_pair_is_the_runtimes_own(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower_opset, "run", lambda model: False)
    model = quantized(net(), preset="w8a8", format=form, include=["*"])
    assert opset(model) == 28
    pair = [node.domain for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert set(pair) == {"com.microsoft"}


@KNOWS_28
def test_types_alone_are_no_reason_and_bodies_follow() -> None:
    text = """g (float[N,4] x, bool flag) => (float[N,4] y) {
        i = Cast <to = 7> (x)  f = Cast <to = 1> (i)
        y = If (flag) <then_branch = t () => (float[N,4] p) { p = Cast <to = 1> (i) },
                       else_branch = e () => (float[N,4] q) { q = Neg (f) }>
    }"""
    model, report = prepared(build(text, opset=28, ir=10))
    assert report.opset == (28, lower_opset.NEWEST)
    assert {graph.opset_imports[""] for graph in walk.all_graphs(model.graph)} == {lower_opset.NEWEST}


def test_an_operator_of_the_new_set_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = build("g (float[N,4] x) => (float[N,4] y) { y = NoSuchOperator (x) }", opset=28, ir=10)
    model = io.load(proto)
    assert not lower_opset.run(model)
    assert model.opset_imports[""] == 28


def test_what_the_runtime_knows_stays() -> None:
    model = io.load(net(27))
    assert prepare(model).opset == (27, 27)
