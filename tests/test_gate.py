"""What verification says of the two optimization levels."""

from __future__ import annotations

import pytest

from onnxq import gate
from onnxq.recipe import Recipe
from onnxq.verify.compare import Comparison
from onnxq.verify.fidelity import OutputComparison


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
    gate._judge(comparison(optimized), comparison(plain), Recipe(), verdict)
    assert not verdict.failures
    assert len(verdict.warnings) == len(said)
    assert all(line.startswith(start) for line, start in zip(verdict.warnings, said, strict=True))
