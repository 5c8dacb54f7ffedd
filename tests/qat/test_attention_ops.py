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


def test_what_rounded_caches_cost_is_learned_back() -> None:
    import torch

    from onnxq.core.cache_grids import fit_grid
    from onnxq.graph.attention.cache_ports import attentions, round_caches
    from onnxq.qat.graph_module import GraphModule

    proto = genai_decoder(head=HEAD)
    model, ids = io.load(proto), np.random.default_rng(3).integers(0, VOCABULARY, (8, 12))
    feed = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.ones((8, 12), dtype=torch.int64)}
    empty = torch.zeros((8, HEADS, 0, HEAD))
    feed |= {f"past_key_values.{layer}.{kind}": empty for layer in range(LAYERS) for kind in ("key", "value")}
    teacher = GraphModule(plain_graph(model))
    expected = {name: value.detach() for name, value in teacher(feed).items()}
    grids = {}
    for layer, node in enumerate(attentions(model)):
        rows = [expected[f"present.{layer}.{kind}"].transpose(1, 2).flatten(0, 1).numpy() for kind in ("key", "value")]
        key, value = (fit_grid(row, np.abs(row).max(axis=0), 4) for row in rows)
        grids[node.name or ""] = key, value
    round_caches(model, grids)
    student = GraphModule(plain_graph(model))
    weights = [value.requires_grad_(True) for value in student.floats.values() if value.ndim == 2]
    optimizer = torch.optim.Adam(weights, 1e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (student(feed)["logits"] - expected["logits"]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 0 and min(losses[-5:]) < 0.7 * losses[0]
