"""Attention in one operator as a torch function, against ONNX Runtime, with caches of floats and of integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxq
from onnxq.graph.files import io
from onnxq.graph.views.plain_graph import plain_graph
from tests.decoders import Style, decoder, prompts
from tests.language_models import HEAD, HEADS, LAYERS, VOCABULARY, genai_decoder

pytestmark = pytest.mark.torch


def both(model: onnx.ModelProto, feed: dict[str, Any]) -> list[tuple[Any, Any]]:
    from onnxq.qat.graph_module import GraphModule
    from onnxq.qat.parameters import as_tensor

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    module = GraphModule(plain_graph(io.load(model)))
    found = module({name: as_tensor(array) for name, array in feed.items()})
    return [(array, found[name].detach().numpy()) for name, array in zip(names, session.run(None, feed), strict=True)]


@pytest.mark.parametrize("past", [0, 3])
def test_rotary_positions_and_caches_are_those_of_the_runtime(past: int) -> None:
    rng = np.random.default_rng(1)
    new = 7 if not past else 1
    feed = {
        "input_ids": rng.integers(0, VOCABULARY, (2, new)),
        "attention_mask": np.ones((2, past + new), np.int64),
        **{
            f"past_key_values.{layer}.{kind}": rng.standard_normal((2, HEADS, past, HEAD)).astype(np.float32)
            for layer in range(LAYERS)
            for kind in ("key", "value")
        },
    }
    for expected, found in both(genai_decoder(head=HEAD), feed):
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_caches_of_integers_are_rounded_as_the_runtime_stores_them(form: str) -> None:
    style = Style(blocks=2, mask=False)
    options = {"calibration": prompts(style, 8, 16), "preset": "float", "kv_cache": form}
    model = onnxq.quantize(onnx.load_model_from_string(decoder(style)), benchmark=False, threads=1, **options).model
    assert model is not None
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    kind = np.int8 if form == "int8" else np.uint8
    feed = {
        spec.name: np.zeros((1, spec.shape[1], 0, spec.shape[3]), kind)
        for spec in session.get_inputs()
        if "past" in spec.name
    }
    ids = prompts(style, 1, 16, seed=5)[0]["input_ids"]
    expected, found = both(model, {**feed, "input_ids": ids})[0]
    other = onnxruntime.InferenceSession(decoder(style), providers=["CPUExecutionProvider"])
    plain = other.run(None, {"input_ids": ids, **{name: empty_of(other, name) for name in feed}})[0]
    rounding = np.abs(expected - plain).max()
    assert rounding > 0 and np.abs(found - expected).max() < 0.2 * rounding


def empty_of(session: Any, name: str) -> Any:
    shape = next(spec.shape for spec in session.get_inputs() if spec.name == name)
    return np.zeros((1, shape[1], 0, shape[3]), np.float32)
