"""What verification says of the two optimization levels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import VerificationError
from onnxq.pipeline import gate
from onnxq.recipe.recipe import Recipe
from onnxq.verify.compare import Comparison
from onnxq.verify.fidelity import OutputComparison
from tests.graph.build import build, weights


def comparison(sqnr_db: float) -> Comparison:
    output = OutputComparison(
        sqnr_db, 0.99, 0.1, None, None, finite=True, nonfinite_float=0, nonfinite_quantized=0, samples=4, mismatched=0
    )
    return Comparison({"y": output}, samples=4, sqnr_db=sqnr_db, top1_agreement=None, class_output=None)


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
