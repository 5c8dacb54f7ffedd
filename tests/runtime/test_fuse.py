"""Fusion by onnxruntime.transformers: used where it computes the same, and otherwise said why not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxq
from onnxq.errors import MissingExtraError, ModelError, RecipeError
from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from onnxq.graph.types import Model
from onnxq.runtime import fuse as module
from onnxq.runtime.fuse import fuse
from tests.graph.build import build, session
from tests.transformers import encoder, sentences

FEED = sentences(1)[0]


def prepared(style: str = "torch", **options: Any) -> Model:
    model = io.load(encoder(style, **options))
    prepare(model, min_opset=17)
    return model


def test_a_fused_model_computes_the_same_under_the_same_names() -> None:
    model = prepared()
    before = io.to_bytes(model)
    found = fuse(model, "bert", FEED, threads=1)
    assert found.model is not None and found.note == ""
    assert found.operators["SkipLayerNormalization"] == 2 and found.operators["BiasGelu"] == 1
    assert io.to_bytes(model) == before
    assert [v.name for v in found.model.graph.inputs] == ["input_ids", "attention_mask"]
    assert [v.name for v in found.model.graph.outputs] == [v.name for v in model.graph.outputs]
    for feed in sentences(3, seed=5):
        a, b = (session(io.to_bytes(m)).run(None, feed)[0] for m in (model, found.model))
        np.testing.assert_allclose(b, a, atol=1e-4)


def test_sums_stay_apart_from_norms_on_request() -> None:
    found = fuse(prepared("dynamo"), "bert", FEED, skip_norms=False, threads=1)
    assert found.model is not None and "SkipLayerNormalization" not in found.operators


def test_the_option_quantizes_what_was_fused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(encoder("torch").SerializeToString())
    before = path.read_bytes()
    result = onnxq.quantize(path, calibration=sentences(), preset="w8a8", fuse="bert", threads=1, benchmark=False)
    assert path.read_bytes() == before and result.output is not None
    operators = Counter(node.op_type for node in io.load(result.output).graph)
    assert (
        operators["BiasGelu"] + operators["Gelu"] == 1 and operators["MatMulIntegerToFloat"] >= 5
    )  # BiasGelu has the sixth's bias
    assert result.sqnr_db is not None and result.sqnr_db > 15
    assert not [line for line in result.warnings if "--fuse" in line]


def test_a_model_of_no_type_is_quantized_as_it_is() -> None:
    text = "g (float[2, 64] x) => (float[2, 64] y) { h = MatMul (x, w) y = Tanh (h) }"
    proto = build(text, w=np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32))
    feeds = [{"x": np.random.default_rng(i).normal(size=(2, 64)).astype(np.float32)} for i in range(4)]
    result = onnxq.quantize(proto, calibration=feeds, preset="w8a8", fuse="bert", threads=1, benchmark=False)
    (line,) = [line for line in result.warnings if "--fuse" in line]
    assert line == (
        "--fuse bert: not used, the model is quantized as it is (bert: nothing in the model is of this type)"
    )
    assert result.coverage["MatMul"]["quantized"] == 1


def test_outputs_that_differ_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    found = fuse(prepared(), "bert", FEED, threads=1)
    assert found.model is None and "its outputs differ by" in found.note


def test_a_library_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_heads", lambda model: ("none", "none"))
    found = fuse(prepared(), "gpt2", FEED, threads=1)
    assert found.model is None and "the library failed: " in found.note and "\n" not in found.note


def test_auto_takes_the_type_that_joins_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIED", ("vit", "bert"))
    found = fuse(prepared(), "auto", FEED, threads=1)
    assert found.model is not None and found.operators.total() >= 3


def test_what_cannot_be_done_is_said_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"--fuse: no model type 'berd'; there are auto, bert, "):
        fuse(prepared(), "berd", FEED)
    with monkeypatch.context() as patch:
        patch.setattr(module.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(
            MissingExtraError, match=r"needs sympy, which is not installed; pip install 'onnxq\[fuse\]'"
        ):
            fuse(prepared(), "bert", FEED)

    def too_large(model: Model) -> bytes:
        raise ModelError("above 2 GB")

    monkeypatch.setattr(io, "to_bytes", too_large)
    with pytest.raises(ModelError, match=r"more than 2 GB.*--use_external_data_format"):
        fuse(prepared(), "bert", FEED)


def test_saved_statistics_are_of_another_model() -> None:
    with pytest.raises(RecipeError, match="--fuse: saved statistics are of the model before fusion"):
        onnxq.quantize(encoder("torch"), statistics="s.npz", preset="w8a8", fuse="bert")


def test_heads_are_read_from_the_graph() -> None:
    assert module._heads(prepared(width=48)) == (3, 48)
