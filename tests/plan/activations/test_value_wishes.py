"""What a recipe says of single values is in the model that is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxq
from onnxq.errors import RecipeError
from tests.graph.build import build, weights

TEXT = """g (float[N,8,6,6] x) => (float[N,8,6,6] y) {
    [first] a = Conv (x, w) [gate] b = Sigmoid (a) [second] c = Conv (b, v) [turn] d = Relu (c)
    [third] y = Conv (d, u) }"""


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return build(TEXT, w=weights(8, 8, 1, 1), v=weights(8, 8, 1, 1), u=weights(8, 8, 1, 1))


@pytest.fixture(scope="module")
def samples() -> list[dict[str, Any]]:
    return [{"x": np.random.default_rng(i).standard_normal((1, 8, 6, 6)).astype(np.float32)} for i in range(8)]


def grids(model: Any, samples: Any, *values: dict[str, Any], **options: Any) -> dict[str, tuple[float, int]]:
    """(scale, zero point) of each quantized value."""
    recipe = onnxq.Recipe.from_mapping({"preset": "w8a8", "include": ["*"], "values": list(values), **options})
    result = onnxq.quantize(model, calibration=samples, recipe=recipe, benchmark=False, force=True)
    assert result.model is not None
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer}
    return {
        node.input[0]: (float(constants[node.input[1]]), int(constants[node.input[2]]))
        for node in result.model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants
    }


def test_a_range_is_taken_as_it_is_and_holds_zero(model: Any, samples: Any) -> None:
    found = grids(model, samples, {"match": "x", "range": [-2, 4]}, {"match": "a", "range": [1, 5.1]})
    assert found["x"] == (pytest.approx(6 / 255), 85)
    assert found["a"] == (pytest.approx(5.1 / 255), 0)


def test_scale_and_zero_point_are_written(model: Any, samples: Any) -> None:
    assert grids(model, samples, {"match": "x", "scale": 0.03125, "zero_point": 120})["x"] == (0.03125, 120)


@pytest.mark.parametrize("target", ["qnn", "openvino", "tensorrt"])
def test_engines_that_take_whole_graphs_keep_to_it(samples: Any, target: str) -> None:
    fixed = build(TEXT.replace("N,", "1,"), w=weights(8, 8, 1, 1), v=weights(8, 8, 1, 1), u=weights(8, 8, 1, 1))
    plain = grids(fixed, samples, target=target)
    found = grids(fixed, samples, {"match": "c", "quantize": False}, {"match": "x", "min_range": 100}, target=target)
    assert plain.keys() - found.keys() <= {"c", "d", "b"} and "c" not in found
    assert found["x"][0] > 5 * plain["x"][0]
    with pytest.raises(RecipeError, match="values: 'z' matches no value of the model"):
        grids(fixed, samples, {"match": "z", "quantize": False}, target=target)


def test_a_value_may_be_symmetric_alone(model: Any, samples: Any) -> None:
    found, plain = grids(model, samples, {"match": "x", "symmetric": True}), grids(model, samples)
    assert found["x"][1] == 128
    assert {name: grid for name, grid in found.items() if name != "x"} == {
        name: grid for name, grid in plain.items() if name != "x"
    }


def test_a_least_width_moves_the_upper_end(model: Any, samples: Any) -> None:
    plain, wide = grids(model, samples), grids(model, samples, {"match": "*", "min_range": 1000.0})
    assert all(scale == pytest.approx(1000 / 255, rel=1e-3) for scale, _ in wide.values())
    assert grids(model, samples, {"match": "*", "min_range": 1e-9}) == plain


def test_the_method_of_one_value(model: Any, samples: Any) -> None:
    minmax = grids(model, samples, range="minmax")
    one = grids(model, samples, {"match": "x", "method": "minmax"}, range="percentile", percentile=90.0)
    assert one["x"] == minmax["x"]
    assert one["a"] != minmax["a"]


def test_float_values_keep_their_readers_float(model: Any, samples: Any) -> None:
    recipe = onnxq.Recipe(preset="w8a8", values=(onnxq.ValueRule("b", quantize=False),))
    result = onnxq.quantize(model, calibration=samples, recipe=recipe.override(include=("*",)), benchmark=False)
    reasons = {name: reason for name, _, reason in result.kept_float}
    assert "value 'b' is kept float by the recipe" in reasons["second"]
    assert {"first", "third"}.isdisjoint(reasons)


def test_later_rules_win_and_a_shared_grid_takes_the_wish(samples: Any) -> None:
    text = TEXT.replace("[turn] d = Relu (c)", "[turn] d = Transpose <perm = [0, 1, 3, 2]> (c)")
    model = build(text, w=weights(8, 8, 1, 1), v=weights(8, 8, 1, 1), u=weights(8, 8, 1, 1))
    rules = [{"match": "d", "range": [-1, 1]}, {"match": "x", "range": [-1, 1]}, {"match": "[xd]", "range": [-2, 2]}]
    found = grids(model, samples, *rules)
    assert found["x"][0] == pytest.approx(4 / 255)
    assert found["c"][0] == pytest.approx(4 / 255)


def test_a_rule_without_effect_says_so(model: Any, samples: Any) -> None:
    recipe = {"preset": "w8a8", "include": ["third"], "values": [{"match": "x", "range": [0, 1]}]}
    result = onnxq.quantize(model, calibration=samples, recipe=onnxq.Recipe.from_mapping(recipe), benchmark=False)
    assert any("values: 'x' has no integer form in this model" in line for line in result.warnings)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"match": "z", "range": [0, 1]}, "values: 'z' matches no value of the model"),
        ({"match": "x", "range": [1, 1]}, r"range \[1, 1\] is empty"),
        ({"match": "x", "range": [0, float("inf")]}, "write two numbers, such as"),
        ({"match": "x", "scale": 0.1}, "scale and zero_point belong together"),
        ({"match": "x", "scale": 0.0, "zero_point": 0}, "scale 0.0 is not a positive number"),
        ({"match": "x", "scale": 0.1, "zero_point": 300}, r"zero_point 300 is not in 0…255"),
        ({"match": "x", "scale": 0.1, "zero_point": 1, "range": [0, 1]}, "range and scale say the same thing twice"),
        ({"match": "x", "scale": 0.1, "zero_point": 1, "symmetric": True}, "leave symmetric out"),
        ({"match": "x", "method": "median"}, "value rule method: no 'median'"),
        ({"match": "x", "quantize": True}, "quantize is true by itself"),
        ({"match": "x"}, "says nothing"),
        ({"range": [0, 1]}, "value rule 1 has no 'match'"),
        ({"match": "x", "rnage": [0, 1]}, "no key 'rnage'; did you mean 'range'"),
        ({"match": "x", "min_range": -1.0}, "min_range -1.0 is no width"),
    ],
)
def test_what_makes_no_sense_is_said(model: Any, samples: Any, rule: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        grids(model, samples, rule)


def test_presets_without_ranges_have_no_use_for_it(model: Any) -> None:
    recipe = onnxq.Recipe(preset="w8", values=(onnxq.ValueRule("x", range=(0, 1)),))
    with pytest.raises(RecipeError, match="values: do nothing with preset w8, which calibrates no ranges"):
        onnxq.quantize(model, recipe=recipe)


def test_rules_come_back_from_yaml(tmp_path: Path) -> None:
    recipe = onnxq.Recipe(
        preset="w8a8", values=(onnxq.ValueRule("x", range=(0, 6)), onnxq.ValueRule("y", scale=0.5, zero_point=3))
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert onnxq.Recipe.from_file(path) == recipe


@pytest.mark.parametrize("match", ["x", "?"])
def test_a_rule_of_an_input_holds_in_a_model_of_halves(match: str) -> None:
    text = "g (float16[1,8] x) => (float16[1,8] y) { [p] h = MatMul (x, w) [q] y = MatMul (h, v) }"
    model = build(text, w=weights(8, 8).astype(np.float16), v=weights(8, 8, seed=1).astype(np.float16))
    samples = [{"x": np.random.default_rng(i).standard_normal((1, 8)).astype(np.float16)} for i in range(6)]
    recipe = onnxq.Recipe.from_mapping(
        {
            "preset": "w8a8",
            "include": ["*"],
            "own_grids": True,
            "values": [{"match": match, "range": [-10, 10]}],
        }
    )
    result = onnxq.quantize(model, calibration=samples, recipe=recipe, benchmark=False, force=True)
    assert match == "?" or not any("has no effect" in line for line in result.warnings)
    assert result.model is not None
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer}
    assert constants["x_scale"] == pytest.approx(20 / 255)
