"""Convolutions over one axis as convolutions over two."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.graph.build import build, ops, prepared, weights


def line(body: str, read: int = 64, out: int = 64, length: str = "100") -> str:
    return f"g (float[N, {read}, {length}] x) => (float[N, {out}, M] y) {{ {body} }}"


def is_image(model: object) -> bool:
    convs = [node for node in model.graph if node.op_type == "Conv"]  # type: ignore[attr-defined]
    return all(conv.inputs[1].shape.rank() == 4 for conv in convs)


@pytest.mark.parametrize(
    "attributes",
    [
        "",
        "<pads = [2, 1]>",
        "<strides = [2], kernel_shape = [3], pads = [1, 1]>",
        '<strides = [2], auto_pad = "SAME_UPPER">',
        "<dilations = [3]>",
    ],
)
def test_all_channels(attributes: str) -> None:
    model, report = prepared(
        build(line(f"y = Conv {attributes} (x, w, b)", length="200"), w=weights(64, 64, 3), b=weights(64))
    )
    assert report.changes["line_convs"] == 1
    assert is_image(model)
    assert next(node for node in model.graph if node.op_type == "Squeeze").outputs[0].name == "y"


@pytest.mark.parametrize(("group", "shape"), [(64, (64, 1, 7)), (2, (64, 32, 5))])
def test_channels_by_themselves_and_in_groups(group: int, shape: tuple[int, ...]) -> None:
    text = line(f"y = Conv <group = {group}, pads = [3, 3]> (x, w)", length="400")
    _, report = prepared(build(text, w=weights(*shape)))
    assert report.changes["line_convs"] == 1


def test_a_chain_has_no_axes_in_between() -> None:
    text = line("a = Conv (x, w) r = Relu (a) c = Conv (r, v) l = LeakyRelu (c) y = Conv (l, w)")
    model, report = prepared(build(text, w=weights(64, 64, 3), v=weights(64, 64, 3, seed=1)))
    assert report.changes["line_convs"] == 3
    assert ops(model) == Counter({"Conv": 3, "Unsqueeze": 1, "Squeeze": 1, "Relu": 1, "LeakyRelu": 1})


def test_a_value_that_is_read_in_its_form_too() -> None:
    text = line("a = Conv (x, w) c = Conv (a, v) d = Slice (a, from, to, ax) y = Add (c, d)")
    cut = {"from": np.array([1]), "to": np.array([-1]), "ax": np.array([2])}
    model, _ = prepared(build(text, w=weights(64, 64, 3), v=weights(64, 64, 3, seed=1), **cut))
    assert ops(model) == Counter({"Conv": 2, "Unsqueeze": 1, "Squeeze": 2, "Slice": 1, "Add": 1})


def test_layers_that_read_one_value_share_its_axis() -> None:
    text = line(
        "r = Relu (x) a = Conv <pads = [1, 1]> (r, w) c = Conv <pads = [2, 2]> (r, v) y = Add (a, c)", length="200"
    )
    model, report = prepared(build(text, w=weights(64, 64, 3), v=weights(64, 64, 5, seed=1)))
    assert report.changes["line_convs"] == 2
    assert ops(model)["Unsqueeze"] == 1


def test_in_a_subgraph_with_a_shared_weight() -> None:
    result = "float[N, 64, M]"
    text = f"""g (float[N, 64, 300] x, bool k) => ({result} y) {{
        y = If (k) <
            then_branch = t () => ({result} p) {{ p = Conv (x, w) }},
            else_branch = e () => ({result} q) {{ q = Conv (x, w) }}
        >
    }}"""
    model, report = prepared(build(text, w=weights(64, 64, 3)))
    assert report.changes["line_convs"] == 2
    sizes = [value.shape.numpy() for value in model.graph.initializers.values()]
    assert sum(len(size) > 1 for size in sizes) == 1


@pytest.mark.parametrize(
    ("shape", "attributes", "length"),
    [
        ((8, 64, 3), "", "900"),  # so few channels would leave a block half empty
        ((64, 1, 9), "", "900"),  # windows of nine take longer than what is done with them
        ((64, 64, 3), "", "20"),  # too little work for two calls more
        ((64, 8, 9), "<group = 8>", "900"),
    ],
)
def test_what_would_not_gain_stays(shape: tuple[int, ...], attributes: str, length: str) -> None:
    read = 64 if "group" in attributes else shape[1]
    text = line(f"y = Conv {attributes} (x, w)", read, shape[0], length)
    _, report = prepared(build(text, w=weights(*shape)))
    assert not report.changes["line_convs"]


def test_a_weight_that_is_computed_and_an_image_stay() -> None:
    text = """g (float[N, 64, 100] x, float[64, 64, 3] w, float[N, 64, 20, 20] z)
        => (float[N, 64, M] y, float[N, 64, A, B] u)
        { y = Conv (x, w) u = Conv (z, v) }"""
    _, report = prepared(build(text, v=weights(64, 64, 3, 3)))
    assert not report.changes["line_convs"]
