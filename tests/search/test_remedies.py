"""A model that came out badly is told what would help, by trying it."""

from __future__ import annotations

import numpy as np
import pytest

import onnxq
from onnxq.search import remedies
from onnxq.targets import TARGETS
from tests.graph.build import build
from tests.plan.weights.test_levels import DATA, network
from tests.runtime_version import needs_runtime

TRIED = "tried on the held-out samples: "


def told(**options: object) -> list[str]:
    result = onnxq.quantize(network(), calibration=DATA, benchmark=False, force=True, **options)
    return [line for line in result.warnings if line.startswith(TRIED)]


@pytest.mark.parametrize("preset", ["w8a8-dynamic", "w8a8-token"])
def test_presets_that_help_are_named_with_their_figures(preset: str) -> None:
    (line,) = told(preset=preset)
    assert "-p llm-int8 gives" in line
    best = onnxq.quantize(network(), calibration=DATA, benchmark=False, preset="llm-int8")
    assert f"-p llm-int8 gives {best.sqnr_db:.1f} dB" in line


def test_an_accuracy_level_that_was_asked_for_can_be_the_cause() -> None:
    (line,) = told(preset="w8", accuracy_level=4)
    assert "--accuracy-level 0 gives" in line


def test_weights_that_are_rounded_by_their_use_are_tried_first() -> None:
    """It costs neither time nor bytes at inference."""
    rng = np.random.default_rng(5)
    mix = rng.normal(size=(3, 32)).astype(np.float32)  # of inputs that hang together, rounding can be made good
    feeds = [{"x": rng.normal(size=(16, 3)).astype(np.float32) @ mix} for _ in range(24)]
    wide = rng.normal(size=(32, 64)).astype(np.float32)
    wide[0] *= 300
    feeds = [{"x": feed["x"] * np.r_[1e-3, np.ones(31)].astype(np.float32)} for feed in feeds]
    model = build("g (float[N,32] x) => (float[N,64] y) { [layer] y = MatMul (x, w) }", w=wide)
    result = onnxq.quantize(model, calibration=feeds, benchmark=False, force=True, preset="w8")
    (line,) = (line for line in result.warnings if line.startswith(TRIED))
    assert "--algorithm gptq gives" in line


def test_a_refusal_says_it_too() -> None:
    with pytest.raises(onnxq.VerificationError, match=r"tried on the held-out samples: .*-p llm-int8 gives \d+"):
        onnxq.quantize(network(1e5), calibration=DATA, benchmark=False, preset="w8a8-dynamic")


def test_nothing_is_said_of_a_good_model_or_without_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(preset="llm-int8") == []
    assert told(preset="w4") == []  # the level was chosen by what samples show
    monkeypatch.setattr(remedies, "_SECONDS", 0.0)
    assert told(preset="w8a8-token") == []


def test_every_preset_has_others_that_exist() -> None:
    from onnxq.recipe.presets import PRESETS

    assert set(remedies._OTHERS) == set(PRESETS) - {"auto", "float", "w8", "fp16", "bf16"}
    assert {name for names in remedies._OTHERS.values() for name in names} <= set(PRESETS)


@needs_runtime("1.32", "loses nothing of this network, so that nothing is told")
def test_a_target_that_names_its_presets_is_told_of_no_others() -> None:
    (line,) = told(preset="w8a8", target="qnn", fix_dims=["N=8"])
    named = [part.split()[1] for part in line.removeprefix(TRIED).split(", ")]
    assert "w8a8-smooth" in named
    assert set(named) <= set(TARGETS["qnn"].presets)
