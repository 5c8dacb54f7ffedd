"""The commands for Transformers and for auto: tasks, configurations, feeds by length, the encoder, the peer's ways."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks import auto, auto_tables, transformer_tables, transformers
from benchmarks.command import Command, Settings
from benchmarks.encoder import WIDTH, encoder, token_feeds
from benchmarks.lengths import AS_FED, timed_feeds
from benchmarks.peers import CONFIGS, OTHER_CONFIGS, quantize_with_peer
from benchmarks.rows import Row
from benchmarks.workloads import ROOT, Workload
from tests.benchmarks.test_tables import failed, results, row
from tests.runtime_version import needs_runtime

EVERYTHING = Settings(quick=False, peers=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    onnx.save(encoder(layers=1), path)
    return path


def run(path: Path, feed: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feed)[0]


def test_without_a_zoo_the_other_tasks_remain(tmp_path: Path) -> None:
    workloads, left_out = transformers.find(tmp_path)
    assert [workload.name for workload in workloads] == ["encoder_6x384", "text_encoder", "tiny_lm", "text_lstm"]
    assert left_out == ["the zoo is absent: its tasks are left out (--zoo FOLDER names it)"]


def test_only_models_with_attention_are_fused_first() -> None:
    assert "w8a8, fused" in transformers.onnxq_configs("text_encoder")
    assert "w8a8, fused" not in transformers.onnxq_configs("text_lstm")
    assert set(OTHER_CONFIGS) <= set(transformers.peer_configs("text_encoder", EVERYTHING))
    assert not any("fused" in config for config in transformers.peer_configs("text_lstm", EVERYTHING))
    assert transformers.peer_configs("text_lstm", Settings(quick=False, peers=False)) == []
    assert "budget" not in transformers.onnxq_configs("text_lstm")["auto"]
    assert transformers.onnxq_configs("text_lstm", quick=True)["auto"]["budget"] == transformers.QUICK_BUDGET


def test_the_encoder_is_written_out_and_its_values_are_sane(small: Path) -> None:
    model = onnx.load(small)
    onnx.checker.check_model(model, full_check=True)
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["MatMul"] == 8 and counts["Softmax"] == counts["Erf"] == 1 and counts["ReduceMean"] == 6
    for length in (1, 16):
        states = run(small, token_feeds(1, 0, length)[0])
        assert states.shape == (1, length, WIDTH)
        assert 0.5 < states.std() < 2


def test_masked_tokens_of_the_encoder_do_not_matter(small: Path) -> None:
    (feed,) = token_feeds(1, 0, 8)
    mask = feed["attention_mask"].copy()
    mask[:, 5:] = 0
    other = feed["input_ids"].copy()
    other[:, 5:] += 1
    first, second = (run(small, {"input_ids": ids, "attention_mask": mask}) for ids in (feed["input_ids"], other))
    assert np.abs(first - second)[:, :5].max() < 1e-5


def test_tokens_are_timed_by_length_and_the_rest_as_it_is(small: Path) -> None:
    (feed,) = token_feeds(1, 0, 6)
    feed["attention_mask"] = np.array([[1, 1, 1, 1, 0, 0]])
    found = timed_feeds(small, [feed, feed])
    assert list(found) == ["1 x 1", "1 x 16", "1 x 128"]
    ids = found["1 x 16"][0]["input_ids"]
    assert ids.shape == (1, 16) and set(ids[0]) <= set(feed["input_ids"][0, :4])
    assert (found["1 x 16"][0]["attention_mask"] == 1).all()
    assert list(timed_feeds(small, [{"x": np.zeros((1, 3), np.float32)}])) == [AS_FED]


def test_a_length_that_the_model_does_not_take_is_left_out() -> None:
    (feed,) = token_feeds(1, 0, 6)
    text = ROOT / "models" / "text_encoder.onnx"  # up to 192 tokens
    assert list(timed_feeds(text, [feed])) == ["1 x 1", "1 x 16", "1 x 128"]
    digits = ROOT / "models" / "digits_mlp.onnx"
    assert list(timed_feeds(digits, [feed])) == [AS_FED]


OF_4_BITS = needs_runtime("1.28", "has no quantizer that is told the bits")


@pytest.mark.parametrize("config", ["dynamic per-channel", pytest.param("4 bits, blocks of 32", marks=OF_4_BITS)])
def test_the_peer_quantizes_without_data(
    config: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # onnxruntime's shape inference leaves files where it runs
    output = tmp_path / "out.onnx"
    done = quantize_with_peer(CONFIGS[config], small, tmp_path, output)
    assert done["seconds"] > 0
    (feed,) = token_feeds(1, 0, 8)
    error = run(output, feed) - run(small, feed)
    assert 0 < np.square(error).mean() < 0.1
    assert output.stat().st_size < small.stat().st_size


def timed(entry: Row, **ratios: float) -> Row:
    """A row with a ratio for each shape."""
    return {**entry, "latency": {shape: {"ratio": ratio} for shape, ratio in ratios.items()}}


def task(*rows: Row) -> dict[str, Any]:
    return {
        "name": "task",
        "metric": "acc",
        "higher_is_better": True,
        "float": {"metric": 0.95, "bytes": 4000, "median_ms": {"short": 1.5, "long": 3.0}},
        "rows": list(rows),
    }


def test_tables_show_each_shape_the_choice_and_what_failed() -> None:
    report = {"preset": "mixed", "warnings": ["--fuse auto: not used, because", "another"]}
    found = task(
        timed(row("onnxq", "auto", report=report), short=1.25, long=3.75),
        failed("onnxq", "w8a8", "no kernel"),
        timed(row("onnxruntime", "dynamic per-channel"), short=1.5, long=2.5),
        timed(row("onnxruntime", "dynamic (defaults)", metric=0.5), short=1.75, long=2.25),
        failed("onnxruntime", "u8s8 qdq", "it broke"),
    )
    text = transformer_tables.render(results(found))
    assert "short: 1.25x, long: 3.75x" in text and "mixed" in text
    assert "- task: onnxq w8a8: no kernel" in text and "- task: onnxruntime u8s8 qdq: it broke" in text
    assert "- task, auto: --fuse auto: not used, because" in text and "another" not in text
    lines = {line.split("|")[2].strip(): line for line in text.splitlines() if line.startswith("| task ")}
    assert "dynamic (defaults)" in lines["short"] and "dynamic per-channel" in lines["long"]


def test_auto_is_held_against_the_better_preset() -> None:
    report = {"preset": "float", "warnings": []}
    found = task(
        row("onnxq", "w8a8", ratio=0.8),
        row("onnxq", "w8a8-dynamic", ratio=0.5),
        row("onnxq", "auto", ratio=1.0, report=report),
        row("onnxq", auto_tables.WITHOUT_DATA, ratio=1.0, report=report),
    )
    found["float"]["median_ms"] = {AS_FED: 1.0}
    assert auto_tables.against_best(found) == pytest.approx(1.25)
    assert "| 1.25 |" in " ".join(auto_tables.render(results(found)).split())
    assert auto_tables.against_best(task(failed("onnxq", "auto", "broke"))) is None


def test_auto_looks_at_every_model_and_at_a_copy_without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zoo" / "run_only").mkdir(parents=True)
    copied = tmp_path / "zoo" / "run_only" / "only.onnx"
    copied.write_bytes((ROOT / "models" / "digits_mlp.onnx").read_bytes())
    workloads, _ = auto.find(tmp_path / "zoo")
    names = [workload.name for workload in workloads]
    assert {"resnet50", "digits_mlp", "tiny_lm", "encoder_6x384"} < set(names) and names[-1] == "only"
    asked: list[tuple[str, Path | None]] = []

    def quantized(by: str, config: str, model: Path, feeds: Path | None, *rest: Any) -> Row:
        asked.append((model.name, feeds))
        return {"by": by, "config": config, "error": "not tried", "file": ""}

    monkeypatch.setattr(auto, "quantized", quantized)
    found = auto.measure(workloads[-1], tmp_path / "work", Settings(quick=True, peers=False))
    feeds = tmp_path / "work" / "feeds"
    assert asked == [("only.onnx", feeds)] * 3 + [("without_data.onnx", None)]
    assert found["samples"] == auto.RUN_ONLY_SAMPLES and list(found["float"]["median_ms"]) == [AS_FED]


def test_a_whole_run_and_a_part_go_to_files_of_their_own(tmp_path: Path) -> None:
    def measure(workload: Workload, folder: Path, settings: Settings) -> dict[str, Any]:
        return task()

    command = Command("any", "", "", transformers.find, measure, lambda found: f"{len(found['workloads'])} tasks\n")
    zoo = ["--zoo", str(tmp_path)]
    assert command.run(zoo, tmp_path) == 0
    assert command.run(["--task", "text_lstm", *zoo], tmp_path) == 0
    assert (tmp_path / "any.md").read_text() == "4 tasks\n"
    assert (tmp_path / "any-partial.md").read_text() == "1 tasks\n"
    assert command.run(["--task", "nonsense", *zoo], tmp_path) == 2
