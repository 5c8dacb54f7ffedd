"""A folder in, a folder out: every graph quantized, companions copied, configurations up to date."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxq
from onnxq.cli._app import app
from onnxq.folders.configs import js_dtype, updated_genai_config, updated_js_config
from onnxq.recipe.recipe import Recipe
from tests.language_models import (
    CONFIG,
    FLOAT,
    HEAD,
    TEXT,
    WIDTH,
    Graph,
    decoder,
    encoder,
    genai_config,
    genai_decoder,
    genai_folder,
    seq2seq_files,
    tokenizer,
    value,
    write,
)
from tests.runtime_version import CACHES

pytestmark = pytest.mark.text

QUICK: dict[str, Any] = {"seconds": 0.02, "cache": False}


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def opens(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def prompts(place: Path) -> Path:
    path = place / "prompts.txt"
    path.write_text(TEXT)
    return path


def test_a_genai_folder_keeps_its_names_and_its_caches(tmp_path: Path) -> None:
    folder, out = genai_folder(tmp_path / "in"), tmp_path / "out"
    write(folder, {"chat_template.jinja": "{{ messages }}", "extra/notes.txt": "kept"})
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    made = onnxq.quantize_folder(folder, out, calibration=prompts(tmp_path), preset="w4", **QUICK)
    assert made.kind == "onnxruntime-genai" and [graph.output for graph in made.graphs] == ["model.onnx"]
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
        "model.onnx", "genai_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "extra/notes.txt",
    }  # fmt: skip
    assert "MatMulNBits" in operators(out / "model.onnx")
    assert json.loads((out / "genai_config.json").read_text()) == genai_config()
    names = [[value.name for value in opens(place / "model.onnx").get_inputs()] for place in (folder, out)]
    assert names[0] == names[1]
    assert made.generated is not None and made.generated.tokens == 6 * 33
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = made.graphs[0].result
    assert result is not None and result.workload is not None and result.output == out / "model.onnx"
    assert "decode" in made.summary() and "onnxruntime_genai.Model" in made.summary()


def test_a_genai_folder_may_keep_the_config_of_its_model(tmp_path: Path) -> None:
    folder, out = genai_folder(tmp_path / "in", with_tokenizer=False), tmp_path / "out"
    write(folder, {"config.json": CONFIG})  # as the folders have that are published
    made = onnxq.quantize_folder(folder, out, preset="w8", **QUICK)
    assert made.kind == "onnxruntime-genai" and json.loads((out / "config.json").read_text()) == CONFIG
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "genai_config.json", "model.onnx"]


def test_every_graph_of_an_encoder_decoder_is_calibrated_on_what_the_others_give(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {**seq2seq_files(), "config.json": CONFIG, "model.safetensors": "weights"})
    tokenizer(folder)
    out = tmp_path / "out"
    made = onnxq.quantize_folder(folder, out, calibration=prompts(tmp_path), preset="w8a8", **QUICK)
    assert made.kind == "optimum" and made.left_out == ["model.safetensors"]
    assert [graph.output for graph in made.graphs] == sorted(seq2seq_files())
    for graph in made.graphs:
        assert "QuantizeLinear" in operators(out / graph.output)
        opens(out / graph.output)
        assert graph.result is not None and graph.result.comparison is not None
        assert graph.result.sqnr_db is not None and graph.result.sqnr_db > 10
    phases = {graph.source: graph.result.workload["phases"] for graph in made.graphs}  # type: ignore[union-attr, index]
    assert [phase["name"] for phase in phases["decoder_model.onnx"]] == ["prefill"]
    (decode,) = phases["decoder_with_past_model.onnx"]
    assert (decode["name"], decode["past"]) == ("decode", 64)
    assert phases["encoder_model.onnx"][0]["tokens"] == 128
    assert made.generated is not None and made.generated.agreement > 0.5
    assert made.hints == [f"ORTModelForSeq2SeqLM.from_pretrained({str(out)!r})"]


@pytest.mark.parametrize(("preset", "suffix", "dtype"), [("w4", "_q4", "q4"), ("w8a8-dynamic", "_quantized", "q8")])
def test_transformers_js_finds_graphs_by_their_form(tmp_path: Path, preset: str, suffix: str, dtype: str) -> None:
    config = {"model_type": "llama", "transformers.js_config": {"use_external_data_format": True, "device": "cpu"}}
    files = {"onnx/model.onnx": genai_decoder(), "onnx/model_q4f16.onnx": encoder(), "config.json": config}
    folder, out = write(tmp_path / "in", files), tmp_path / "out"
    made = onnxq.quantize_folder(folder, out, preset=preset, **QUICK)
    assert [path.name for path in (out / "onnx").iterdir()] == [f"model{suffix}.onnx"]
    section = json.loads((out / "config.json").read_text())["transformers.js_config"]
    assert section == {"use_external_data_format": False, "device": "cpu", "dtype": dtype}
    assert made.updated == ["config.json"] and made.left_out == ["onnx/model_q4f16.onnx"]


def test_sentence_transformers_keep_their_modules(tmp_path: Path) -> None:
    files = {
        "modules.json": "[]", "config.json": {}, "onnx/model.onnx": encoder(), "2_Dense/model.safetensors": "needed",
        "onnx/model_O3.onnx": encoder(), "model.safetensors": "float",
    }  # fmt: skip
    folder, out = write(tmp_path / "in", files), tmp_path / "out"
    tokenizer(folder)
    made = onnxq.quantize_folder(folder, out, calibration=prompts(tmp_path), preset="w8a8", **QUICK)
    assert made.kind == "sentence-transformers"
    assert (out / "2_Dense" / "model.safetensors").is_file() and (out / "onnx" / "model.onnx").is_file()
    assert sorted(made.left_out) == ["model.safetensors", "onnx/model_O3.onnx"]


def test_a_graph_with_nothing_to_quantize_is_copied(tmp_path: Path) -> None:
    plain = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Add", ["x", "x"], ["y"], name="n")], "g",
            [onnx.helper.make_tensor_value_info("x", 1, [2])], [onnx.helper.make_tensor_value_info("y", 1, [2])],
        ), opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8,
    )  # fmt: skip
    folder = write(tmp_path / "in", {"encoder_model.onnx": plain, "decoder_model.onnx": encoder(), "config.json": {}})
    made = onnxq.quantize_folder(folder, tmp_path / "out", preset="w8", **QUICK)
    copied = next(graph for graph in made.graphs if graph.result is None)
    assert copied.output == "encoder_model.onnx" and copied.reason in made.summary()
    assert (tmp_path / "out" / "encoder_model.onnx").read_bytes() == (folder / "encoder_model.onnx").read_bytes()
    only = write(tmp_path / "only", {"model.onnx": plain, "config.json": {}})
    with pytest.raises(onnxq.RecipeError, match="only: no graph was quantized: "):
        onnxq.quantize_folder(only, tmp_path / "none", preset="w8", **QUICK)
    assert not (tmp_path / "none").exists()


def test_a_link_counts_as_what_it_leads_to(tmp_path: Path) -> None:
    store = genai_folder(tmp_path / "blobs")
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for path in store.iterdir():
        (folder / path.name).symlink_to(path)
    made = onnxq.quantize_folder(folder, tmp_path / "out", preset="w8", **QUICK)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in store.iterdir())
    assert made.copied == ["genai_config.json", "tokenizer.json", "tokenizer_config.json"]


def test_the_command_prints_a_line_a_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = genai_folder(tmp_path / "in")
    text = str(prompts(tmp_path))
    arguments = ["quantize", str(folder), "-c", text, "-p", "w8", "--workload", "prefill"]
    assert app.main([*arguments, "--json", "-o", str(tmp_path / "a")], standalone_mode=False) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["kind"] == "onnxruntime-genai" and body["graphs"][0]["output"] == "model.onnx"
    phases = body["graphs"][0]["workload"]["phases"]
    assert [(phase["name"], phase["passes"]) for phase in phases] == [("prefill", 1), ("decode", 0)]
    assert body["generated"]["agreement"] > 0.9
    assert app.main(arguments, standalone_mode=False) == 0
    assert (tmp_path / "in.w8" / "model.onnx").is_file()
    shown = capsys.readouterr().out
    assert f"{folder} -> {tmp_path / 'in.w8'}" in shown
    assert [line.split()[:2] for line in shown.splitlines() if line.startswith("model.onnx")] == [["model.onnx", "w8"]]


def test_configurations_change_only_where_they_must() -> None:
    config = genai_config()
    updated = updated_genai_config(config, {"cache_type": "int8"})
    assert updated["model"]["decoder"].pop("cache_type") == "int8" and updated == config
    with pytest.raises(onnxq.ModelError, match="has no section model.decoder"):
        updated_genai_config({"model": {}}, {})
    both = updated_js_config({"a": 1}, {"encoder_model": "q8", "decoder_model_merged": "q4"})
    assert both == {"a": 1, "transformers.js_config": {"dtype": {"encoder_model": "q8", "decoder_model_merged": "q4"}}}


@CACHES
@pytest.mark.parametrize(("form", "size"), [("int8", HEAD), ("int4", HEAD // 2)])
def test_genai_is_told_of_caches_that_are_shorter(tmp_path: Path, form: str, size: int) -> None:
    folder, out = genai_folder(tmp_path / "in"), tmp_path / "out"
    made = onnxq.quantize_folder(folder, out, calibration=prompts(tmp_path), preset="w8", kv_cache=form, **QUICK)
    config = json.loads((out / "genai_config.json").read_text())
    assert config == genai_config(head_size=size)
    assert made.updated == (["genai_config.json"] if size != HEAD else [])
    kinds = {value.name: value.type for value in opens(out / "model.onnx").get_inputs()}
    assert kinds["past_key_values.0.key"] == {"int8": "tensor(int8)", "int4": "tensor(uint8)"}[form]
    assert made.generated is not None and made.generated.agreement > 0.5


def test_integer_caches_are_for_runtimes_that_take_them(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"model.onnx": decoder(past=True), "config.json": CONFIG})
    with pytest.raises(onnxq.RecipeError, match="--kv-cache int8: optimum begins with float caches"):
        onnxq.quantize_folder(folder, tmp_path / "out", preset="w8", kv_cache="int8")


@pytest.mark.parametrize(
    ("preset", "bits", "halves", "dtype"),
    [
        ("float", None, False, "fp32"), ("float", None, True, "fp16"), ("mixed", None, False, "q8"),
        ("w8", None, True, "q8"), ("w4", None, True, "q4f16"), ("w4", 8, False, "q8"), ("w2", None, False, "q2"),
        ("nf4", None, False, "bnb4"), ("w8a8", None, False, "q8"), ("lut4", None, False, "q4"),
    ],
)  # fmt: skip
def test_forms_have_the_names_of_transformers_js(preset: str, bits: int | None, halves: bool, dtype: str) -> None:
    assert js_dtype(preset, Recipe(preset=preset if preset in ("w4", "w2") else "auto", bits=bits), halves) == dtype


def test_without_text_nothing_is_known_of_quality(tmp_path: Path) -> None:
    files = {"decoder_model.onnx": decoder(past=False), "decoder_with_past_model.onnx": decoder(past=True)}
    folder = write(tmp_path / "in", {**files, "config.json": CONFIG})
    made = onnxq.quantize_folder(folder, tmp_path / "out", preset="w8a8-dynamic", **QUICK)
    assert made.generated is None
    results = [graph.result for graph in made.graphs]
    assert all(result is not None and result.workload is not None for result in results)


def test_patterns_are_for_the_graphs_that_have_such_nodes(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {**seq2seq_files(), "config.json": CONFIG})
    made = onnxq.quantize_folder(
        folder, tmp_path / "out", preset="w8a8-dynamic", exclude=["/fc1"], benchmark=False, cache=False
    )
    kept = {graph.source: {name for name, _, _ in graph.result.kept_float} for graph in made.graphs if graph.result}
    assert "/fc1" in kept["encoder_model.onnx"] and len(kept) == 3
    only = onnxq.quantize_folder(folder, tmp_path / "only", preset="w8a8-dynamic", include=["/fc*"], benchmark=False)
    copied = {graph.source: graph.reason for graph in only.graphs if graph.result is None}
    assert sorted(copied) == ["decoder_model.onnx", "decoder_with_past_model.onnx"]
    assert set(copied.values()) == {"not named by --include (/fc*)"}
    with pytest.raises(onnxq.RecipeError, match="decoder_model.onnx: --exclude: '/fc7' matches no node"):
        onnxq.quantize_folder(folder, tmp_path / "no", preset="w8", exclude=["/fc7"], benchmark=False)
    with pytest.raises(onnxq.ModelError, match="is a folder; use onnxq.quantize_folder"):
        onnxq.quantize(folder, tmp_path / "no.onnx")


@pytest.mark.report
def test_a_folder_has_a_page_a_graph(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"encoder_model.onnx": encoder(), "model.onnx": encoder(), "config.json": CONFIG})
    made = onnxq.quantize_folder(
        folder, tmp_path / "out", preset="w8", report=tmp_path / "page.html", benchmark=False, **QUICK
    )
    pages = sorted(path.name for path in tmp_path.glob("*.html"))
    assert pages == sorted(f"page.{Path(graph.source).stem}.html" for graph in made.graphs)
    for graph in made.graphs:
        assert graph.result is not None and graph.result.report is not None
        text = graph.result.report.read_text("utf8")
        assert str(tmp_path / "out" / graph.output) in text
        assert f"onnxq quantize {folder} -o {tmp_path / 'out'} " in text
        assert str(graph.result.report) in made.summary()
    assert not list((tmp_path / "out").glob("*.html"))


@pytest.mark.report
def test_a_page_of_one_graph_has_the_name_that_was_given(tmp_path: Path) -> None:
    folder = genai_folder(tmp_path / "in")
    onnxq.quantize_folder(folder, tmp_path / "out", preset="w8", report=tmp_path / "one.html", benchmark=False, **QUICK)
    assert [path.name for path in tmp_path.glob("*.html")] == ["one.html"]


@pytest.mark.report
@pytest.mark.parametrize("place", ["in/page.html", "out/page.html", "in"])
def test_a_page_is_in_neither_folder(tmp_path: Path, place: str) -> None:
    folder = genai_folder(tmp_path / "in", with_tokenizer=False)
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(onnxq.OnnxqError, match=r"--report .*: lies in .*; name a file outside"):
        onnxq.quantize_folder(folder, tmp_path / "out", preset="w8", report=tmp_path / place, **QUICK)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert not (tmp_path / "out").exists()


def test_a_search_that_was_killed_goes_on_from_its_file_beside_the_folder(tmp_path: Path) -> None:
    folder, out, kept = genai_folder(tmp_path / "in"), tmp_path / "out", tmp_path / "out.search.json"
    options: dict[str, Any] = {"preset": "w8a8", "min_sqnr": 34.0, "benchmark": False, "cache": False, "budget": 300}
    options["calibration"] = prompts(tmp_path)
    compared: list[int] = []

    def counted(step: str, done: int, total: int | None) -> None:
        if step == "model.onnx: compare" and not done:
            compared.append(1)

    def killed(step: str, done: int, total: int | None) -> None:
        counted(step, done, total)
        if len(compared) > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        onnxq.quantize_folder(folder, out, progress=killed, **options)
    assert kept.is_file() and not out.exists()
    compared.clear()
    onnxq.quantize_folder(folder, out, progress=counted, resume=True, **options)
    assert opens(out / "model.onnx") and not kept.exists()
    resumed = len(compared)
    compared.clear()
    onnxq.quantize_folder(folder, tmp_path / "whole", progress=counted, **options)
    assert 0 < resumed <= len(compared) - 3  # what was measured is known


KILLED = """
import os, signal, sys
import onnxq
def watch(step, done, total):
    if "finetune (loss" in step and done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
onnxq.quantize_folder(sys.argv[1], sys.argv[2], calibration=sys.argv[3], finetune=True, epochs=4, preset="w4",
                      benchmark=False, progress=watch)
"""


@pytest.mark.torch
@pytest.mark.text
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_finetuning_that_was_killed_goes_on_from_its_file_beside_the_folder(tmp_path: Path) -> None:
    folder, out, whole = genai_folder(tmp_path / "in"), tmp_path / "out", tmp_path / "whole"
    texts = prompts(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(out), str(texts)], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert not out.exists() and Path(f"{out}.finetune").is_file()
    learning: dict[str, Any] = {"calibration": texts, "finetune": True, "epochs": 4, "preset": "w4", "benchmark": False}
    result = onnxq.quantize_folder(folder, out, **learning)
    assert any("went on from where an interrupted run had stopped" in line for line in result.warnings)
    onnxq.quantize_folder(folder, whole, **learning)
    assert (out / "model.onnx").read_bytes() == (whole / "model.onnx").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "whole", texts.name}


def stateful() -> onnx.ModelProto:
    """A cell whose state goes in as ``before`` and comes out as ``behind``: names that nothing pairs."""
    g = Graph()
    joined = g.add("Concat", ["x", "before"], "joined", axis=-1)
    g.add("Tanh", [g.linear(joined, "mixed", 2 * WIDTH, WIDTH)], "behind")
    g.linear("behind", "y", WIDTH, WIDTH)
    sides = [value(name, FLOAT, [1, WIDTH]) for name in ("x", "before", "y", "behind")]
    return g.model(sides[:2], sides[2:])


def test_states_are_carried_through_a_folder_of_one_graph(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"model.onnx": stateful(), "config.json": {}})
    random = np.random.default_rng(0)
    samples = [{"x": random.standard_normal((1, WIDTH)).astype(np.float32)} for _ in range(12)]
    options: dict[str, Any] = {"calibration": samples, "preset": "w8a8", "benchmark": False}
    with pytest.raises(onnxq.OnnxqError, match="before"):
        onnxq.quantize_folder(folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    onnxq.quantize_folder(folder, tmp_path / "out", states={"behind": "before"}, **options)
    alone = tmp_path / "alone.onnx"
    onnxq.quantize(folder / "model.onnx", alone, states={"behind": "before"}, **options)
    assert (tmp_path / "out" / "model.onnx").read_bytes() == alone.read_bytes()
    with pytest.raises(onnxq.OnnxqError, match="--state"):
        onnxq.quantize_folder(folder, tmp_path / "more", states={"behind": "nothing"}, **options)
    assert not (tmp_path / "more").exists()


def test_states_are_of_a_folder_of_one_graph(tmp_path: Path) -> None:
    pair = write(tmp_path / "pair", {**seq2seq_files(), "config.json": CONFIG})
    with pytest.raises(
        onnxq.OnnxqError, match="--state: is of one graph, and .* has [23]; quantize its files one by one"
    ):
        onnxq.quantize_folder(pair, tmp_path / "more", states={"logits": "input_ids"})


def test_statistics_are_of_a_folder_of_one_graph(tmp_path: Path) -> None:
    folder, stats = genai_folder(tmp_path / "in"), tmp_path / "s.npz"
    onnxq.calibrate(folder / "model.onnx", stats, calibration=prompts(tmp_path))
    onnxq.quantize_folder(folder, tmp_path / "out", statistics=stats, preset="w8a8", benchmark=False, force=True)
    assert "QuantizeLinear" in operators(tmp_path / "out" / "model.onnx")
    pair = write(tmp_path / "pair", {**seq2seq_files(), "config.json": CONFIG})
    with pytest.raises(
        onnxq.OnnxqError, match="--stats: is of one graph, and .* has [23]; quantize its files one by one"
    ):
        onnxq.quantize_folder(pair, tmp_path / "more", statistics=stats)
