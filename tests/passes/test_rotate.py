"""Rotation of residual streams and heads: float outputs stay, large channels go, and what is not linear forbids it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import RecipeError
from onnxq.graph.attention.plain_attention import RunFacts
from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from onnxq.graph.views.outputs import with_outputs
from onnxq.passes.residual import streams_of
from onnxq.passes.rotate import rotate
from onnxq.passes.value_heads import value_heads
from onnxq.runtime.probe import probe
from onnxq.runtime.session import session_of
from tests.decoders import Style, decoder, prompts, with_past
from tests.graph.build import build, weights

PLAIN = Style(caches=False, mask=False)


def loaded(content: bytes):
    model = io.load(content)
    prepare(model)
    return model


def seen_of(model, feed) -> RunFacts:
    return RunFacts({name: info.shape for name, info in probe(model, feed).items()})


def turned(model, feed, seed: int = 0):
    copy = model.clone()
    heads, _ = value_heads(copy, seen_of(copy, feed))
    return copy, rotate(copy, heads, seed)


def outputs(model, feed):
    return session_of(model, threads=1).run(feed)


@pytest.mark.parametrize(
    "style", [PLAIN, replace(PLAIN, norm="rms"), replace(PLAIN, kv_heads=4, scale="both")], ids=str
)
def test_float_outputs_stay(style: Style) -> None:
    model, feed = loaded(decoder(style)), prompts(style, 1)[0]
    found, done = turned(model, feed)
    assert (done.streams, done.heads, done.hadamard, done.reasons) == (1, 2, True, [])
    for expected, got in zip(outputs(model, feed), outputs(found, feed), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)
    (stream,) = streams_of(found)
    assert stream.reason == "" and len(stream.norms) == 5 and len(stream.writers) == 5
    for norm in stream.norms:
        assert norm.gain is not None
        assert (np.asarray(norm.gain[0].inputs[norm.gain[1]].const_value.numpy()) == 1).all()


def spread_table(proto: onnx.ModelProto) -> None:
    """Give the stream a large channel and a large mean."""
    table = next(i for i in proto.graph.initializer if i.name == "embedding")
    array = onnx.numpy_helper.to_array(table) + np.float32(2.0)
    array[:, 3] += 60.0
    table.CopyFrom(onnx.numpy_helper.from_array(array, "embedding"))


@pytest.mark.parametrize("biased", [False, True])
def test_norms_that_subtract_the_mean_stay_norms_and_give_no_more_than_their_rows(biased: bool) -> None:
    proto = onnx.load_model_from_string(decoder(replace(PLAIN, norm="layer")))
    spread_table(proto)
    if biased:  # one layer that reads a norm has a bias already, before the value or behind it
        for side, name in enumerate(("b0.q", "b1.gate")):
            node = next(n for n in proto.graph.node if n.output[0] == name)
            node.output[0] = f"{name}_plain"
            width = next(i.dims[1] for i in proto.graph.initializer if i.name == node.input[1])
            bias = np.arange(width, dtype=np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(bias, f"{name}_bias"))
            read = [f"{name}_plain", f"{name}_bias"]
            added = onnx.helper.make_node("Add", read[:: 1 - 2 * side], [name], name=f"{name}_add")
            proto.graph.node.insert(list(proto.graph.node).index(node) + 1, added)
    model, feed = loaded(proto.SerializeToString()), prompts(PLAIN, 1)[0]
    found, done = turned(model, feed)
    assert (done.streams, done.heads, done.reasons) == (1, 2, [])
    for expected, got in zip(outputs(model, feed), outputs(found, feed), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4 * max(1.0, float(np.abs(expected).max())))
    (stream,) = streams_of(found)
    assert all(norm.centred and norm.shift is not None for norm in stream.norms)
    table = next(v for v in found.graph.initializers.values() if v.name == "embedding").const_value.numpy()
    np.testing.assert_allclose(table.mean(1), 0.0, atol=1e-5)
    assert np.abs(table).max() < 0.7 * 60.0
    before = io.to_bytes(found)
    assert rotate(found, []).streams == 0 and io.to_bytes(found) == before


def test_a_skip_norm_with_mean_and_bias_is_one_sum() -> None:
    proto = build(
        "g (int64[n] ids) => (float[n,10] y) { x = Gather(table, ids) a = MatMul(x0, w0) x0 = Identity(given)"
        " h, m, d, s = com.microsoft.SkipLayerNormalization(x, a, gain, shift, bias) y0 = MatMul(h, w1)"
        " y1 = Add(y0, s) y2 = LayerNormalization<axis=-1>(y1, gain, shift) y = Gemm(y2, w2, last) }".replace(
            "a = MatMul(x0, w0) x0 = Identity(given)", "a = Gather(places, ids)"
        ),
        table=weights(10, 8), places=weights(10, 8), gain=weights(8), shift=weights(8), bias=weights(8),
        w1=weights(8, 8), w2=weights(8, 10), last=weights(10),
    )  # fmt: skip
    model = io.load(proto.SerializeToString())
    feed = {"ids": np.arange(5)}
    found = model.clone()
    done = rotate(found, [])
    assert (done.streams, done.reasons) == (1, [])
    np.testing.assert_allclose(outputs(found, feed)[0], outputs(model, feed)[0], atol=1e-4)


def test_a_skip_norm_is_one_sum_of_the_stream() -> None:
    style = replace(PLAIN, norm="rms", blocks=1)
    proto = onnx.load_model_from_string(decoder(style))
    nodes = {node.name: node for node in proto.graph.node}
    add, norm = nodes["b0.attended"], nodes["b0.mid.norm"]
    joined = onnx.helper.make_node(
        "SkipSimplifiedLayerNormalization", [*add.input, norm.input[1]], [norm.output[0], "", "", add.output[0]],
        name="joined", domain="com.microsoft", epsilon=1e-5,
    )  # fmt: skip
    place = list(proto.graph.node).index(add)
    proto.graph.node.remove(add)
    proto.graph.node.remove(norm)
    proto.graph.node.insert(place, joined)
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    model, feed = loaded(proto.SerializeToString()), prompts(style, 1)[0]
    found, done = turned(model, feed)
    assert done.streams == 1
    np.testing.assert_allclose(outputs(found, feed)[0], outputs(model, feed)[0], atol=1e-4)


def test_large_channels_of_the_stream_are_spread() -> None:
    proto = onnx.load_model_from_string(decoder(PLAIN))
    table = next(i for i in proto.graph.initializer if i.name == "embedding")
    array = onnx.numpy_helper.to_array(table).copy()
    array[:, 3] += 60.0
    table.CopyFrom(onnx.numpy_helper.from_array(array, "embedding"))
    model, feed = loaded(proto.SerializeToString()), prompts(PLAIN, 1)[0]
    found, _ = turned(model, feed)

    def spread(m, name: str) -> float:
        rows = session_of(with_outputs(m, [name]).model, threads=1).run(feed, [name])[0].reshape(-1, 32)
        return float(np.abs(rows).max() / np.sqrt(np.square(rows).mean()))

    for name in ("x0", "b0.in.norm", "b1.mid.norm"):  # of the stream, and of what layers read
        assert spread(found, name) < 0.6 * spread(model, name)


def test_a_second_run_changes_nothing() -> None:
    model, feed = loaded(decoder(PLAIN)), prompts(PLAIN, 1)[0]
    found, _ = turned(model, feed)
    before = io.to_bytes(found)
    again = rotate(found, [])
    assert (again.streams, again.heads) == (0, 0)
    assert io.to_bytes(found) == before


@pytest.mark.parametrize(
    ("op_type", "reason"),
    [("Tanh", "Tanh 'odd' reads it, which is no norm and no sum"), ("Identity", "is an output of the model")],
)
def test_a_reader_that_is_not_linear_forbids_it(op_type: str, reason: str) -> None:
    proto = onnx.load_model_from_string(decoder(PLAIN))
    proto.graph.node.append(onnx.helper.make_node(op_type, ["b0.out"], ["odd"], name="odd"))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("odd", 1, ["b", "s", 32]))
    model, feed = loaded(proto.SerializeToString()), prompts(PLAIN, 1)[0]
    before = io.to_bytes(model)
    heads, _ = value_heads(model, RunFacts({}))
    done = rotate(model, heads)
    assert done.streams == 0 and reason in done.reasons[0]
    assert io.to_bytes(model) == before
    assert outputs(model, feed)


def test_a_tied_embedding_is_left_alone_with_the_reason() -> None:
    proto = build(
        "g (int64[n] ids) => (float[n,10] y) { x = Gather(table, ids)"
        " h = SimplifiedLayerNormalization<axis=-1>(x, gain) y = Gemm<transB=1>(h, table) }",
        table=weights(10, 8), gain=weights(8),
    )  # fmt: skip
    (stream,) = streams_of(io.load(proto.SerializeToString()))
    assert stream.reason.startswith("'table' is both the table of the embedding and the weight of")
    # a head that exporters, or the folding of constants, wrote out on its own is no obstacle
    model, feed = loaded(decoder(replace(PLAIN, tied=True))), prompts(PLAIN, 1)[0]
    found, done = turned(model, feed)
    assert done.streams == 1
    np.testing.assert_allclose(outputs(found, feed)[0], outputs(model, feed)[0], atol=1e-4)


def test_a_weight_that_another_layer_reads_keeps_its_contents_there() -> None:
    proto = onnx.load_model_from_string(decoder(replace(PLAIN, blocks=2)))
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            if name == "b1.gate_proj":
                node.input[index] = "b0.gate_proj"
            if name == "b1.mid.gain":
                node.input[index] = "b0.mid.gain"
    model, feed = loaded(proto.SerializeToString()), prompts(PLAIN, 1)[0]
    found, done = turned(model, feed)
    assert done.streams == 1
    np.testing.assert_allclose(outputs(found, feed)[0], outputs(model, feed)[0], atol=1e-4)


def test_values_that_the_model_gives_out_are_not_turned() -> None:
    style = Style()
    model, feed = loaded(decoder(style)), with_past(style, prompts(style, 1)[0], 4)
    heads, reasons = value_heads(model, seen_of(model, feed))
    assert heads == [] and len(reasons) == 2 and "gives its values out" in reasons[0]
    found = model.clone()
    assert rotate(found, heads).streams == 1
    for expected, got in zip(outputs(model, feed), outputs(found, feed), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_biases_are_turned_with_their_layers() -> None:
    proto = onnx.load_model_from_string(decoder(replace(PLAIN, blocks=1)))
    rng = np.random.default_rng(0)
    for name, width in (("b0.o", 32), ("b0.v", 16)):
        node = next(n for n in proto.graph.node if n.output[0] == name)
        node.output[0] = f"{name}_plain"
        bias = rng.standard_normal(width).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(bias, f"{name}_bias"))
        place = list(proto.graph.node).index(node)
        added = onnx.helper.make_node("Add", [f"{name}_bias", f"{name}_plain"], [name], name=f"{name}_add")
        proto.graph.node.insert(place + 1, added)
    model, feed = loaded(proto.SerializeToString()), prompts(PLAIN, 1)[0]
    found, done = turned(model, feed)
    assert (done.streams, done.heads) == (1, 1)
    np.testing.assert_allclose(outputs(found, feed)[0], outputs(model, feed)[0], atol=1e-4)


def test_the_option_turns_before_anything_is_rounded() -> None:
    model = onnx.load_model_from_string(decoder(PLAIN))
    result = onnxq.quantize(model, calibration=prompts(PLAIN, 12), preset="float", rotate=True, benchmark=False)
    assert result.model is not None and result.sqnr_db is not None and result.sqnr_db > 80
    table = next(i for i in result.model.graph.initializer if i.name == "embedding")
    given = next(i for i in model.graph.initializer if i.name == "embedding")
    assert not np.allclose(*(onnx.numpy_helper.to_array(t) for t in (table, given)), atol=0.1)
    assert not [line for line in result.warnings if "--rotate" in line]


def test_statistics_of_the_model_as_it_was_do_not_go_with_it(tmp_path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(decoder(PLAIN))
    np.savez(tmp_path / "data.npz", input_ids=np.concatenate([f["input_ids"] for f in prompts(PLAIN, 8)]))
    onnxq.calibrate(path, tmp_path / "stats.npz", calibration=tmp_path / "data.npz")
    with pytest.raises(RecipeError, match="--rotate: changes the float model that --stats belongs to"):
        onnxq.quantize(path, tmp_path / "out.onnx", preset="w8a8", statistics=tmp_path / "stats.npz", rotate=True)


def test_nothing_to_turn_is_said(root) -> None:
    result = onnxq.quantize(
        io.to_proto(io.load(root / "models" / "digits_mlp.onnx")), preset="w8", rotate=True, benchmark=False,
        calibration=root / "calibration_data" / "digits_mlp.npz",
    )  # fmt: skip
    assert "--rotate: nothing was turned (no norm between layers was found)" in result.warnings
