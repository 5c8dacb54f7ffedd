"""ReduceMean over an image."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graph.build import build, ops, prepared


@pytest.mark.parametrize(("keep", "expected"), [(1, {"GlobalAveragePool"}), (0, {"GlobalAveragePool", "Squeeze"})])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
def test_the_mean_over_the_image_becomes_a_pool(keep: int, expected: set[str], axes: list[int]) -> None:
    shape = "float[N, 5, 1, 1]" if keep else "float[N, 5]"
    text = f"""g (float[N, 5, 6, 7] x) => ({shape} y) {{
        r = Relu (x) y = ReduceMean <axes = {axes}, keepdims = {keep}> (r) }}"""
    model, report = prepared(build(text, opset=13, ir=7))
    assert set(ops(model)) == {"Relu", *expected}
    assert report.changes["pooling"] == 1


def test_axes_as_an_input() -> None:
    text = "g (float[N, 5, 6, 7] x) => (float[N, 5, 1, 1] y) { y = ReduceMean (x, axes) }"
    model, _ = prepared(build(text, opset=18, axes=np.array([2, 3], np.int64)))
    assert set(ops(model)) == {"GlobalAveragePool"}


@pytest.mark.parametrize("axes", [[1, 2], [3], [1, 2, 3]])
def test_other_means_stay(axes: list[int]) -> None:
    text = f"g (float[N, 5, 6, 7] x) => (float[?, ?, ?, ?] y) {{ y = ReduceMean <axes = {axes}> (x) }}"
    model, _ = prepared(build(text, opset=13, ir=7))
    assert set(ops(model)) == {"ReduceMean"}


def test_a_sequence_is_no_image() -> None:
    text = "g (float[N, 5, 6] x) => (float[?, ?, ?] y) { y = ReduceMean <axes = [2]> (x) }"
    model, _ = prepared(build(text, opset=13, ir=7))
    assert set(ops(model)) == {"ReduceMean"}


def test_inside_a_body() -> None:
    text = """g (float[2, 5, 6, 7] x, bool c) => (float[?, ?, ?, ?] y) {
        y = If (c) <
            then_branch = t () => (float[?, ?, ?, ?] a) { a = ReduceMean <axes = [2, 3]> (x) },
            else_branch = e () => (float[?, ?, ?, ?] b) { b = GlobalMaxPool (x) }
        >
    }"""
    model, _ = prepared(build(text, opset=13, ir=7))
    assert not ops(model)["ReduceMean"]


def test_an_image_of_four_dimensions_has_no_pool() -> None:
    text = "g (float[N, 2, 3, 4, 3, 4] x) => (float[?, ?, ?, ?, ?, ?] y) { y = ReduceMean <axes = [2, 3, 4, 5]> (x) }"
    model, _ = prepared(build(text, opset=13, ir=7))
    assert set(ops(model)) == {"ReduceMean"}


def test_dilations_of_one_are_not_said() -> None:
    text = """g (float[N, 5, 6, 7] x) => (float[?, ?, ?, ?] y) {
        r = AveragePool <kernel_shape = [2, 2], dilations = [1, 1]> (x)
        y = AveragePool <kernel_shape = [2, 2], dilations = [1, 2]> (r) }"""
    model, _ = prepared(build(text, opset=19, ir=9))
    first, second = model.graph
    assert "dilations" not in first.attributes
    assert tuple(second.attributes["dilations"].as_ints()) == (1, 2)
