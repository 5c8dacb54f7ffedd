"""The phases of an image, as YOLOX and YOLOv5 take them apart, in one SpaceToDepth."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.graph.build import build, ops, prepared, weights

FAR = np.iinfo(np.int64).max
PHASES = [(0, 0), (1, 0), (0, 1), (1, 1)]
CONV = "y = Conv <pads = [1, 1, 1, 1]> (f, w)"


def numbers(**more: list[int]) -> dict[str, np.ndarray]:
    given = {"two": [2], "ones": [1, 1], "h": [2], "v": [3], "zero": [0], "one": [1], "far": [FAR]}
    return {name: np.array(values) for name, values in {**given, **more}.items()}


def focus(phases: list[tuple[int, int]], end: str, source: str = "x") -> str:
    """One Slice along each axis, as torch writes them; the constants are those of `numbers`."""
    text = ""
    for i, (row, column) in enumerate(phases):
        start = ["zero", "one"]
        text += f"r{i} = Slice ({source}, {start[row]}, far, h, two) "
        text += f"p{i} = Slice (r{i}, {start[column]}, far, v, two) "
    return text + f"f = Concat <axis = 1> ({', '.join(f'p{i}' for i in range(len(phases)))}) " + end


def model_of(body: str, result: str = "float[N, 4, 3, 4] y", **more: np.ndarray) -> object:
    given = {name: array for name, array in {**numbers(), **more}.items() if name in body}
    return build(f"g (float[N, 3, 6, 8] x) => ({result}) {{ {body} }}", opset=13, ir=7, **given)


def test_phases_of_a_detector() -> None:
    model, report = prepared(model_of(focus(PHASES, CONV), w=weights(4, 12, 3, 3)))
    assert ops(model) == Counter({"SpaceToDepth": 1, "Conv": 1})
    assert report.changes["focus"] == 1
    assert set(model.graph.initializers) == {"w"}


def test_one_slice_over_both_axes() -> None:
    body = "".join(f"p{i} = Slice (x, s{i}, both, hv, steps) " for i in range(4))
    body += f"f = Concat <axis = -3> (p0, p1, p2, p3) {CONV}"
    starts = {f"s{i}": np.array(phase) for i, phase in enumerate(PHASES)}
    more = {"both": np.array([6, 8]), "hv": np.array([-2, -1]), "steps": np.array([2, 2])}
    model, _ = prepared(model_of(body, w=weights(4, 12, 3, 3), **starts, **more))
    assert ops(model) == Counter({"SpaceToDepth": 1, "Conv": 1})


def test_shared_slices_and_sizes_that_are_not_known() -> None:
    body = """a = Slice (x, zero, far, h, two) b = Slice (x, one, far, h, two)
        p0 = Slice (a, zero, far, v, two) p1 = Slice (b, zero, far, v, two)
        p2 = Slice (a, one, far, v, two) p3 = Slice (b, one, far, v, two) f = Concat <axis = 1> (p0, p1, p2, p3) """
    text = f"g (float[N, 3, H, W] x) => (float[N, 4, K, L] y) {{ {body} {CONV} }}"
    given = {name: array for name, array in numbers().items() if name != "ones"}
    model, _ = prepared(build(text, opset=13, ir=7, w=weights(4, 12, 3, 3), **given), dims=4)
    assert ops(model) == Counter({"SpaceToDepth": 1, "Conv": 1})


def test_the_order_of_space_to_depth_needs_no_conv_behind() -> None:
    phases = [(0, 0), (0, 1), (1, 0), (1, 1)]
    model, _ = prepared(model_of(focus(phases, "y = Relu (f)"), "float[N, 12, 3, 4] y"), rtol=0.0)
    assert ops(model) == Counter({"SpaceToDepth": 1, "Relu": 1})


def test_a_weight_that_another_layer_reads_keeps_its_order_there() -> None:
    end = f"{CONV} z = Conv (g, w)"
    body = focus(PHASES, end).replace("far, h, two) p0", "far, h, two) g = Concat <axis = 1> (x, x, x, x) p0", 1)
    model, report = prepared(
        model_of(body, "float[N, 4, 3, 4] y, float[N, 4, 4, 6] z", w=weights(4, 12, 3, 3)),
    )
    assert report.changes["focus"] == 1
    assert len(model.graph.initializers) == 2


def test_in_a_subgraph() -> None:
    result = "float[N, 4, 3, 4]"
    text = f"""g (float[N, 3, 6, 8] x, bool k) => ({result} y) {{
        y = If (k) <
            then_branch = t () => ({result} p) {{ {focus(PHASES, CONV.replace("y =", "p ="))} }},
            else_branch = e () => ({result} q) {{ q = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, u) }}
        >
    }}"""
    given = {name: array for name, array in numbers().items() if name != "ones"}
    _, report = prepared(build(text, opset=13, ir=7, w=weights(4, 12, 3, 3), u=weights(4, 3, 3, 3), **given))
    assert report.changes["focus"] == 1


@pytest.mark.parametrize(
    "body",
    [
        focus(PHASES, "y = Relu (f)"),  # in another order, and no weight that could take it up
        focus([(0, 0), (1, 0), (0, 1), (0, 1)], "y = Relu (f)"),  # one phase twice
        focus(PHASES, "c = Conv <group = 2> (f, o) y = Concat <axis = 1> (c, c, c)"),
        focus(PHASES, "c = Conv (f, e) y = Concat <axis = 1> (f)"),  # something else reads the phases too
        focus(PHASES, "y = Relu (f)").replace("p1 = Slice (r1, zero, far", "p1 = Slice (r1, zero, seven"),
        focus([(0, 0), (0, 1), (1, 0), (1, 1)], "y = Relu (f)").replace("Slice (x, zero, far", "Slice (x, one, far"),
    ],
)
def test_what_is_no_focus_stays(body: str) -> None:
    more = {"o": weights(4, 6, 1, 1), "e": weights(4, 12, 1, 1), "seven": np.array([7])}
    model = model_of(body, "float[N, 12, 3, 4] y", **more)
    _, report = prepared(model)
    assert not report.changes["focus"]
