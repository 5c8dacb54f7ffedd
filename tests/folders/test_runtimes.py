"""The folders that come out are opened by the very runtimes that they are for, which answer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxq
from onnxq.data.text.language_run import LanguageModel
from onnxq.request.used_as import part_of
from onnxq.runtime.session import open_session
from tests.language_models import (
    HEADS,
    LAYERS,
    TEXT,
    VOCABULARY,
    WIDTH,
    decoder,
    encoder,
    genai_decoder,
    genai_folder,
    seq2seq_files,
    tokenizer,
    write,
)

QUICK: dict[str, Any] = {"seconds": 0.02, "cache": False}
COUNT = 16
PROMPT = [39, 68, 75, 75, 78, 220, 83, 71]

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY, "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
    "head_dim": WIDTH // HEADS, "intermediate_size": WIDTH, "bos_token_id": 256, "eos_token_id": 257,
    "pad_token_id": 257, "max_position_embeddings": 256,
}  # fmt: skip
T5 = {
    "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": VOCABULARY, "d_model": WIDTH,
    "num_layers": LAYERS, "num_decoder_layers": LAYERS, "num_heads": HEADS, "d_kv": WIDTH // HEADS,
    "decoder_start_token_id": 1, "eos_token_id": 257, "pad_token_id": 258, "is_encoder_decoder": True,
}  # fmt: skip
BERT = {
    "model_type": "bert", "architectures": ["BertForSequenceClassification"], "vocab_size": VOCABULARY,
    "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": 1, "max_position_embeddings": 256,
    "id2label": {str(index): f"LABEL_{index}" for index in range(4)},
}  # fmt: skip
FAST = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 256}


def quantized(folder: Path, preset: str) -> Path:
    """The folder quantized on texts."""
    tokenizer(folder)
    write(folder, {"tokenizer_config.json": FAST})
    text = folder.parent / "prompts.txt"
    text.write_text(TEXT)
    out = folder.parent / f"{folder.name}.{preset}"
    made = onnxq.quantize_folder(folder, out, calibration=text, preset=preset, **QUICK)
    assert all(graph.result is not None for graph in made.graphs)
    return out


def generated_by_plain_runtime(graphs: Sequence[Path], start: int = 0) -> list[int]:
    """What the graphs of a folder (a decoder, or an encoder and its two decoders) say in plain ONNX Runtime."""
    parts = [part_of(open_session(path), str(path)) for path in graphs]
    model = LanguageModel(parts[1], parts[2], parts[0], start) if len(parts) > 1 else LanguageModel(parts[0])
    steps = list(model.steps(np.array(PROMPT), COUNT - 1))
    return [int(step.logits[0, -1].argmax()) for step in steps if step.logits is not None]


def same_start(one: Sequence[int], other: Sequence[int]) -> int:
    """Equal tokens up to the first that differs: from there on the texts are others."""
    return int(np.cumprod(np.asarray(one) == np.asarray(other)).sum())


# onnxruntime-genai.


def generated_by_genai(folder: Path, count: int = COUNT) -> list[int]:
    import onnxruntime_genai as genai

    model = genai.Model(str(folder))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(PROMPT) + count, min_length=len(PROMPT) + count, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array(PROMPT, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)]


@pytest.mark.genai
@pytest.mark.text
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_genai_generates_with_integer_caches(tmp_path: Path, form: str) -> None:
    folder = genai_folder(tmp_path / "in")
    text = tmp_path / "prompts.txt"
    text.write_text(TEXT)
    out = tmp_path / "out"
    onnxq.quantize_folder(folder, out, calibration=text, preset="w8", kv_cache=form, **QUICK)
    plain = generated_by_plain_runtime([out / "model.onnx"])
    assert same_start(generated_by_genai(out)[len(PROMPT) :], plain) >= COUNT // 2


@pytest.mark.genai
@pytest.mark.text
@pytest.mark.parametrize("preset", ["w8", "w4", "w8a8-dynamic", "w8a8"])
def test_genai_generates(tmp_path: Path, preset: str) -> None:
    folder = genai_folder(tmp_path / "in")
    out = quantized(folder, preset)
    answer = generated_by_genai(out)[len(PROMPT) :]
    assert len(answer) == COUNT and max(answer) < VOCABULARY
    assert same_start(answer, generated_by_plain_runtime([out / "model.onnx"])) >= COUNT // 2
    if preset != "w4":  # weights that were drawn, not learned, leave little of a choice at 4 bits
        assert same_start(answer, generated_by_genai(folder)[len(PROMPT) :]) >= 1


# optimum.


def generated_by_optimum(folder: Path, *, seq2seq: bool) -> list[int]:
    import torch
    from optimum import onnxruntime as optimum

    ids = torch.tensor([PROMPT])
    lengths = {"max_new_tokens": COUNT, "min_new_tokens": COUNT}
    kind = optimum.ORTModelForSeq2SeqLM if seq2seq else optimum.ORTModelForCausalLM
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = kind.from_pretrained(str(folder))
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, **lengths)
    return [int(token) for token in made[0]]


@pytest.mark.optimum
@pytest.mark.text
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("preset", ["w8a8-dynamic", "w4"])
@pytest.mark.parametrize("seq2seq", [False, True])
def test_optimum_generates(tmp_path: Path, preset: str, seq2seq: bool) -> None:
    graphs = seq2seq_files() if seq2seq else {"model.onnx": decoder(past=True)}
    out = quantized(write(tmp_path / "in", {**graphs, "config.json": T5 if seq2seq else LLAMA}), preset)
    answer = generated_by_optimum(out, seq2seq=seq2seq)[1 if seq2seq else len(PROMPT) :]
    plain = generated_by_plain_runtime([out / name for name in graphs], start=1)
    assert len(answer) == COUNT and same_start(answer, plain) >= COUNT // 2


@pytest.mark.optimum
@pytest.mark.text
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3"])
def test_exports_of_optimum_generate(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    import torch
    import transformers
    from optimum.exporters.onnx import main_export

    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 256,
        "eos_token_id": 257, "pad_token_id": 257, "head_dim": 16,
    }  # fmt: skip
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**shape))
    model.save_pretrained(tmp_path / "torch")
    main_export(tmp_path / "torch", tmp_path / "in", task="text-generation-with-past", library_name="transformers")
    capfd.readouterr()
    answers = [
        generated_by_optimum(folder, seq2seq=False)[len(PROMPT) :]
        for folder in (tmp_path / "in", quantized(tmp_path / "in", "w8"))
    ]
    assert len(answers[1]) == COUNT and same_start(*answers) >= 1
    assert same_start(answers[1], generated_by_plain_runtime([tmp_path / "in.w8" / "model.onnx"])) >= COUNT // 2


# transformers.js.

ANSWER = """
import { createRequire } from 'node:module';
const require = createRequire(process.argv[2] + '/');
const { pipeline, env } = require('@huggingface/transformers');
env.allowRemoteModels = false;
env.localModelPath = process.argv[3];
const run = await pipeline(process.argv[5], process.argv[4]);
console.log(JSON.stringify(await run('A fox counts', process.argv[5].includes('generation')
    ? { max_new_tokens: 12, min_new_tokens: 12, do_sample: false } : { top_k: null })));
"""


def answered_by_node(folder: Path, task: str) -> Any:
    modules = Path(os.environ["ONNXQ_NODE_MODULES"]).resolve()
    home = modules.parent if modules.name == "node_modules" else modules
    if not (home / "node_modules" / "@huggingface" / "transformers").is_dir():
        pytest.skip("ONNXQ_NODE_MODULES has no @huggingface/transformers")
    node = shutil.which("node")
    assert node is not None, "Node is not on the PATH"
    script = folder.parent / "answer.mjs"
    script.write_text(ANSWER)
    command = [node, str(script), str(home), str(folder.parent), folder.name, task]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.web
@pytest.mark.text
def test_transformers_js_classifies(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"onnx/model.onnx": encoder(pooled=True), "config.json": BERT})
    out = quantized(folder, "w8a8-dynamic")
    assert [path.name for path in (out / "onnx").iterdir()] == ["model_quantized.onnx"]
    before, after = (answered_by_node(place, "text-classification") for place in (folder, out))
    scores = [{entry["label"]: entry["score"] for entry in answer} for answer in (before, after)]
    assert set(scores[0]) == set(scores[1]) == set(BERT["id2label"].values())  # type: ignore[attr-defined]
    assert max(abs(scores[0][name] - scores[1][name]) for name in scores[0]) < 0.02


@pytest.mark.web
@pytest.mark.text
@pytest.mark.parametrize(("preset", "name"), [("w4", "model_q4.onnx"), ("w8", "model_quantized.onnx")])
def test_transformers_js_generates(tmp_path: Path, preset: str, name: str) -> None:
    folder = write(tmp_path / "in", {"onnx/model.onnx": genai_decoder(head=WIDTH // HEADS), "config.json": LLAMA})
    out = quantized(folder, preset)
    assert [path.name for path in (out / "onnx").iterdir()] == [name]
    (answer,) = answered_by_node(out, "text-generation")
    assert answer["generated_text"].startswith("A fox counts") and len(answer["generated_text"]) > len("A fox counts")
