"""Options of `onnxq quantize` about float types, dimensions and the operator set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from click.testing import Result

Run = Callable[..., Result]


def test_float16_at_an_operator_set(digits: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "o.onnx"
    given = [digits, "-o", out, "-p", "fp16", "--no-keep-io", "--opset", 19, "--fix-dim", "batch=1", "--no-benchmark"]
    done = run("quantize", *given)
    assert done.exit_code == 0, done.stderr
    assert "difference" in done.stdout
    model = onnx.load(out)
    assert model.opset_import[0].version == 19
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-p", "fp16", "--opset", "9"], "--opset 9: this target"),
        (["-p", "fp16", "--fix-dim", "none=1"], "--fix-dim none: no input or output"),
        (["-p", "fp16", "--fix-dim", "x"], "is not NAME=N"),
        (["-p", "w8a8", "--store-only"], "--store-only: is about float16"),
        (["-p", "w4", "--float-type", "float8"], "invalid value for '--float-type'"),
    ],
)
def test_wrong_ones_end_in_one_line(digits: Path, tmp_path: Path, run: Run, options: list[str], said: str) -> None:
    out = tmp_path / "o.onnx"
    done = run("quantize", digits, "-o", out, *options)
    assert done.exit_code == 2
    assert said in done.stderr
    assert not out.exists()
