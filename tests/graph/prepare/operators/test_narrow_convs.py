"""Layers with few output channels and long windows, several positions at a time; and their weights, stored once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxq.graph.emit.blocks import store_once
from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from onnxq.graph.prepare.operators import narrow_convs
from tests.graph.build import build, feeds_for, ops, prepared, run, session, weights

Array = np.ndarray[Any, Any]


def conv(*weight: int, size: str = "N, 8, 96, 264", out: str = "?, ?, ?, ?", behind: str = "", **more: str) -> Any:
    """A Conv, with what ``behind`` says of its output t, which gives y."""
    more = {"group": "1"} | more
    attributes = ", ".join(f"{name} = {value}" for name, value in more.items())
    text = f"""g (float[{size}] x) => (float[{out}] y) {{
        [c] t = Conv <{attributes}> (x, w, b) {behind or "y = Identity (t)"} }}"""
    return build(text, w=weights(*weight), b=weights(weight[0], seed=1))


@pytest.mark.parametrize(
    ("weight", "more"),
    [
        ((8, 8, 3, 39), {"pads": "[1, 19, 1, 19]"}),
        ((8, 8, 3, 39), {"pads": "[1, 7, 1, 30]"}),
        ((8, 8, 39, 3), {"pads": "[19, 1, 19, 1]"}),
        ((1, 8, 5, 5), {"pads": "[2, 2, 2, 2]"}),
        ((1, 8, 5, 5), {}),
        ((2, 8, 1, 33), {"strides": "[2, 2]"}),
        ((2, 8, 33, 1), {"strides": "[1, 2]", "pads": "[5, 0, 3, 0]"}),
        ((1, 8, 3, 17), {"dilations": "[2, 3]", "pads": "[1, 24, 1, 24]"}),
        ((1, 8, 3, 33), {"strides": "[1, 3]", "pads": "[0, 40, 0, 1]"}),
    ],
)
def test_a_narrow_layer_with_a_long_window(weight: tuple[int, ...], more: dict[str, str]) -> None:
    model, report = prepared(conv(*weight, **more), rtol=1e-5)
    assert report.changes["narrow_convs"] == 1
    layer = next(node for node in model.graph if node.op_type == "Conv")
    assert layer.name == "c"
    assert layer.inputs[1] is not None and layer.inputs[1].shape is not None
    assert layer.inputs[1].shape[0] > weight[0]
    assert not narrow_convs.run(model)


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid", "LeakyRelu <alpha = 0.1>", "Tanh"])
def test_the_activation_stays_behind_its_layer(activation: str) -> None:
    model, report = prepared(conv(1, 8, 5, 5, behind=f"y = {activation} (t)"), rtol=1e-5)
    assert report.changes["narrow_convs"] == 1
    layer = next(node for node in model.graph if node.op_type == "Conv")
    assert [user.op_type for user in layer.outputs[0].consumers()] == [activation.split()[0]]


def test_what_reads_the_layer_beside_its_activation_reads_whole_images() -> None:
    model, report = prepared(conv(1, 8, 5, 5, behind="s = Sigmoid (t) y = Mul (t, s)"), rtol=1e-5)
    assert report.changes["narrow_convs"] == 1
    assert model.graph.outputs[0].name == "y"


def test_nothing_is_moved_between_two_layers_with_equal_blocks() -> None:
    behind = "r = Relu (t) y = Conv <pads = [0, 16, 0, 16], kernel_shape = [1, 33]> (r, v)"
    proto = conv(8, 8, 1, 33, pads="[0, 16, 0, 16]", behind=behind)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights(8, 8, 1, 33, seed=2), "v"))
    model, report = prepared(proto, rtol=1e-5)
    assert report.changes["narrow_convs"] == 2
    assert ops(model)["Transpose"] == 2


def test_layers_that_share_a_weight_get_one_each_of_their_own() -> None:
    text = """g (float[1, 8, 40, 264] x, float[1, 8, 40, 8] z) => (float[?, ?, ?, ?] y, float[?, ?, ?, ?] u) {
        y = Conv <pads = [2, 2, 2, 2]> (x, w) u = Conv <pads = [2, 2, 2, 2]> (z, w) }"""
    model, report = prepared(build(text, w=weights(1, 8, 5, 5)), rtol=1e-5)
    assert report.changes["narrow_convs"] == 1  # the other is too small
    shapes = [node.inputs[1].shape for node in model.graph if node.op_type == "Conv" and node.inputs[1] is not None]
    assert ir.Shape([1, 8, 5, 5]) in shapes


def test_in_a_body() -> None:
    node = "Conv <pads = [0, 16, 0, 16]> (x, w)"
    text = f"""g (float[1, 4, 40, 264] x, bool k) => (float[1, 2, 40, 264] y) {{
        y = If (k) <
            then_branch = t () => (float[1, 2, 40, 264] p) {{ p = {node} }},
            else_branch = e () => (float[1, 2, 40, 264] q) {{ q = {node} }}
        >
    }}"""
    model, report = prepared(build(text, w=weights(2, 4, 1, 33)), rtol=1e-5)
    assert report.changes["narrow_convs"] == 2
    assert not narrow_convs.run(model)


@pytest.mark.parametrize(
    "proto",
    [
        conv(16, 8, 3, 39),
        conv(8, 8, 3, 3),
        conv(1, 8, 3, 7, size="N, 8, 4, 16", pads="[1, 3, 1, 3]"),
        conv(1, 8, 1, 33, size="N, 8, H, W", pads="[0, 16, 0, 16]"),
        conv(4, 2, 1, 33, group="4"),
        conv(1, 8, 5, 5, auto_pad='"SAME_UPPER"', size="N, 8, H, W"),
        conv(4, 8, 33, size="N, 8, 4096", out="?, ?, ?"),
    ],
)
def test_others_stay(proto: onnx.ModelProto) -> None:
    assert not prepared(proto)[1].changes["narrow_convs"]


def test_a_layer_whose_weight_is_no_constant_stays() -> None:
    text = "g (float[1, 8, 40, 264] x, float[1, 8, 5, 5] w) => (float[?, ?, ?, ?] y) { y = Conv (x, w) }"
    assert not prepared(build(text))[1].changes["narrow_convs"]


@pytest.mark.parametrize(
    ("weight", "more"),
    [
        ((4, 32, 1, 33), {"pads": "[0, 16, 0, 16]"}),
        ((4, 32, 33, 1), {"pads": "[16, 0, 16, 0]"}),
        ((2, 32, 1, 33), {"strides": "[1, 2]", "pads": "[0, 3, 0, 9]"}),
        ((1, 32, 1, 33), {"dilations": "[1, 2]", "pads": "[0, 3, 0, 9]"}),
    ],
)
def test_a_weight_is_stored_once(weight: tuple[int, ...], more: dict[str, str]) -> None:
    proto = conv(*weight, size="1, 32, 64, 264", **more)
    model, report = prepared(proto, rtol=1e-5)
    assert report.changes["narrow_convs"] == 1
    whole = io.to_bytes(model)
    assert store_once(model) == 1
    once = io.to_bytes(model)
    assert len(once) < len(whole) - 4096
    feeds = feeds_for(session(whole))
    assert np.array_equal(run(whole, feeds)["y"], run(once, feeds)["y"])
    assert not store_once(model)
    again = prepared(onnx.load_from_string(once), rtol=1e-5)[0]
    assert ops(again)["Tile"] == 0


def test_a_small_weight_or_one_that_was_changed_is_stored_as_it_is() -> None:
    small, report = prepared(conv(1, 2, 5, 5, size="1, 2, 200, 264"), rtol=1e-5)
    assert report.changes["narrow_convs"] == 1
    assert not store_once(small)
    model, _ = prepared(conv(4, 32, 1, 33, size="1, 32, 64, 264"), rtol=1e-5)
    layer = next(node for node in model.graph if node.op_type == "Conv")
    value = layer.inputs[1]
    assert value is not None and value.const_value is not None
    array = value.const_value.numpy().copy()
    array[0] += 1.0
    value.const_value = ir.Tensor(array, name=value.name)
    assert not store_once(model)


def test_an_engine_of_integers_gets_the_layer_as_it_is() -> None:
    model = io.load(conv(8, 8, 3, 39, pads="[1, 19, 1, 19]"))
    report = prepare(model, integers=True)
    assert report.changes["narrow_convs"] == 0
    assert [node.op_type for node in model.graph] == ["Conv"]
