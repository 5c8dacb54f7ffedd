"""Pad → Conv."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.graph import walk
from tests.graph.build import build, ops, prepared, weights

GRAPH = """g (float[N, 3, 6, 7] x) => (float[?, ?, ?, ?] y) {
    p = Pad <mode = "%s"> (x, pads, value)
    y = Conv <pads = [1, 0, 0, 2]> (p, w)
}"""


def pads(*amounts: int) -> np.ndarray:
    return np.array(amounts, np.int64)


def test_zeros_around_the_image_move_into_the_conv() -> None:
    proto = build(
        GRAPH % "constant", pads=pads(0, 0, 1, 2, 0, 0, 3, 0), value=np.float32(0).reshape(()), w=weights(4, 3, 3, 3)
    )
    model, report = prepared(proto)
    assert ops(model) == {"Conv": 1}
    assert walk.attr_ints(next(iter(model.graph)), "pads") == (2, 2, 3, 2)
    assert report.changes["padding"] == 1


@pytest.mark.parametrize(
    ("mode", "value", "amounts"),
    [
        ("reflect", 0.0, (0, 0, 1, 1, 0, 0, 1, 1)),
        ("constant", 0.5, (0, 0, 1, 1, 0, 0, 1, 1)),
        ("constant", 0.0, (0, 0, -1, 1, 0, 0, 1, 1)),
        ("constant", 0.0, (1, 0, 0, 0, 0, 0, 0, 0)),
    ],
)
def test_other_padding_stays(mode: str, value: float, amounts: tuple[int, ...]) -> None:
    proto = build(GRAPH % mode, pads=pads(*amounts), value=np.float32(value).reshape(()), w=weights(4, 3, 3, 3))
    model, _ = prepared(proto)
    assert ops(model)["Pad"] == 1


def test_a_pad_that_something_else_reads_stays() -> None:
    text = """g (float[N, 3, 6, 7] x) => (float[?, ?, ?, ?] y, float[?, ?, ?, ?] p) {
        p = Pad (x, pads)
        y = Conv (p, w)
    }"""
    model, _ = prepared(build(text, pads=pads(0, 0, 1, 1, 0, 0, 1, 1), w=weights(4, 3, 3, 3)))
    assert ops(model)["Pad"] == 1


def test_inside_a_body() -> None:
    text = """g (float[1, 3, 6, 7] x, bool c) => (float[?, ?, ?, ?] y) {
        y = If (c) <
            then_branch = t () => (float[?, ?, ?, ?] a) { p = Pad (x, pads) a = Conv (p, w) },
            else_branch = e () => (float[?, ?, ?, ?] b) { b = Conv <pads = [1, 1, 1, 1]> (x, w) }
        >
    }"""
    model, _ = prepared(build(text, pads=pads(0, 0, 1, 1, 0, 0, 1, 1), w=weights(4, 3, 3, 3)))
    assert not ops(model)["Pad"]


def test_axes_that_a_pad_names_are_spelled_out() -> None:
    text = "g (float[N, 3, 6, 7] x) => (float[?, ?, ?, ?] y) { p = Pad (x, pads, , axes) y = Relu (p) }"
    proto = build(text, opset=18, pads=pads(1, 2, 0, 3), axes=pads(-1, 2))
    model, report = prepared(proto)
    pad = next(iter(model.graph))
    assert len(pad.inputs) == 2
    assert walk.const_array(pad.inputs[1]).tolist() == [0, 0, 2, 1, 0, 0, 3, 0]
    assert report.changes["padding"] == 1


def test_named_axes_of_zeros_move_into_the_conv_too() -> None:
    text = "g (float[N, 3, 6, 7] x) => (float[?, ?, ?, ?] y) { p = Pad (x, pads, zero, axes) y = Conv (p, w) }"
    constants = {"pads": pads(1, 2, 0, 3), "axes": pads(2, 3), "zero": np.float32(0).reshape(())}
    model, _ = prepared(build(text, opset=18, w=weights(4, 3, 3, 3), **constants))
    assert ops(model) == {"Conv": 1}
