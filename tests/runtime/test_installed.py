"""What differs between versions of the runtime is asked of it, and what is made of a model follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

import onnxq
from onnxq.graph.emit.apply import use_own_pair
from onnxq.graph.files import io
from onnxq.runtime.engines import installed
from onnxq.targets import TARGETS
from tests.plan.test_expert_layers import Mixture
from tests.runtime_version import before, needs_runtime
from tests.search.test_auto import drawn, mlp


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers of onnxruntime 1.23."""
    monkeypatch.setattr(installed, "expert_levels", lambda: ())
    monkeypatch.setattr(installed, "has_two_bits", lambda: False)


def test_the_answers_are_those_of_the_installed_version() -> None:
    assert installed.newest_pairs() == (22 if before("1.24") else 27)
    assert installed.has_two_bits() != before("1.24")
    expected = () if before("1.25") else (0,) if before("1.31") else (0, 4)
    assert installed.expert_levels() == expected


def test_pairs_that_the_runtime_lacks_are_its_own_operators() -> None:
    quantized = onnxq.quantize(mlp(), calibration=drawn(32, 64), preset="w8a8", benchmark=False).model
    assert quantized is not None
    quantized.opset_import[0].version = 23
    model = io.load(quantized)
    assert use_own_pair(model, newest=23) == 0
    assert use_own_pair(model, newest=22) > 0


@pytest.mark.usefixtures("older")
def test_blocks_of_two_bits_are_refused_before_work_starts(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = [
        {"preset": "w2"},
        {"preset": "w4", "bits": 2},
        {"recipe": onnxq.Recipe(preset="w4", rules=(onnxq.Rule("*", bits=2),))},
    ]
    for options in asked:
        with pytest.raises(onnxq.OnnxqError, match="no kernel for blocks of 2 bits; install 1.24 or later, or use w4"):
            onnxq.quantize(mlp(), tmp_path / "out.onnx", benchmark=False, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("older")
def test_experts_that_the_runtime_packs_in_another_way_stay_float() -> None:
    with pytest.raises(onnxq.OnnxqError, match="the installed onnxruntime packs experts in one node in another way"):
        onnxq.quantize(Mixture().model(), preset="w4", benchmark=False)


@needs_runtime("1.25", "has another layout of QMoE")
def test_experts_have_no_level_where_the_runtime_knows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "expert_levels", lambda: (0,))
    result = onnxq.quantize(Mixture().model(), preset="w4", accuracy_level=4, benchmark=False)
    made = result.model
    assert isinstance(made, onnx.ModelProto)
    (node,) = (node for node in made.graph.node if node.op_type == "QMoE")
    assert "accuracy_level" not in {attribute.name for attribute in node.attribute}


def test_targets_that_run_elsewhere_stay_as_they_are() -> None:
    assert installed.as_installed(TARGETS["qnn"]) is TARGETS["qnn"]
