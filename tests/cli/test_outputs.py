"""No command writes over what it reads: every output of every command against every input of it."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime
import pytest

from onnxq.cli._app import app
from onnxq.cli.options.shared_options import FILE
from onnxq.graph.files import io, saving

# For each command: its outputs with their options, and its inputs with the arguments that name them.
OUTPUTS = {
    "quantize": {"output": "-o", "search_state": "--search-state", "report": "--report"},
    "calibrate": {"output": "-o"},
    "diagnose": {"recipe_out": "--recipe-out"},
    "compare": {},
    "benchmark": {},
    "inspect": {},
    "diff": {},
    "dequantize": {"output": "-o"},
    "report": {"output": "-o"},
    "presets": {},
    "targets": {},
}
INPUTS = {
    "quantize": {"model": "", "stats": "--stats", "recipe": "--recipe", "custom_ops": "--custom-ops"},
    "calibrate": {"model": "", "custom_ops": "--custom-ops"},
    "diagnose": {"float_model": "", "quantized_model": "", "recipe": "--recipe", "custom_ops": "--custom-ops"},
    "compare": {"float_model": "", "quantized_model": "", "custom_ops": "--custom-ops"},
    "benchmark": {"models": "", "custom_ops": "--custom-ops"},
    "inspect": {"model": ""},
    "diff": {"first": "", "second": ""},
    "dequantize": {"model": "", "custom_ops": "--custom-ops"},
    "report": {"result": ""},
    "presets": {},
    "targets": {},
}
PROGRAMS = {"engine_python", "node_modules"}
"""What is run, not read."""
TRIED_ELSEWHERE = {"finetune", "lint", "convert-config"}
"""Commands whose outputs are checked against their inputs in tests of their own."""
NOT_TRIED = {"quantize": {"tokenizer"}, "calibrate": {"to"}, "diagnose": {"save_tensors"}}
"""Paths that are given with others only, and a folder, which is never an input."""
BESIDE = ("weights", "calibration")
"""Inputs that are no parameter of the type FILE: the model's weights, and the samples."""


def test_the_table_has_every_path_of_every_command() -> None:
    context = click.Context(app)
    assert set(app.list_commands(context)) == {*OUTPUTS, *TRIED_ELSEWHERE}
    for name in OUTPUTS:
        command = app.get_command(context, name)
        assert command is not None
        paths = {parameter.name for parameter in command.params if parameter.type is FILE}
        assert paths - PROGRAMS - NOT_TRIED.get(name, set()) == {*OUTPUTS[name], *INPUTS[name]}, name


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, module_cnn: onnx.ModelProto) -> dict[str, Path]:
    """Each input as a file."""
    import onnxq

    folder = tmp_path_factory.mktemp("inputs")
    model, stats = folder / "net.onnx", folder / "stats.npz"
    saving.save(io.load(module_cnn), model, threshold=1000)
    data = folder / "data.npz"
    np.savez(data, x=np.random.default_rng(1).standard_normal((4, 16, 8, 8)).astype(np.float32))
    onnxq.calibrate(model, stats, calibration=data)
    quantized, recipe = folder / "q.onnx", folder / "recipe.yaml"
    onnxq.quantize(model, quantized, calibration=data, preset="w8a8", benchmark=False)
    recipe.write_text("preset: w8a8\n")
    library = folder / "ops.so"
    library.write_bytes(b"operators")
    return {
        "model": model,
        "float_model": model,
        "quantized_model": quantized,
        "stats": stats,
        "recipe": recipe,
        "custom_ops": library,
        "weights": io.weight_files(model)[0],
        "calibration": data,
    }


@pytest.fixture(scope="module")
def module_cnn() -> onnx.ModelProto:
    from tests.cli.conftest import build_cnn

    return build_cnn()


CASES = [
    pytest.param(command, output, used, marks=[pytest.mark.report] if output == "--report" else [])
    for command, outputs in OUTPUTS.items()
    if command not in ("report", "dequantize")  # take no samples; their own tests have them
    for output in outputs.values()
    for used in (*INPUTS[command], *BESIDE)
]


@pytest.mark.parametrize("link", [False, True], ids=["itself", "link"])
@pytest.mark.parametrize(("command", "output", "used"), CASES)
def test_an_output_that_is_an_input_is_refused(run, written, tmp_path, monkeypatch, command, output, used, link):
    monkeypatch.setattr(onnxruntime.SessionOptions, "register_custom_ops_library", lambda options, path: None)
    before = {path: path.read_bytes() for path in written.values()}
    place = written[used]
    if link:
        place = tmp_path / "link"
        place.symlink_to(written[used])
    arguments = [command, *(item for name, option in INPUTS[command].items() for item in (option, written[name]))]
    if used == "calibration":  # saved statistics take the place of samples
        arguments = [a for a in arguments if a not in ("--stats", written["stats"])]
    if used != "stats":
        arguments += ["-c", written["calibration"]]
    if command == "quantize" and output != "-o":
        arguments += ["-o", tmp_path / "out.onnx"]
    result = run(*[a for a in arguments if a != ""], output, place)
    assert result.exit_code == 1, result.output
    assert "is an input of this run" in result.stderr
    assert {path: path.read_bytes() for path in written.values()} == before
    assert not [path for path in tmp_path.iterdir() if path.name != "link"]


def test_a_search_is_not_kept_in_the_model(run, written, tmp_path):
    out = tmp_path / "out.onnx"
    result = run("quantize", written["model"], "-c", written["calibration"], "-o", out, "--search-state", out)
    assert result.exit_code != 0
    assert "is the output itself" in result.stderr
    assert not out.exists()
