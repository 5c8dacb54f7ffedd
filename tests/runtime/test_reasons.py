from __future__ import annotations

import pytest

from onnxq.runtime.reasons import reason

PATH = "/onnxruntime_src/onnxruntime/core/"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            f"[ONNXRuntimeError] : 1 : FAIL : {PATH}graph/model.cc:256 onnxruntime::Model::Model(onnx::ModelProto&&, "
            "const onnxruntime::PathString&, const onnxruntime::ModelOptions&) Unsupported model IR version: 99, "
            "max supported IR version: 14\n",
            "Unsupported model IR version: 99, max supported IR version: 14",
        ),
        (
            f"Load model from a.onnx failed:{PATH}x.h:46 void onnxruntime::f(const std::map<std::string, int>&, bool) "
            "const [with T = float] Opset 99 is under development.",
            "Load model from a.onnx failed:Opset 99 is under development",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running MatMul node. Name:'mm' Status "
            "Message: matmul_helper.h:59 Compute MatMul dimension mismatch",
            "Non-zero status code returned while running MatMul node. Name:'mm' Status Message: "
            "MatMul dimension mismatch",
        ),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Fatal error: my.dom:Foo(-1) is not a registered function/op",
            "operator 'Foo' of domain 'my.dom' is not available in it; name its library with --custom-ops",
        ),
        (
            f"{PATH}a.cc:10 onnxruntime::f()::<lambda(int)> x == 3 was false. wrong",
            "x == 3 was false. wrong",
        ),
        ("", "ValueError"),
    ],
)
def test_only_what_is_said_is_kept(raw, expected):
    assert reason(ValueError(raw)) == expected


def test_long_messages_are_cut_at_a_word():
    text = reason(ValueError("word " * 500))
    assert len(text) < 420
    assert text.endswith("word …")
