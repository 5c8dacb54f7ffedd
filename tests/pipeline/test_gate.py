"""What verification says of the two optimization levels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.core.error_measures import decibels
from onnxq.errors import VerificationError
from onnxq.pipeline import gate
from onnxq.recipe.recipe import Recipe
from onnxq.verify.compare import Comparison
from onnxq.verify.fidelity import OutputComparison
from tests.graph.build import build, weights


def comparison(*sqnr_db: float) -> Comparison:
    """A comparison on one sample for each figure."""
    levels = tuple((1.0, 10 ** (-each / 10)) for each in sqnr_db)
    whole = decibels(len(levels), sum(noise for _, noise in levels))
    output = OutputComparison(
        whole, 0.99, 0.1, None, None, finite=True, nonfinite_float=0, nonfinite_quantized=0, samples=len(levels),
        mismatched=0, levels=levels,
    )  # fmt: skip
    return Comparison({"y": output}, samples=len(levels), sqnr_db=whole, top1_agreement=None, class_output=None)


@pytest.mark.parametrize(
    ("optimized", "plain", "said"),
    [
        (28.0, 3.0, ["output 'y': onnxruntime computes it wrongly with its optimizations off (3.0 dB, 28.0 dB with"]),
        (12.0, 28.0, ["output 'y': onnxruntime's optimizations cost accuracy (12.0 dB with, 28.0 dB without)"]),
        (28.0, 27.0, []),
        (45.0, 30.0, []),
    ],
)
def test_levels_that_are_apart_are_said(optimized: float, plain: float, said: list[str]) -> None:
    verdict = gate.Verdict()
    gate.judge(comparison(optimized), comparison(plain), Recipe(), verdict)
    assert not verdict.failures
    assert len(verdict.warnings) == len(said)
    assert all(line.startswith(start) for line, start in zip(verdict.warnings, said, strict=True))


@pytest.mark.parametrize(
    ("optimized", "plain"),
    [
        ((12.0, 40.0, 40.0, 40.0), (41.0, 12.1, 40.0, 40.0)),  # a decision close to a tie, in another sample each
        ((12.0, 40.0, 40.0), (30.0, 30.0, 30.0)),  # worse on the whole, but better in two samples of three
        ((40.0, 9.0, 9.0), (40.0,)),  # those that both saw are the same
    ],
)
def test_levels_that_are_apart_by_chance_are_not_said(optimized: tuple[float, ...], plain: tuple[float, ...]) -> None:
    verdict = gate.Verdict()
    gate.judge(comparison(*optimized), comparison(*plain), Recipe(), verdict)
    assert not [line for line in verdict.warnings if "optimizations" in line]


@pytest.mark.parametrize("share", [1, 4])
def test_a_fused_form_that_is_wrong_in_some_samples_is_said(share: int) -> None:
    verdict = gate.Verdict()
    levels = [12.0 if sample % share == 0 else 39.9 for sample in range(8)]
    gate.judge(comparison(*levels), comparison(*[40.0] * 8), Recipe(), verdict)
    assert [line for line in verdict.warnings if "optimizations cost accuracy" in line]


UNFEEDABLE = (
    "g (float[N] x, float[M] z) => (float[1, 64] y) { [r] a = Reshape (x, s) [t] b = Reshape (z, u)"
    " [m] c = MatMul (a, w) [n] d = MatMul (b, v) [p] y = Add (c, d) }"
)
"""Two inputs whose lengths have to differ: no synthetic sample has that."""


def unfeedable() -> onnx.ModelProto:
    shapes = {"s": np.array([1, 300], np.int64), "u": np.array([1, 301], np.int64)}
    return build(UNFEEDABLE, **shapes, w=weights(300, 64), v=weights(301, 64))


@pytest.mark.parametrize("preset", ["w8a8-dynamic", "w8a8-token"])
def test_a_preset_that_rounds_activations_is_not_written_unseen(tmp_path: Path, preset: str) -> None:
    output = tmp_path / "y.onnx"
    with pytest.raises(
        VerificationError, match=rf"{preset} rounds activations, and nothing was run to see what it does"
    ):
        onnxq.quantize(unfeedable(), output, preset=preset, benchmark=False)
    assert not output.exists()
    onnxq.quantize(unfeedable(), output, preset=preset, benchmark=False, force=True)
    assert output.exists()


def test_stored_weights_are_written_with_a_warning(tmp_path: Path) -> None:
    result = onnxq.quantize(unfeedable(), tmp_path / "y.onnx", preset="w8", benchmark=False)
    assert [
        line for line in result.warnings if line.startswith("loaded, but not run: no synthetic input fits the float")
    ]


def test_the_sizes_that_were_made_up_are_said() -> None:
    model = build("g (float[N, T, 64] x) => (float[N, T, 64] y) { [m] y = MatMul (x, w) }", w=weights(64, 64))
    result = onnxq.quantize(model, preset="w8a8-dynamic", benchmark=False)
    assert [
        line for line in result.warnings if line.startswith("compared on one synthetic sample, x (1, 64, 64): pass")
    ]


def test_levels_that_look_apart_are_compared_on_more_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("g (float[N, 64] x) => (float[N, 64] y) { [m] y = MatMul (x, w) }", w=weights(64, 64))
    rng = np.random.default_rng(5)
    samples = [{"x": rng.normal(size=(1, 64)).astype(np.float32)} for _ in range(60)]
    monkeypatch.setattr(gate, "_PLAIN_SECONDS", 1e-9)
    result = onnxq.quantize(model, preset="w8a8", calibration=samples, benchmark=False)
    assert result.unoptimized is not None
    assert result.comparison is not None
    assert (result.unoptimized.samples, result.comparison.samples) == (1, 12)
    monkeypatch.setattr(gate, "apart", lambda *_: (9.0, 9.0))
    result = onnxq.quantize(model, preset="w8a8", calibration=samples, benchmark=False)
    assert result.unoptimized is not None
    assert result.unoptimized.samples == 8
