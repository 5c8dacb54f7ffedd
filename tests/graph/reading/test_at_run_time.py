"""What inspection sees in models whose activations are quantized at inference."""

from __future__ import annotations

import numpy as np
import pytest

import onnxq
from onnxq.recipe.recipe import Recipe
from tests.graph.build import build, weights
from tests.graph.emit.at_inference import quantized

W, TABLE = weights(128, 160), weights(90, 128)
ENCODER = (
    "g (int64[B, S] i) => (float[B, S, 160] y) { [emb] e = Gather (t, i) [fc] h = MatMul (e, w) [add] y = Add (h, b) }"
)


@pytest.mark.parametrize(
    ("preset", "block", "how", "way"),
    [
        ("w8a8-dynamic", None, "MatMulInteger, activations quantized at run time, weights per channel", "dynamic"),
        (
            "w8a8-token",
            None,
            "MatMulInteger, activations quantized at run time per token, weights per channel",
            "dynamic per token",
        ),
        (
            "w8a8-token",
            64,
            "MatMulInteger, activations quantized at run time per token, weights per channel",
            "dynamic per token",
        ),
    ],
)
def test_a_product_and_a_table_are_one_node_each(preset: str, block: int | None, how: str, way: str) -> None:
    result = quantized(build(ENCODER, t=TABLE, w=W, b=weights(160)), preset, recipe=Recipe(block_size=block))
    assert result.model is not None
    found = onnxq.inspect(result.model)
    states = {node["name"]: (node["op_type"], node["state"], node["how"]) for node in found.nodes}
    assert states["fc"] == ("MatMul", "integer", how)
    assert states["emb"] == ("Gather", "stored", "int8 table, rows scaled once gathered, weights per channel")
    assert {node["op_type"] for node in found.nodes} <= {"MatMul", "Gather", "Add", "Sum"}
    assert set(found.facts["quantized"]) == {way, "weights only"}
    by_node = {weight["node"]: weight for weight in found.weights}
    assert by_node["emb"]["low"] == pytest.approx(TABLE.min(), rel=0.01)
    if block is None:
        assert by_node["fc"]["high"] == pytest.approx(W.max(), rel=0.01)


def test_lstm_and_attention() -> None:
    model = build(
        "g (float[S, B, 32] x) => (float[S, 2, B, 24] y, float[S, B, 32] z) "
        '{ [rnn] y = LSTM <hidden_size = 24, direction = "bidirectional"> (x, w, r) '
        "[att] z = com.microsoft.Attention <num_heads = 4> (x, q, c) }",
        imports=', "com.microsoft": 1', w=weights(2, 96, 32), r=weights(2, 96, 24), q=weights(32, 96), c=weights(96),
    )  # fmt: skip
    result = quantized(model)
    assert result.model is not None
    found = onnxq.inspect(result.model)
    states = {node["name"]: (node["op_type"], node["state"], node["how"]) for node in found.nodes}
    assert states == {
        "rnn": ("LSTM", "integer", "DynamicQuantizeLSTM, activations quantized at run time, weights per channel"),
        "att": ("Attention", "integer", "QAttention, activations quantized at run time, weights per channel"),
    }
    ranges = {weight["node"]: (weight["low"], weight["high"]) for weight in found.weights}
    np.testing.assert_allclose(ranges["att"], (weights(32, 96).min(), weights(32, 96).max()), rtol=0.01)
    np.testing.assert_allclose(ranges["rnn"], (weights(2, 96, 32).min(), weights(2, 96, 32).max()), rtol=0.01)


def test_a_tied_table_is_seen_behind_its_transpose() -> None:
    text = (
        "g (int64[B] i) => (float[B, 90] y) "
        "{ [emb] e = Gather (t, i) h = Tanh (e) w = Transpose (t) [head] y = MatMul (h, w) }"
    )
    result = quantized(build(text, t=TABLE))
    assert result.model is not None
    found = onnxq.inspect(result.model)
    assert {n["name"]: n["state"] for n in found.nodes if n["name"] in ("emb", "head")} == {
        "emb": "stored",
        "head": "integer",
    }
    assert "Transpose" not in found.coverage
