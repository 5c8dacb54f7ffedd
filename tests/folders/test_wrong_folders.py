"""What cannot be done with a folder is said in one line before work starts; what is written is whole or not there."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import onnxq
from onnxq.cli._app import app
from onnxq.core import atomic, staging
from tests.language_models import (
    CONFIG,
    TEXT,
    encoder,
    genai_config,
    genai_decoder,
    genai_folder,
    write,
)

QUICK: dict[str, Any] = {"preset": "w8", "benchmark": False}


def nothing(folder: Path) -> None:
    folder.mkdir()


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (nothing, "is empty; pass a folder of onnxruntime-genai, optimum"),
    "no model": (lambda f: write(f, {"config.json": {}}), "holds no ONNX model"),
    "no kind": (lambda f: write(f, {"m.onnx": encoder()}), "has ONNX files, but no genai_config.json"),
    "two kinds": (
        lambda f: write(f, {"model.onnx": encoder(), "onnx/model.onnx": encoder(), "config.json": {}}),
        r"is a folder of transformers.js \(onnx/model.onnx\) and optimum \(model.onnx\) at once",
    ),
    "genai and onnx": (
        lambda f: write(genai_folder(f, with_tokenizer=False), {"onnx/model.onnx": encoder(), "config.json": {}}),
        r"is a folder of onnxruntime-genai \(genai_config.json\) and transformers.js",
    ),
    "genai and optimum": (
        lambda f: write(
            genai_folder(f, with_tokenizer=False), {"decoder_model_merged.onnx": encoder(), "config.json": {}}
        ),
        r"is a folder of onnxruntime-genai \(genai_config.json\) and optimum \(decoder_model_merged.onnx\) at once",
    ),
    "missing file": (
        lambda f: write(f, {"other.onnx": encoder(), "genai_config.json": genai_config()}),
        "genai_config.json: decoder names 'model.onnx', which is not in",
    ),
    "no json": (lambda f: write(f, {"model.onnx": encoder(), "genai_config.json": "{"}), "config.json: is no JSON"),
    "a list": (lambda f: write(f, {"model.onnx": encoder(), "config.json": "[]"}), "config.json: holds a list"),
    "no section": (
        lambda f: write(f, {"model.onnx": encoder(), "genai_config.json": {"model": 3}}), "has no object 'model'",
    ),
    "caches that the config names otherwise": (
        lambda f: write(f, {"model.onnx": genai_decoder("kv.%d.%s"), "genai_config.json": genai_config()}),
        r"model.decoder.inputs.past_key_names names the cache 'past_key_values.0.key'.*it has kv.0.key",
    ),
    "caches that nothing pairs": (
        lambda f: write(f, {"model.onnx": genai_decoder("kv_memory_%d_%s"), "config.json": {}}),
        "input 'kv_memory_0_key' is a cache that no output gives anew",
    ),
    "only a variant": (
        lambda f: write(f, {"onnx/model_q4.onnx": encoder(), "config.json": {}}), "original model.onnx is not there",
    ),
    "damaged graph": (lambda f: write(f, {"model.onnx": "no protobuf", "config.json": {}}), "model.onnx"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_folder_is_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, said = WRONG[name]
    make(tmp_path / "in")
    monkeypatch.setattr("onnxq.folders.quantizing_folder.quantize_by", None)  # no work starts
    with pytest.raises(onnxq.OnnxqError, match=said):
        onnxq.quantize_folder(tmp_path / "in", tmp_path / "out", **QUICK)
    code = app.main(["quantize", str(tmp_path / "in"), "-o", str(tmp_path / "out")], standalone_mode=False)
    error = capsys.readouterr().err.strip()
    assert code == 1 and error.startswith("error: ") and "\n" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def wrong_places(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    folder = tmp_path / "in"
    file = tmp_path / "file"
    file.write_text("")
    full = tmp_path / "full"
    full.mkdir()
    (full / "x").write_text("")
    return {
        "itself": (tmp_path / "sub" / ".." / "in", "is the input, which is never changed"),
        "inside": (folder / "out", "is in the input"),
        "around": (tmp_path, "is around the input"),
        "a file": (file, "is a file, and the result is a folder"),
        "nowhere": (tmp_path / "no" / "out", "does not exist; create it"),
        "full": (full, "exists and is not empty; name another folder, or replace it with --force"),
    }


@pytest.mark.parametrize("place", ["itself", "inside", "around", "a file", "nowhere", "full"])
def test_a_wrong_place_is_one_line(tmp_path: Path, place: str) -> None:
    folder = genai_folder(tmp_path / "in", with_tokenizer=False)
    output, said = wrong_places(tmp_path)[place]
    with pytest.raises(onnxq.OnnxqError, match=said):
        onnxq.quantize_folder(folder, output, **QUICK)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"calibration": "p.txt"}, "there is no tokenizer.json in"),
        ({"tokenizer": "t.json"}, "only goes with a text"),
        ({"search_state": "in/s.json"}, "--search-state in/s.json: lies in .*, which is a model's own"),
        ({"bitz": 4}, "no option 'bitz'; did you mean 'bits'"),
        ({"workload": "talk"}, "--workload talk"),
    ],
)
def test_a_wrong_option_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text(TEXT)
    folder = genai_folder(tmp_path / "in", with_tokenizer=False)
    with pytest.raises(onnxq.OnnxqError, match=said):
        onnxq.quantize_folder(folder, tmp_path / "out", **QUICK, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.text
def test_samples_of_one_graph_are_none_for_several(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"encoder_model.onnx": encoder(), "model.onnx": encoder(), "config.json": CONFIG})
    with pytest.raises(onnxq.CalibrationError, match="has 2 graphs of different inputs; pass a text file"):
        onnxq.quantize_folder(folder, tmp_path / "out", calibration="x.npz", **QUICK)


def test_force_replaces_a_folder(tmp_path: Path) -> None:
    folder, out = genai_folder(tmp_path / "in", with_tokenizer=False), tmp_path / "out"
    write(out, {"old.txt": "old"})
    onnxq.quantize_folder(folder, out, force=True, **QUICK)
    assert sorted(path.name for path in out.iterdir()) == ["genai_config.json", "model.onnx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = genai_folder(tmp_path / "in", with_tokenizer=False)

    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copy", full)
    out = tmp_path / "out"
    said = f"^{re.escape(str(out / 'genai_config.json'))}: cannot be written: No space.*free space there"
    with pytest.raises(onnxq.OnnxqError, match=said):
        onnxq.quantize_folder(folder, out, **QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_disk_that_is_full_for_a_graph_names_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = genai_folder(tmp_path / "in", with_tokenizer=False), tmp_path / "out"

    def full(target: object, content: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(atomic, "write", full)
    with pytest.raises(onnxq.OnnxqError, match="cannot be written: No space") as caught:
        onnxq.quantize_folder(folder, out, **QUICK)
    assert str(out / "model.onnx") in str(caught.value) and ".onnxq-" not in str(caught.value)


def test_what_cannot_be_put_in_place_brings_the_old_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = write(tmp_path / "old", {"a": "1"}), write(tmp_path / "new", {"b": "2"})

    def refuse(self: Path, target: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="Input/output"):
        staging._place(new, old)
    assert [path.name for path in old.iterdir()] == ["a"]


KILLED = """
import os, signal, sys
import onnxq
from onnxq.{package} import {module} as place
real = place.{name}
def die(*args, **kwargs):
    if {late}:
        real(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
place.{name} = die
onnxq.quantize_folder(sys.argv[1], sys.argv[2], preset="w8", benchmark=False)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(
    ("package", "module", "name", "late"),
    [
        ("folders", "quantizing_folder", "_finish", False),
        ("core", "staging", "_sync", False),
        ("core", "staging", "_place", True),
    ],
)
def test_a_kill_leaves_all_or_nothing_and_the_next_run_cleans_up(
    tmp_path: Path, package: str, module: str, name: str, late: bool
) -> None:
    folder, out = genai_folder(tmp_path / "in", with_tokenizer=False), tmp_path / "out"
    program = KILLED.format(package=package, module=module, name=name, late=late)
    done = subprocess.run([sys.executable, "-c", program, str(folder), str(out)], check=False)
    assert done.returncode == -9 and out.exists() == late
    assert len(list(tmp_path.iterdir())) == 2, "beside the input, the output or what it was being made of"
    onnxq.quantize_folder(folder, out, force=late, **QUICK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert json.loads((out / "genai_config.json").read_text()) == genai_config()
    assert sorted(path.name for path in out.iterdir()) == ["genai_config.json", "model.onnx"]
