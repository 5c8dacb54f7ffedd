"""An option that does nothing is an error; every option that is not refused changes the result."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import RecipeError
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import Recipe
from onnxq.recipe.unused import USES, refuse_unused
from tests.graph.build import build, weights
from tests.runtime_version import needs_runtime

VALUES: dict[str, tuple[Any, ...]] = {
    "format": ("qoperator", "qdq"), "range": ("minmax", "percentile"), "percentile": (95.0,),
    "symmetric": (True, False), "per_channel": (False,), "bias_correct": (False,), "smooth": (0.5,),
    "adaround": (True,), "bits": (3,), "reconstruct": (True,), "block_size": (32, 64), "accuracy_level": (0,),
    "sequential": (True,),
    "float_type": ("float16", "bfloat16"),
}  # fmt: skip
"""One of them is another than any preset's own."""
NAMES = [name for name in PRESETS if name not in ("auto", "float")]  # float alone is refused: there is nothing to do


@cache
def subject() -> tuple[onnx.ModelProto, list[dict[str, Any]]]:
    """A small model with layers of every kind that the options are about, and samples with outliers."""
    text = """g (float[N,16,8,8] x) => (float[N,32] y) {
        a = Conv<pads=[1,1,1,1]> (x, w, b) r = Relu (a) c = Conv<pads=[1,1,1,1]> (r, v, e) s = Relu (c)
        p = GlobalAveragePool (s) f = Flatten (p) n = LayerNormalization (f, g, h) m = MatMul (n, k) t = Relu (m)
        y = MatMul (t, l) }"""
    generator = np.random.default_rng(0)

    def spread(*shape: int) -> Any:
        return (generator.standard_normal(shape) * np.exp(generator.standard_normal(shape[-1:])) / 8).astype(np.float32)

    model = build(
        text, w=spread(32, 16, 3, 3), b=spread(32), v=spread(64, 32, 3, 3), e=spread(64), g=weights(64), h=weights(64),
        k=spread(64, 64), l=spread(64, 32),
    )  # fmt: skip
    scale = np.exp(generator.standard_normal((1, 16, 1, 1)))
    feeds = [{"x": (generator.standard_normal((1, 16, 8, 8)) * scale).astype(np.float32)} for _ in range(5)]
    return model, feeds


@cache
def result(preset: str, **options: Any) -> bytes:
    model, feeds = subject()
    if PRESETS[preset].float8:
        options["target"] = "tensorrt"
    made = onnxq.quantize(
        model, calibration=feeds, preset=preset, include=["*"], benchmark=False, force=True, threads=1, **options
    )
    assert made.model is not None
    return made.model.SerializeToString()


def test_every_such_option_is_tried() -> None:
    assert set(VALUES) == set(USES)


SLOW = {(option, name) for option in ("adaround", "reconstruct") for name in NAMES}
SLOW |= {(option, name) for option in VALUES for name in ("zeroquant", "lut8", "w8a8-learned")}


def marks(option: str, preset: str) -> list[pytest.MarkDecorator]:
    learns = option == "reconstruct" or preset == "w8a8-learned"
    found = [pytest.mark.large] * ((option, preset) in SLOW) + [pytest.mark.torch] * learns
    if preset == "w2":  # two bits as float32, and as float16
        found.append(needs_runtime("1.28" if option == "float_type" else "1.24", "has no MatMulNBits of 2 bits"))
    return found


@pytest.mark.parametrize(
    ("option", "preset"),
    [pytest.param(option, preset, marks=marks(option, preset)) for option in VALUES for preset in NAMES],
)
def test_an_option_is_refused_or_does_something(preset: str, option: str) -> None:
    more = {"range": "percentile"} if option == "percentile" else {}
    try:
        for value in VALUES[option]:
            refuse_unused(Recipe(preset=preset, **{option: value}, **more))
    except RecipeError as error:
        assert f"does nothing with preset {preset}" in str(error)
        assert "or use" in str(error)
        return
    if (option, preset) in {("adaround", "zeroquant"), ("adaround", "w8a8-learned"), ("reconstruct", "w8a8-learned")}:
        return  # which it does anyway
    if option == "format" and preset in ("w8a16", "w4a16"):  # the other format is refused where the target is known
        with pytest.raises(RecipeError, match=f"--format qoperator: has no {preset}, which is for Q and DQ"):
            result(preset, format="qoperator")
        return
    assert any(result(preset, **{option: value}, **more) != result(preset) for value in VALUES[option])


def test_bits_with_kernels_of_integers_name_what_takes_them() -> None:
    with pytest.raises(RecipeError, match=r"--bits 4: does nothing with preset w8a8, .* or use .*w8, w4, w2"):
        refuse_unused(Recipe(preset="w8a8", bits=4))
    with pytest.raises(RecipeError, match="--bits 4: does nothing with preset auto"):
        refuse_unused(Recipe(bits=4))
    refuse_unused(Recipe(preset="w8a8", bits=8))  # what it does


def test_rules_are_looked_at_with_their_preset() -> None:
    with pytest.raises(RecipeError, match="rule 2: block_size 32: does nothing with preset w8a8"):
        refuse_unused(
            Recipe.from_mapping({"preset": "w8a8", "rules": [{"match": "a"}, {"match": "b", "block_size": 32}]})
        )
    refuse_unused(Recipe.from_mapping({"preset": "w8a8", "rules": [{"match": "b", "preset": "w4", "block_size": 32}]}))
    refuse_unused(Recipe.from_mapping({"preset": "w8a8", "bits": 4, "rules": [{"match": "b", "preset": "w4"}]}))


@pytest.mark.parametrize(
    ("given", "meant"),
    [("int8", "w8a8"), ("INT4", "w4"), ("dynamic", "w8a8-dynamic"), ("w8a8_dynamic", "w8a8-dynamic"), ("w9a8", "w8a8")],
)
def test_an_unknown_preset_is_answered_with_the_one_meant(given: str, meant: str) -> None:
    with pytest.raises(RecipeError, match=rf"--preset: no '{given}'; did you mean '{meant}'\? There are auto, w8a8"):
        Recipe(preset=given)
