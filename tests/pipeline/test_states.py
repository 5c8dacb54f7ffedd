"""Recurrent models from samples without states: calibration, verification, comparison and diagnosis see the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import onnxq
from onnxq.cli._app import app
from onnxq.errors import RecipeError
from onnxq.runtime.session import open_session
from onnxq.verify.free_running import STEPS, free_running
from tests.recurrent_models import HIDDEN, WIDTH, Feed, drawn, fed_by_hand, fsmn, gru, lstm, saved

ZERO = np.zeros((1, 1, HIDDEN), np.float32)
UNNAMED = lstm(("s1", "s2", "o1", "o2"))
CACHES = {f"in_cache{i}": np.zeros((1, 8, 3), np.float32) for i in range(2)}
MODELS = {
    "gru": (gru(), (1, WIDTH), {"hn": "h"}, {"h": ZERO}, None),
    "lstm": (lstm(), (1, WIDTH), {"hn": "h0", "cn": "c0"}, {"h0": ZERO, "c0": ZERO}, None),
    "fsmn": (fsmn(), (1, 8, 5), {f"out_cache{i}": f"in_cache{i}" for i in range(2)}, CACHES, None),
    "asked": (
        UNNAMED,
        (1, WIDTH),
        {"o1": "s1", "o2": "s2"},
        {"s1": ZERO, "s2": ZERO},
        {"o1": "s1", "o2": "s2"},
    ),
}


def stacked(samples: list[Feed], path: Path) -> Path:
    np.savez(path, **{name: np.stack([sample[name] for sample in samples]) for name in samples[0]})  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("name", MODELS)
def test_an_npz_without_states_gives_what_one_with_the_states_of_a_real_run_gives(name: str, tmp_path: Path) -> None:
    model, shape, pairs, zeros, asked = MODELS[name]
    path, samples = saved(model, tmp_path / "m.onnx"), drawn(30, shape)
    with_states = fed_by_hand(model, samples, pairs, zeros)
    results, statistics = [], []
    for i, (feeds, states) in enumerate(((samples, asked), (with_states, None))):
        data = stacked(feeds, tmp_path / f"{i}.npz")
        out = tmp_path / f"q{i}.onnx"
        result = onnxq.quantize(
            path, out, calibration=data, states=states, preset="w8a8", benchmark=False, force=True, threads=1
        )
        compared = onnxq.compare(path, out, data=data, states=asked, threads=1)
        diagnosed = onnxq.diagnose(path, out, data=data, states=states, threads=1)
        found = onnxq.calibrate(path, tmp_path / f"s{i}.npz", calibration=data, states=states, threads=1)
        results.append((out.read_bytes(), compared.outputs, compared.free_running_loss, diagnosed.findings))
        statistics.append({key: (value.low, value.high) for key, value in found.statistics.items()})
        assert any("carried" in line for line in result.warnings) == (i == 0)
    assert results[0][0] == results[1][0]
    assert statistics[0] == statistics[1]
    assert results[0][1] == results[1][1]
    assert results[0][3] == results[1][3]
    assert results[0][2] is not None
    assert results[0][2] == pytest.approx(results[1][2])
    states_of = {output for output, judged in compared.judged.items() if judged is not None and judged.kind == "state"}
    assert states_of == set(pairs)


def test_free_running_is_what_running_by_hand_gives_and_a_drift_is_said(tmp_path: Path) -> None:
    """A quantized model that adds a little to its state at each step: right on the float model's states, not alone."""

    def integrator(drift: float) -> onnx.ModelProto:
        text = (
            '<ir_version: 8, opset_import: ["": 17]> '
            "g (float[n, 8] x, float[n, 8] h) => (float[n, 8] y, float[n, 8] hn) "
            f"<float[1] d = {{{drift}}}> {{ a = Add (x, h) \n hn = Add (a, d) \n y = Identity (hn) }}"
        )
        return onnx.parser.parse_model(text)

    samples = drawn(100)
    before, after = saved(integrator(0.0), tmp_path / "f.onnx"), saved(integrator(0.002), tmp_path / "q.onnx")
    result = onnxq.compare(before, after, data=samples)
    assert result.loss is not None
    assert result.free_running_loss is not None
    assert result.loss < 0.001
    assert result.free_running_loss > 5 * result.loss
    assert any("on its own states the quantized model drifts" in line for line in result.warnings)
    same = onnxq.compare(before, before, data=samples)
    assert same.free_running_loss == 0.0
    assert not any("drifts" in line for line in same.warnings)
    assert "on its own states" in result.summary()


@pytest.mark.parametrize("count", [1, 2, 63, 200])
def test_free_running_ends_after_64_steps(count: int) -> None:
    session = open_session(gru().SerializeToString(), threads=1)
    feeds = fed_by_hand(gru(), drawn(count), {"hn": "h"}, {"h": ZERO})
    left = iter(feeds)
    pairs = [(name, name) for name in session.output_names]
    found = free_running((session, session), left, count, pairs, {"hn": "h"}, {})
    assert found == (0.0 if count > 1 else None, "")
    assert len(list(left)) == max(0, count - STEPS)


def test_a_model_without_states_has_no_such_figure(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[1, 8] x) => (float[1, 8] y) { y = Tanh (x) }'
    path = saved(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    assert onnxq.compare(path, path, data=drawn(3)).free_running_loss is None


def test_samples_that_do_not_follow_each_other_have_no_such_figure(tmp_path: Path) -> None:
    path, generator = saved(gru(), tmp_path / "m.onnx"), np.random.default_rng(3)
    samples = [{**s, "h": generator.normal(0, 1, (1, 1, HIDDEN)).astype(np.float32)} for s in drawn(8)]
    assert onnxq.compare(path, path, data=samples).free_running_loss is None


def test_benchmark_takes_the_same_samples(tmp_path: Path) -> None:
    path = saved(gru(), tmp_path / "m.onnx")
    data = stacked(drawn(4), tmp_path / "a.npz")
    assert onnxq.benchmark([path], data=data, seconds=0.01, memory=False).rows[0].runs > 0


@pytest.mark.parametrize(
    ("options", "judged"),
    [
        ({"preset": "auto"}, {2, 12}),  # what it does not build anew was judged on all samples
        ({"preset": "w8a8", "adaround": True}, {2}),
        ({"min_sqnr": 45.0}, {2}),
    ],
)
def test_every_way_of_quantizing_takes_them(options: dict[str, Any], judged: set[int], tmp_path: Path) -> None:
    path, data = saved(fsmn(), tmp_path / "m.onnx"), stacked(drawn(12, (1, 8, 5)), tmp_path / "a.npz")
    result = onnxq.quantize(path, tmp_path / "q.onnx", calibration=data, seconds=0.01, force=True, **options)
    assert result.comparison is None or result.comparison.samples in judged


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ({"hm": "h"}, "--state hm=h: the model has no output 'hm'"),
        (["hn"], "quantize: states is .* it takes a dict from outputs to the inputs"),
        ({"hn": 3}, r"quantize: states\['hn'\] is 3"),
    ],
)
def test_states_that_cannot_be_are_refused(states: Mapping[str, str], message: str, tmp_path: Path) -> None:
    path = saved(gru(), tmp_path / "m.onnx")
    with pytest.raises(RecipeError, match=message):
        onnxq.quantize(path, tmp_path / "q.onnx", calibration=drawn(3), states=states)
    assert not (tmp_path / "q.onnx").exists()


def test_states_without_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--state: there are no samples"):
        onnxq.quantize(saved(gru(), tmp_path / "m.onnx"), tmp_path / "q.onnx", states={"hn": "h"})


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_line_names_states(tmp_path: Path) -> None:
    path, data = saved(UNNAMED, tmp_path / "m.onnx"), stacked(drawn(12), tmp_path / "a.npz")
    q, states = tmp_path / "q.onnx", ("--state", "o1=s1", "--state", "o2=s2")
    code, _, said = run("quantize", path, "-o", q, "-c", data, "-p", "w8a8", "--no-benchmark", "--force")
    assert (code, q.exists()) == (1, False)
    assert "--state OUTPUT=s1" in said
    assert run("quantize", path, "-o", q, "-c", data, *states, "-p", "w8a8", "--no-benchmark", "--force")[0] == 0
    assert run("calibrate", path, "-o", tmp_path / "s.npz", "-c", data, *states)[0] == 0
    assert run("diagnose", path, q, "-c", data, *states)[0] == 0
    code, out, _ = run("compare", path, q, "-c", data, *states, "--json")
    assert code == 0
    assert json.loads(out)["free_running_loss"] >= 0
    assert "on its own states" in run("compare", path, q, "-c", data, *states)[1]
    timed = ("benchmark", path, q, "--seconds", 0.05)
    code, _, said = run(*timed, "-c", data)
    assert (code, "--state OUTPUT=s1" in said) == (1, True)
    code, out, _ = run(*timed, "-c", data, *states, "--json")
    assert (code, len(json.loads(out)["models"])) == (0, 2)
    code, _, said = run(*timed, *states)
    assert (code, "there are none; pass --calibration" in said) == (2, True)


@pytest.mark.parametrize(
    ("given", "message"),
    [(["hn"], "is no pair"), (["=h"], "is no pair"), (["hn="], "is no pair"), (["hn=h", "hn=x"], "named twice")],
)
def test_pairs_that_are_written_wrong_are_usage_errors(given: list[str], message: str, tmp_path: Path) -> None:
    path = saved(gru(), tmp_path / "m.onnx")
    code, _, said = run("quantize", path, "-c", tmp_path, *(part for pair in given for part in ("--state", pair)))
    assert code == 2
    assert message in said


@pytest.mark.zoo
def test_a_voice_detector_of_frames_alone_is_calibrated_as_with_its_states(zoo: ModuleType, tmp_path: Path) -> None:
    path = zoo.HERE / "silero_vad" / "model.onnx"
    audio = np.load(zoo.HERE / "silero_vad" / "speech.npz")["calib"].astype(np.float32)[: 512 * 100] / 32768
    frames = np.stack([np.concatenate([audio[max(s - 64, 0) : s], audio[s : s + 512]]) for s in range(512, 51200, 512)])
    np.savez(tmp_path / "a.npz", input=frames, sr=np.full(len(frames), 16000))
    options = {"preset": "w8a8", "benchmark": False, "force": True}
    result = onnxq.quantize(path, tmp_path / "q.onnx", calibration=tmp_path / "a.npz", **options)
    assert result.sqnr_db is not None
    assert result.sqnr_db > 25
    compared = onnxq.compare(path, tmp_path / "q.onnx", data=tmp_path / "a.npz")
    assert compared.free_running_loss is not None
    assert compared.free_running_loss < 0.05


@pytest.mark.zoo
def test_a_streaming_model_of_features_alone_gives_what_its_recorded_caches_give(
    zoo: ModuleType, tmp_path: Path
) -> None:
    place = zoo.HERE / "wild" / "fsmn_vad"
    if not place.is_dir():
        pytest.skip("no fsmn_vad in the zoo")
    for path in sorted((place / "calib").glob("*.npz")):
        np.savez(tmp_path / path.name, speech=np.load(path)["speech"])
    found = []
    for i, data in enumerate((tmp_path, place / "calib")):
        q = tmp_path / f"q{i}.onnx"
        onnxq.quantize(place / "model.onnx", q, calibration=data, preset="w8a8", benchmark=False, force=True)
        found.append(onnxq.compare(place / "model.onnx", q, data=data))
    assert found[0].sqnr_db == pytest.approx(found[1].sqnr_db, abs=0.5)
    assert found[0].free_running_loss is not None
    assert found[1].free_running_loss is not None
