"""The table of weight algorithms: each can be chosen and called, and one line adds another."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerBlock, TensorSpec
from onnxq.plan.weights.weight_algorithms import quantize_weight
from onnxq.recipe.recipe import Recipe
from onnxq.recipe.rounding import ALGORITHM_WITHOUT_DATA, ALGORITHMS_WITH_DATA, ROUNDINGS, SECOND_MOMENTS
from tests.graph.build import build, weights

SPEC = TensorSpec(QType.UINT4, PerBlock(1, 32), symmetric=True)


def network() -> onnx.ModelProto:
    return build("g (float[N, 64] x) => (float[N, 48] y) { [layer] y = MatMul (x, w) }", w=weights(64, 48))


@pytest.mark.parametrize("name", ROUNDINGS)
def test_each_can_be_chosen(name: str) -> None:
    data = [{"x": np.random.default_rng(i).normal(size=(8, 64)).astype(np.float32)} for i in range(10)]
    result = onnxq.quantize(network(), preset="w4", algorithm=name, calibration=data, benchmark=False)
    assert [row["algorithm"] for row in result.weights] == [name]
    assert Recipe.from_yaml(f"preset: w4\nalgorithm: {name}").algorithm == name


def test_what_an_algorithm_needs_stands_in_the_table() -> None:
    assert {name for name in ROUNDINGS if ROUNDINGS[name].statistics == SECOND_MOMENTS} == set(ALGORITHMS_WITH_DATA)
    assert ALGORITHM_WITHOUT_DATA not in ALGORITHMS_WITH_DATA
    for name in ALGORITHMS_WITH_DATA:
        with pytest.raises(onnxq.RecipeError, match=f"--algorithm {name}: needs calibration data"):
            quantize_weight(weights(48, 64), SPEC, name)
    with pytest.raises(onnxq.RecipeError, match="--algorithm none: there is no such algorithm; use rtn, gptq"):
        quantize_weight(weights(48, 64), SPEC, "none")


def test_the_worked_example_adds_one_that_the_command_line_takes(root: Path, tmp_path: Path) -> None:
    """The diffs of CONTRIBUTING.md, applied to a copy of the package."""
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text[text.index("## Add a weight algorithm") : text.index("## Add a target")]
    shutil.copytree(root / "onnxq", tmp_path / "onnxq", ignore=shutil.ignore_patterns("__pycache__"))
    (diff,) = re.findall(r"^```diff\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)
    for part in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        source, target, *lines = part.splitlines()
        path = tmp_path / target.removeprefix("+++ b/")
        path.parent.mkdir(parents=True, exist_ok=True)
        (body,) = re.split(r"^@@.*\n", "\n".join(lines), flags=re.MULTILINE)[1:]
        old, new = ("\n".join(line[1:] for line in body.splitlines() if line[:1] in kept) for kept in (" -", " +"))
        if source == "/dev/null":
            path.write_text(new + "\n", encoding="utf-8")
        else:
            whole = path.read_text(encoding="utf-8")
            assert whole.count(old) == 1
            path.write_text(whole.replace(old, new), encoding="utf-8")
    onnx.save(network(), tmp_path / "model.onnx")
    command = ["-m", "onnxq.cli", "quantize", "model.onnx", "-p", "w4", "--algorithm", "shrink", "--no-benchmark"]
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    own = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/algorithms/test_shrink.py"]
    tested = subprocess.run([sys.executable, *own], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout
