"""--fix-dim and --opset: what the user wants of the model before anything else is done to it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import OnnxqError, RecipeError
from tests.graph.build import build, weights

WEIGHT = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)


def model(opset: int = 17) -> onnx.ModelProto:
    text = """g (float[batch, seq, 16] x) => (float[batch, seq, 32] y, float[rows, 32] z) {
        [a] y = MatMul (x, w) z = Reshape (y, s) }"""
    return build(text, opset=opset, w=WEIGHT, s=np.array([-1, 32], np.int64))


def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 8, 16)).astype(np.float32)} for _ in range(3)]


def shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]


def test_dimensions_are_fixed_everywhere() -> None:
    result = onnxq.quantize(model(), preset="w8a8", calibration=feeds(), fix_dims=["batch=1", "seq=8"], benchmark=False)
    assert result.model is not None
    assert shape(result.model.graph.input[0]) == [1, 8, 16]
    assert [shape(value) for value in result.model.graph.output] == [[1, 8, 32], [8, 32]]


def test_one_dimension_may_stay_open() -> None:
    result = onnxq.quantize(model(), preset="w8a8", calibration=feeds(), fix_dims=["batch=1"], benchmark=False)
    assert result.model is not None
    assert shape(result.model.graph.input[0]) == [1, "seq", 16]


def test_a_dimension_without_a_name_is_called_by_input_and_axis() -> None:
    proto = model()
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim[:2]:
            if dim.dim_param:
                dim.ClearField("dim_param")
    result = onnxq.quantize(
        proto, preset="w8a8", calibration=feeds(), fix_dims=["x:0=1", "x:1=8"], benchmark=False, target="qnn"
    )
    assert result.model is not None
    assert shape(result.model.graph.input[0]) == [1, 8, 16]
    with pytest.raises(OnnxqError, match="takes fixed shapes alone; pass --fix-dim x:1=N"):
        onnxq.quantize(proto, preset="w8a8", calibration=feeds(), fix_dims=["x:0=1"], target="qnn")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["batch"], "'batch' is not NAME=N"),
        (["batch=0"], "'batch=0' is not NAME=N"),
        (["batch=x"], "'batch=x' is not NAME=N"),
        (["bach=1"], "--fix-dim bach: .* did you mean 'batch'"),
        (["batch=1", "batch=2"], "'batch' is given twice, as 1 and 2"),
    ],
)
def test_wrong_dimensions(wrong: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        onnxq.quantize(model(), preset="w8", fix_dims=wrong)


def test_samples_of_another_size_are_refused() -> None:
    with pytest.raises(OnnxqError, match="axis 1 has to be 4 long"):
        onnxq.quantize(model(), preset="w8a8", calibration=feeds(), fix_dims=["batch=1", "seq=4"])


@pytest.mark.parametrize(("before", "wished"), [(13, 19), (17, 17), (19, 18)])
def test_the_operator_set_is_what_was_asked_for(before: int, wished: int) -> None:
    result = onnxq.quantize(model(before), preset="w8a8", calibration=feeds(), opset=wished, benchmark=False)
    assert result.model is not None
    assert {entry.domain: entry.version for entry in result.model.opset_import}[""] == wished


@pytest.mark.parametrize(
    ("before", "wished", "said"),
    [
        (17, 11, "--opset 11: this target, or this form of weights, needs 13"),
        (
            17,
            99,
            "--opset 99: the model cannot be brought from 17 to it: .* onnx .* knows operator sets up to ",
        ),
        (17, 3, "--opset: 3 is no operator set"),
    ],
)
def test_operator_sets_that_cannot_be(before: int, wished: int, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        onnxq.quantize(model(before), preset="w8a8", calibration=feeds(), opset=wished)


def test_a_name_that_stands_for_two_lengths_is_fixed_axis_by_axis() -> None:
    """PaddlePaddle's exporter calls every open dimension by one name."""
    plain = build("g (float[q, 4, q, q] x) => (float[q, 8, q, q] y) { y = Conv (x, w) }", w=weights(8, 4, 1, 1))
    feeds = [{"x": np.random.default_rng(i).random((1, 4, 6, 10), np.float32)} for i in range(4)]
    sizes = ["x:0=1", "x:2=6", "x:3=10"]
    result = onnxq.quantize(plain, calibration=feeds, preset="w8a8", include=["*"], fix_dims=sizes, benchmark=False)
    assert result.model is not None
    (given,) = result.model.graph.input
    assert [dim.dim_value for dim in given.type.tensor_type.shape.dim] == [1, 4, 6, 10]
