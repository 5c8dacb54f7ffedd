from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxq.errors import CalibrationError, ModelError
from onnxq.graph.files import io, saving
from onnxq.graph.views.outputs import without_weights
from onnxq.runtime.session import open_session, provider_named, session_of

X = np.array([[-1, 0, 1, 2]], np.float32)


def test_runs_bytes_and_paths(make, content, tmp_path):
    saving.save(make("chain"), tmp_path / "m.onnx")
    for source in (content("chain"), tmp_path / "m.onnx"):
        session = open_session(source, threads=1)
        assert session.output_names == ["y"]
        np.testing.assert_allclose(session.run({"x": X})[0], -np.exp(np.maximum(X, 0)), rtol=1e-6)


def test_inputs_are_described(inputs):
    x, ids, scale = inputs("mixed")
    assert (x.name, x.dtype, x.shape) == ("x", np.float32, ("N", 2, 3))
    assert (ids.dtype, ids.shape, ids.shape_text) == (np.int64, ("N", "S"), "(N, S)")
    assert scale.shape == ()


def test_initializers_that_are_graph_inputs_are_not_fed(make):
    model = make("g (float[N,4] x) => (float[N,4] y) <float[4] w = {1,2,3,4}> { y = Add(x, w) }")
    model.graph.inputs.append(model.graph.initializers["w"])
    assert [spec.name for spec in session_of(model, threads=1).input_specs] == ["x"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("custom", "^model: onnxruntime .* cannot load it: operator 'Warp' of domain 'my.ops' is not available"),
        ("unknown", "operator 'NoSuchThing' does not exist in operator set 17"),
    ],
)
def test_operators_that_do_not_exist_are_named(content, name, message):
    with pytest.raises(ModelError, match=message):
        open_session(content(name))


def test_garbage_and_missing_files_are_one_line_errors(tmp_path, capfd):
    with pytest.raises(
        ModelError, match=r"model: onnxruntime .* cannot load it: Failed to load model because protobuf"
    ):
        open_session(b"\x89PNG\r\n")
    with pytest.raises(ModelError, match=r"none.onnx: onnxruntime .* File doesn't exist"):
        open_session(tmp_path / "none.onnx")
    assert capfd.readouterr().err == ""


def test_a_failing_run_is_a_one_line_error_and_silent(content, capfd):
    session = open_session(content("square"), threads=1, label="square.onnx")
    with pytest.raises(ModelError, match=r"^square.onnx: onnxruntime cannot run it: .*dimension mismatch$"):
        session.run({"x": np.ones((2, 3), np.float32)})
    assert capfd.readouterr().err == ""


def test_sequence_inputs_are_refused_with_their_name(content):
    session = open_session(content("g (seq(float[N]) s) => (int64 n) { n = SequenceLength(s) }"))
    with pytest.raises(ModelError, match=r"input 's' is a seq\(tensor\(float\)\)"):
        _ = session.input_specs


def test_optimize_off_keeps_the_graph_as_it_is(content):
    # a fused or folded graph would not change the numbers, so look at what the sessions were told
    for optimize, level in ((True, "ORT_ENABLE_ALL"), (False, "ORT_DISABLE_ALL")):
        session = open_session(content("chain"), optimize=optimize)
        assert session._session.get_session_options().graph_optimization_level.name == level


def test_providers_are_found_by_short_names_and_listed_when_unknown():
    assert provider_named("cpu") == provider_named("CPUExecutionProvider") == "CPUExecutionProvider"
    with pytest.raises(CalibrationError, match=r"provider 'tpu': not in .* available are .*CPUExecutionProvider"):
        provider_named("tpu")


def test_a_model_in_memory_shares_its_weights_and_keeps_them(make):
    weights = np.random.default_rng(0).integers(-8, 8, (64, 64)).astype(np.float32)
    numbers = ", ".join(f"{number:.1f}" for number in weights.flat)
    model = make(f"g (float[N,64] x) => (float[N,64] y) <float[64,64] w = {{{numbers}}}> {{ y = MatMul(x, w) }}")
    content, shared = without_weights(model)
    assert len(content) < 1000
    assert np.shares_memory(shared["w"], model.graph.initializers["w"].const_value.numpy())
    session = session_of(model, threads=1)
    x = np.ones((2, 64), np.float32)
    expected = open_session(io.to_bytes(model), threads=1).run({"x": x})[0]
    np.testing.assert_array_equal(session.run({"x": x})[0], expected)
    np.testing.assert_array_equal(model.graph.initializers["w"].const_value.numpy(), weights)
    del model, shared
    gc.collect()
    np.testing.assert_array_equal(session.run({"x": x})[0], expected)


PLAIN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.skipif(os.name == "nt", reason="file names are Unicode there")
@pytest.mark.parametrize("variables", [{"LANG": "C"}, {"LC_ALL": "C"}, PLAIN_C], ids=["LANG", "LC_ALL", "ASCII"])
@pytest.mark.parametrize("external", [False, True])
def test_a_path_that_is_not_ascii_opens_whatever_the_locale(make, tmp_path, variables, external):
    folder = tmp_path / "größe"
    folder.mkdir()
    saving.save(make("chain"), folder / "modèle.onnx", threshold=0 if external else 10**9)
    script = (
        "import sys, pathlib; from onnxq.runtime.session import open_session; "
        "print(len(open_session(pathlib.Path(sys.argv[1]), threads=1).input_specs))"
    )
    kept = {name: value for name, value in os.environ.items() if name not in ("LANG", "LC_ALL", "PYTHONUTF8")}
    done = subprocess.run(
        [sys.executable, "-c", script, folder / "modèle.onnx"],
        env={**kept, "PYTHONPATH": str(Path(__file__).parents[2]), **variables},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().isdigit()


@pytest.mark.parametrize("timed", [False, True])
def test_threads_spin_only_where_they_are_timed(content, timed, monkeypatch):
    monkeypatch.setattr("onnxq.runtime.session.free_processors", lambda: 3)
    options = open_session(content("chain"), timed=timed)._session.get_session_options()
    spinning = options.get_session_config_entry("session.intra_op.allow_spinning") if not timed else "1"
    assert (spinning, options.intra_op_num_threads) == (("1", 0) if timed else ("0", 3))
    assert (
        open_session(content("chain"), threads=2, timed=timed)._session.get_session_options().intra_op_num_threads == 2
    )
