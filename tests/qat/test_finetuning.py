"""Finetuning: a quantized network learns to give what the float one gives, and keeps what was better."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq import qat
from onnxq.errors import MissingExtraError, RecipeError
from tests.graph.build import Array, build, run, weights

ROOT = Path(__file__).resolve().parents[2]

NET = """g (float[N,4,8,8] x) => (float[N,6] y) {
    [conv1] a = Conv <pads = [1,1,1,1]> (x, w1, b1) [relu1] r = Relu (a)
    [conv2] c = Conv <pads = [1,1,1,1]> (r, w2, b2) [relu2] s = Relu (c)
    [pool] p = GlobalAveragePool (s) [flat] f = Flatten (p) [fc] y = Gemm (f, w3, b3) }"""


def network() -> onnx.ModelProto:
    given = {"w1": weights(16, 4, 3, 3, low=-0.4, high=0.4), "w2": weights(16, 16, 3, 3, low=-0.2, high=0.2)}
    given |= {"w3": 3 * weights(16, 6), "b1": 0.1 * weights(16), "b2": 0.1 * weights(16, seed=1), "b3": weights(6)}
    return build(NET, **given)


def samples(count: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(count, 4, 1, 1)) + np.cumsum(rng.normal(size=(count, 4, 8, 8)), axis=3) * 0.4
    return np.asarray(base, np.float32)


TABLE_FEEDS = [{"x": np.random.default_rng(index).normal(size=(1, 64)).astype(np.float32)} for index in range(12)]


def table_reader() -> onnx.ModelProto:
    text = "g (float[1,64] x) => (float[1,32] y) { [up] a = MatMul (x, w) [act] b = Tanh (a) [down] y = MatMul (b, v) }"
    return build(text, w=weights(64, 64), v=weights(64, 32))


FEEDS = [{"x": sample[None]} for sample in samples(140)]


def finetune(**options: Any) -> onnxq.QuantizeResult:
    every = {"include": ["conv1", "conv2", "fc"]} if "model" not in options else {}
    # rounded to nearest first: behind what blocks have learned, so small a network has little left to learn
    start = {"preset": "w8a8", "bits": 2, "finetune": True, "epochs": 4, "calibration": FEEDS, "algorithm": "rtn"}
    options = {**start, **every, **options}
    return onnxq.quantize(options.pop("model", network()), benchmark=False, threads=1, **options)


@pytest.mark.torch
def test_two_bits_learn_what_rounding_loses() -> None:
    result = finetune(epochs=5)
    facts = result.finetuned
    assert facts is not None and facts["epochs"] == 5 and facts["weights"] == 3
    assert facts["loss"]["after"] < 0.6 * facts["loss"]["before"]
    assert result.sqnr_db == facts["sqnr_db"]["after"]  # what is reported is the model that is written
    model = result.model
    assert model is not None
    stored = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert all(np.abs(array.astype(int)).max() <= 1 for array in stored if array.size > 64)  # they still have 2 bits
    assert "finetuned" in result.summary()


@pytest.mark.torch
def test_integers_start_from_what_blocks_have_learned() -> None:
    nearest, learned = finetune(), finetune(algorithm=None)
    assert nearest.sqnr_db is not None and learned.sqnr_db is not None
    assert learned.sqnr_db > nearest.sqnr_db + 3.0
    assert "reconstruct" in finetune(bits=8, algorithm=None, epochs=1).seconds
    assert "reconstruct" not in finetune(adaround=True, algorithm=None, epochs=1).seconds


@pytest.mark.torch
def test_outputs_in_half_precision_learn_too() -> None:
    text = NET.replace("(float[N,4,8,8] x) => (float[N,6] y)", "(float[N,4,8,8] x) => (float16[N,6] h)")
    made = build(
        f"{text.rstrip(' }')} [half] h = Cast <to = 10> (y) }}", w1=weights(16, 4, 3, 3) / 3,
        w2=weights(16, 16, 3, 3) / 5, w3=3 * weights(16, 6), b1=0.1 * weights(16), b2=0.1 * weights(16, seed=1),
        b3=weights(6),
    )  # fmt: skip
    assert finetune(model=made, include=["conv*", "fc"], epochs=2).finetuned is not None


@pytest.mark.torch
def test_a_seed_gives_the_same_model_and_another_one_another() -> None:
    first, second, other = finetune(), finetune(), finetune(seed=3)
    assert first.model is not None and second.model is not None and other.model is not None
    assert first.model.SerializeToString() == second.model.SerializeToString()
    assert first.model.SerializeToString() != other.model.SerializeToString()


@pytest.mark.torch
def test_an_interrupted_run_goes_on_and_comes_to_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(network(), path)
    whole, again = tmp_path / "whole.onnx", tmp_path / "again.onnx"
    finetune(model=path, include=["conv*", "fc"], output=whole)
    state = Path(f"{again}.finetune")

    def interrupt(step: str, done: int, total: int | None) -> None:
        if step.startswith("finetune (loss") and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(model=path, include=["conv*", "fc"], output=again, progress=interrupt)
    assert not again.exists() and state.is_file()
    result = finetune(model=path, include=["conv*", "fc"], output=again)
    assert "--finetune: went on from where an interrupted run had stopped" in result.warnings
    assert result.finetuned is not None and result.finetuned["epochs"] == 4
    assert again.read_bytes() == whole.read_bytes() and not state.exists()
    state.write_bytes(b"not a state")
    result = finetune(model=path, include=["conv*", "fc"], output=again)
    assert not any("interrupted" in line for line in result.warnings)
    assert again.read_bytes() == whole.read_bytes()


KILLED = """
import os, signal, sys
from tests.qat.test_finetuning import finetune
def watch(step, done, total):
    if step.startswith("finetune (loss") and done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
finetune(model=sys.argv[1], include=["conv*", "fc"], output=sys.argv[2], progress=watch)
"""


@pytest.mark.torch
def test_a_killed_run_goes_on_and_comes_to_the_same_model(tmp_path: Path) -> None:
    path, whole, again = (tmp_path / f"{name}.onnx" for name in ("net", "whole", "again"))
    onnx.save(network(), path)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), str(again)], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not again.exists() and Path(f"{again}.finetune").is_file()
    result = finetune(model=path, include=["conv*", "fc"], output=again)
    assert "--finetune: went on from where an interrupted run had stopped" in result.warnings
    finetune(model=path, include=["conv*", "fc"], output=whole)
    assert again.read_bytes() == whole.read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {"net.onnx", "whole.onnx", "again.onnx"}


@pytest.mark.torch
def test_ctrl_c_writes_nothing_and_the_same_command_goes_on(tmp_path: Path) -> None:
    path, data, output = tmp_path / "net.onnx", tmp_path / "x.npz", tmp_path / "out.onnx"
    onnx.save(network(), path)
    np.savez(data, x=samples(140))
    recipe = tmp_path / "r.yaml"
    recipe.write_text("preset: w8a8\nbits: 2\nepochs: 40\nalgorithm: rtn\ninclude: ['conv*', fc]\n")
    command = [sys.executable, "-m", "onnxq.cli", "finetune", path, "-c", data, "-o", output, "--recipe", recipe]
    before = {file.name for file in tmp_path.iterdir()}

    def start() -> subprocess.Popen[str]:
        given = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            list(map(str, command)), cwd=tmp_path, env={**os.environ, **given}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    state, process = Path(f"{output}.finetune"), start()
    limit = time.monotonic() + 300
    while not state.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.splitlines()[-1]) == (130, "", "interrupted: nothing was written")
    assert "Traceback" not in err
    assert {file.name for file in tmp_path.iterdir()} == {*before, state.name}
    again = start()
    _, err = again.communicate(timeout=600)
    assert again.returncode == 0 and "went on from where an interrupted run had stopped" in err
    assert output.is_file() and not state.exists()


@pytest.mark.torch
def test_a_loss_that_is_nan_ends_it_with_the_best_state(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxq.qat import finetuning

    plain, calls = finetuning.squares, iter(range(10_000))

    def later_nan(*given: Any) -> Any:
        return plain(*given) * (float("nan") if next(calls) > 30 else 1.0)

    monkeypatch.setattr(finetuning, "squares", later_nan)
    result = finetune()
    assert "--finetune: a loss was NaN or infinite; it stopped there and kept the best state before" in result.warnings
    assert result.sqnr_db is not None and np.isfinite(result.sqnr_db)


@pytest.mark.torch
def test_a_form_in_which_nothing_learns_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxq.qat import finetuning

    monkeypatch.setattr(finetuning, "parameter_groups", lambda *given: ([], 0))
    result = finetune(epochs=1)
    assert [line for line in result.warnings if line.startswith("--finetune: nothing in this form can learn")]


@pytest.mark.torch
def test_scales_that_reach_no_output_are_nothing_that_learns() -> None:
    """A table of values stands for the weights, and the gradient ends at its indices."""
    result = finetune(model=table_reader(), preset="lut4", bits=None, epochs=1, calibration=TABLE_FEEDS)
    assert [line for line in result.warnings if line.startswith("--finetune: nothing in this form can learn")]


@pytest.mark.torch
def test_steps_become_smaller_until_something_is_won(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of few bits are far too large at eight, where rounding costs little."""
    from onnxq.qat import finetuning

    results: list[finetuning.FinetuningResult] = []
    learn = finetuning.finetune

    def kept(task: finetuning.Finetuning) -> finetuning.FinetuningResult:
        results.append(learn(task))
        return results[-1]

    monkeypatch.setattr(finetuning, "finetune", kept)
    finetune(bits=None, learning_rate=0.1, epochs=6)
    assert results[0].after < results[0].before
    assert results[0].epochs > 6, "passes that led away are made up for"


@pytest.mark.torch
def test_what_gets_worse_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxq.qat import finetuning

    monkeypatch.setattr(finetuning, "_TIMES", 0)
    every = ["conv1", "conv2", "fc"]
    plain = onnxq.quantize(network(), calibration=FEEDS, preset="w8a8", benchmark=False, include=every)
    result = finetune(bits=None, learning_rate=0.9, epochs=1)
    assert result.model is not None and plain.model is not None
    said = "--finetune: no state was better on held-out samples than the start, which is kept"
    assert said in result.warnings
    assert result.model.SerializeToString() == plain.model.SerializeToString() and result.finetuned is None


@pytest.mark.torch
def test_few_samples_leave_eight_bit_weights_alone(tmp_path: Path) -> None:
    result = finetune(bits=None, epochs=2)
    assert result.finetuned is None or result.finetuned["weights"] == 0


@pytest.mark.torch
def test_packed_weights_learn_without_static_scales() -> None:
    text = "g (float[N,64] x) => (float[N,24] y) { [fc1] a = MatMul (x, w1) r = Tanh (a) [fc2] y = MatMul (r, w2) }"
    model = build(text, w1=0.1 * weights(64, 96), w2=weights(96, 24))
    rows = np.random.default_rng(2).normal(size=(400, 64)).astype(np.float32)
    feeds = [{"x": rows[i : i + 1]} for i in range(400)]
    result = finetune(model=model, preset="w2", bits=None, block_size=32, calibration=feeds, epochs=10)
    assert result.finetuned is not None and result.finetuned["weights"] == 2
    assert result.finetuned["loss"]["after"] < 0.97 * result.finetuned["loss"]["before"]


@pytest.mark.torch
def test_packed_weights_of_few_bits_start_in_the_order_of_the_graph_unless_an_algorithm_is_named() -> None:
    text = "g (float[N,64] x) => (float[N,24] y) { [fc1] a = MatMul (x, w1) r = Tanh (a) [fc2] y = MatMul (r, w2) }"
    given = {"model": build(text, w1=0.1 * weights(64, 96), w2=weights(96, 24)), "preset": "w2", "bits": None}
    rows = np.random.default_rng(2).normal(size=(100, 64)).astype(np.float32)
    given |= {"block_size": 32, "calibration": [{"x": rows[i : i + 1]} for i in range(100)], "epochs": 1}
    plain, named = finetune(**given, algorithm=None), finetune(**given, algorithm="autoround")
    asked = finetune(**given, algorithm="autoround", sequential=True)
    assert plain.model == asked.model != named.model


@pytest.mark.torch
def test_labels_count_where_they_fit_and_are_left_out_where_not(tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    array = samples(140)
    right = run(network().SerializeToString(), {"x": array})["y"].argmax(axis=1)
    np.savez(data, x=array, labels=right)
    toward = finetune(calibration=data)
    assert toward.finetuned is not None
    assert not any("labels" in line for line in toward.warnings)
    np.savez(data, x=array, labels=np.zeros((140, 2), np.float32))
    apart = finetune(calibration=data, epochs=2)
    assert any("2]) are not one whole number for each of" in line for line in apart.warnings), apart.warnings
    np.savez(data, x=array, labels=right + 6)  # they lie beyond the network's classes
    beyond = finetune(calibration=data, epochs=2)
    assert any("are no classes of an output" in line for line in beyond.warnings), beyond.warnings


@pytest.mark.torch
def test_models_that_gradients_cannot_pass_are_refused() -> None:
    text = """g (float[N,64] x, bool c) => (float[N,64] y) {
        h = MatMul (x, w) y = If (c) <then_branch = t () => (float[N,64] a) { a = Relu (h) },
        else_branch = e () => (float[N,64] b) { b = Neg (h) }> }"""
    model = build(text, w=weights(64, 64))
    feeds = [{"x": weights(2, 64, seed=i), "c": np.asarray(bool(i % 2))} for i in range(10)]
    with pytest.raises(RecipeError, match="--finetune: gradients cannot pass If, for which there is no torch function"):
        finetune(model=model, preset="w8", bits=8, calibration=feeds)


@pytest.mark.torch
def test_losses_are_zero_for_equals_and_known_for_others() -> None:
    torch = pytest.importorskip("torch")
    from onnxq.qat.distillation import OutputKind, distance, labelled
    from onnxq.verify import loss

    logits, other = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0]])
    p = torch.softmax(logits, 1)
    expected = float((p * (p.log() - np.log(1 / 3))).sum())
    assert float(distance(OutputKind(loss.CLASSES, 1), logits, other)) == pytest.approx(expected, rel=1e-5)
    assert float(distance(OutputKind(loss.CLASSES, 1, True), p, torch.full((1, 3), 1 / 3))) == pytest.approx(
        expected, rel=1e-5
    )
    assert float(distance(OutputKind(loss.EMBEDDING), logits, 3 * logits)) == pytest.approx(0.0, abs=1e-6)
    assert float(distance(OutputKind(loss.VALUES, scale=2.0), logits, logits + 1)) == pytest.approx(0.5)
    q = torch.tensor([0.25])
    kl = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert float(distance(OutputKind(loss.PROBABILITIES), torch.tensor([0.5]), q)) == pytest.approx(kl, rel=1e-4)
    assert float(labelled(OutputKind(loss.CLASSES, 1), other, torch.tensor([1]))) == pytest.approx(np.log(3), rel=1e-5)
    for kind, axis in ((loss.CLASSES, 1), (loss.PROBABILITIES, None), (loss.EMBEDDING, None), (loss.VALUES, None)):
        assert float(distance(OutputKind(kind, axis), p, p)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.torch
def test_there_is_no_cuda_where_there_is_none() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(RecipeError, match="PyTorch sees no device 'cuda'; use --train-on cpu"):
        finetune(device="cuda")


def test_without_torch_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qat, "has_torch", lambda: False)
    with pytest.raises(MissingExtraError, match="--finetune: needs PyTorch, which is not installed; pip install"):
        finetune()


def test_options_of_learning_need_something_that_learns() -> None:
    model = network()
    for options, named in (
        ({"epochs": 3}, "--epochs"),
        ({"learning_rate": 0.1}, "--learning-rate"),
        ({"seed": 1}, "--seed"),
    ):
        with pytest.raises(RecipeError, match=f"{named}: is about learning end to end; use it with --finetune"):
            onnxq.quantize(model, calibration=FEEDS, preset="w8a8", benchmark=False, **options)
    with pytest.raises(RecipeError, match="--bits 2: does nothing with preset w8a8"):
        onnxq.quantize(model, calibration=FEEDS, preset="w8a8", bits=2, benchmark=False)
    for options, message in (
        ({"minutes": 0}, "--minutes: 0.* is not positive"), ({"epochs": 0}, "--epochs: 0 is no number of passes"),
        ({"learning_rate": 2.0}, "--learning-rate: 2.0 is not between 0"), ({"device": "tpu"}, "--device: no 'tpu'"),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=message):
            finetune(**options)


def test_without_samples_there_is_nothing_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--preset w8a8: needs calibration data and there is none"):
        finetune(calibration=None)
    with pytest.raises((RecipeError, MissingExtraError), match="--finetune: needs"):
        finetune(calibration=None, preset="w8", bits=8)
