"""The benchmark of methods runs, and the networks it makes are hard for the reason that they are made for."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnxq
from benchmarks import accuracy, hard
from benchmarks.accuracy import SETTINGS, main, measure, render
from benchmarks.workloads import Workload
from onnxq.recipe.recipe import Recipe
from onnxq.recipe.unused import refuse_unused


@pytest.fixture(scope="module")
def networks() -> dict[str, Workload]:
    return {workload.name: workload for workload in hard.workloads()}


def test_tasks_are_listed_and_unknown_ones_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--list", "--zoo", str(tmp_path)]) == 0
    assert {"digits_mlp", "MLP of cubes", "encoder, outliers x50"} <= set(capsys.readouterr().out.splitlines())
    assert main(["--task", "nothing", "--zoo", str(tmp_path)]) == 2
    assert "no task 'nothing'" in capsys.readouterr().err


def test_every_network_is_accurate_in_float(networks: dict[str, Workload], tmp_path: Path) -> None:
    scores = {name: workload.score(workload.model(tmp_path)) for name, workload in networks.items() if workload.score}
    assert scores["depthwise, channels spread"] > 0.9
    assert scores["MLP of cubes"] > 0.8
    assert scores["encoder, outliers x50"] == pytest.approx(0.695, abs=0.002)  # as without outliers


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_every_recipe_is_one_that_is_taken(setting: accuracy.Setting) -> None:
    for keys in setting.methods.values():
        refuse_unused(Recipe().override(**{**setting.base, **keys}))


def test_spread_channels_are_lost_and_equalization_wins_them_back(
    networks: dict[str, Workload], tmp_path: Path
) -> None:
    workload = networks["depthwise, channels spread"]
    model = workload.model(tmp_path)
    assert workload.score is not None
    scores = {"float": workload.score(model)}
    for name, on in (("plain", False), ("equalized", True)):
        output = tmp_path / f"{name}.onnx"
        onnxq.quantize(
            model, output, calibration=workload.feeds(), preset="w8a8", per_channel=False, equalize=on, threads=1,
            benchmark=False, force=True,
        )  # fmt: skip
        scores[name] = workload.score(output)
    assert scores["plain"] < 0.2  # chance is 0.1
    assert scores["equalized"] > scores["float"] - 0.01


def test_a_table_has_a_row_for_each_method_and_a_line_for_each_failure(
    networks: dict[str, Workload], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "LATENCY_SECONDS", 0.05)
    entry = measure(networks["MLP of cubes"], SETTINGS[0], tmp_path, quick=True)
    assert [row["method"] for row in entry["rows"]] == ["plain", "without bias correction"]
    assert all(row["error"] is None and row["ratio"] > 0 and row["sqnr_db"] > 10 for row in entry["rows"])
    entry["rows"][1]["error"] = "it broke"
    text = render({"machine": {"cpu": "one"}, "left_out": ["a line"], "tasks": [entry]})
    assert "- a line" in text and "| MLP of cubes |" in text
    assert "- MLP of cubes, 8 bits per channel, without bias correction: it broke" in text
