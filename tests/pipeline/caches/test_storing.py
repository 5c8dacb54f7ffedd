"""``--kv-cache``: from a decoder to one with integer caches, judged in a loop; and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxq
from onnxq.errors import ModelError, RecipeError, VerificationError
from onnxq.runtime.fuse import farthest_apart
from tests.decoders import Style, decoder, prompts
from tests.runtime_version import CACHES

STYLE = Style(blocks=2)


def quantized(style: Style, form: str, preset: str = "float", samples=None, **options):
    model = onnx.load_model_from_string(decoder(style))
    samples = prompts(style, 15, 24) if samples is None else samples
    return onnxq.quantize(
        model, calibration=samples, preset=preset, kv_cache=form, benchmark=False, threads=1, **options
    )


def opened(proto: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


@CACHES
@pytest.mark.parametrize(("form", "least"), [("int8", 30.0), ("int4", 10.0)])
def test_a_decoder_keeps_its_names_and_its_caches_change_type(form: str, least: float) -> None:
    result = quantized(STYLE, form)
    assert result.model is not None
    session = opened(result.model)
    kind = "tensor(int8)" if form == "int8" else "tensor(uint8)"
    assert [i.name for i in session.get_inputs()][:3] == ["input_ids", "attention_mask", "past_key_values.0.key"]
    assert {i.type for i in session.get_inputs()[2:]} == {kind}
    assert {o.type for o in session.get_outputs()[1:]} == {kind}
    assert result.caches["bytes_a_token"] == {"before": 256, "after": 64 if form == "int8" else 32}
    assert result.caches["steps"] == 12 and not result.caches["added"]
    assert len(result.caches["layers"]) == 2
    assert result.sqnr_db is not None and result.sqnr_db > least
    assert any("caches change type: 4 inputs such as 'past_key_values.0.key'" in line for line in result.warnings)
    assert dict(result.to_dict())["caches"]["form"] == form
    assert f"caches  {form}, 256 -> " in " ".join(result.summary().split()).replace("caches ", "caches  ", 1)


@CACHES
def test_caches_of_float_are_exact_and_need_no_samples() -> None:
    style = replace(STYLE, caches=False, mask=False)
    model = onnx.load_model_from_string(decoder(style))
    result = onnxq.quantize(model, preset="float", kv_cache="float", benchmark=False, threads=1)
    assert result.model is not None and result.caches["added"]
    names = [i.name for i in opened(result.model).get_inputs()]
    assert names == ["input_ids", *(f"past_key_values.{n}.{p}" for n in (0, 1) for p in ("key", "value"))]
    empty = {name: np.zeros((1, 2, 0, 8), np.float32) for name in names[1:]}
    feed = prompts(style, 1)[0]
    expected = opened(model).run(["logits"], feed)
    assert farthest_apart(expected, opened(result.model).run(["logits"], {**feed, **empty})) < 1e-5


@CACHES
@pytest.mark.parametrize("preset", ["w8", "w8a8-dynamic", "w4", "w8a8"])
def test_caches_go_with_quantized_weights(preset: str) -> None:
    result = quantized(STYLE, "int8", preset)
    assert result.preset == preset and result.caches["form"] == "int8"
    assert result.sqnr_db is not None and result.sqnr_db > (8.0 if preset == "w4" else 20.0)
    assert result.caches["before"]["sqnr_db"] >= result.sqnr_db - 3.0  # a token alone has scales of its own


@CACHES
def test_caches_change_where_float_is_the_best_form_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxq.pipeline.candidate import Candidate
    from onnxq.plan.decisions import Plan
    from onnxq.request import quantizing

    def float_wins(job, options, *, timed: bool) -> Candidate:
        return Candidate("float", None, job.recipe, "qdq", Plan({}, {}), content=job.prepared.original)

    monkeypatch.setattr(quantizing, "choose", float_wins)
    result = quantized(STYLE, "int8", "auto")
    assert result.preset == "float" and result.caches["form"] == "int8"
    assert result.model is not None and opened(result.model).get_inputs()[2].type == "tensor(int8)"


@CACHES
def test_limits_hold_for_the_model_with_its_caches() -> None:
    with pytest.raises(VerificationError, match="SQNR"):
        quantized(STYLE, "int4", min_sqnr=60.0)


@CACHES
def test_float_caches_in_the_data_are_stored_as_the_model_takes_them() -> None:
    from tests.decoders import with_past

    samples = [with_past(STYLE, feed, 5, seed=i) for i, feed in enumerate(prompts(STYLE, 10, 12))]
    result = quantized(STYLE, "int8", samples=samples)
    assert result.sqnr_db is not None and result.sqnr_db > 25.0


@CACHES
def test_caches_whose_last_axis_is_open_begin_empty_in_each_sample() -> None:
    grouped = quantized(STYLE, "float").model
    assert grouped is not None
    for port in (*grouped.graph.input, *grouped.graph.output):
        dims = port.type.tensor_type.shape.dim
        if len(dims) == 4:  # as onnxruntime-genai's builder declares them
            dims[3].dim_param = "kv_cache_dim"
    result = onnxq.quantize(
        grouped, calibration=prompts(STYLE, 12), preset="float", kv_cache="int4", benchmark=False, threads=1
    )
    assert result.sqnr_db is not None and result.sqnr_db > 10.0
    assert any("each sample starts with an empty one" in line for line in result.warnings)


@CACHES
def test_scales_come_from_what_is_stored() -> None:
    result = quantized(STYLE, "int8")
    assert result.model is not None
    scales = {
        i.name: onnx.numpy_helper.to_array(i) for i in result.model.graph.initializer if i.name.endswith("_scale")
    }
    assert len(scales) == 4 and {s.shape for s in scales.values()} == {(1, 2, 1, 8)}
    node = next(n for n in result.model.graph.node if n.op_type == "GroupQueryAttention")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert (attributes["k_quant_type"], attributes["kv_cache_bit_width"]) == (b"PER_CHANNEL", 8)


def test_what_has_no_such_attention_is_refused_in_one_line(root: Path) -> None:
    with pytest.raises(ModelError, match="looked for com.microsoft.GroupQueryAttention, or scores, .* found neither"):
        onnxq.quantize(
            root / "models" / "digits_mlp.onnx", "/nowhere.onnx", preset="w8", kv_cache="int8",
            calibration=root / "calibration_data" / "digits_mlp.npz",
        )  # fmt: skip
    with pytest.raises(ModelError, match="found .*Softmax"):
        quantized(replace(STYLE, causal=False, caches=False), "int8")


def test_caches_of_integers_need_samples() -> None:
    model = onnx.load_model_from_string(decoder(STYLE))
    with pytest.raises(RecipeError, match="--kv-cache int8: the scales of caches come from samples and there are none"):
        onnxq.quantize(model, preset="float", kv_cache="int8")


def test_odd_heads_have_no_four_bits() -> None:
    from onnxq.graph.attention.cache_ports import Cache
    from onnxq.pipeline.caches.grouping import refuse

    cache = Cache("att", "pk", "pv", "nk", "nv", 2, 7)
    with pytest.raises(RecipeError, match="heads of 7 numbers .*'att'.* use --kv-cache int8"):
        refuse([cache], "int4")
    refuse([cache], "int8")


@CACHES
def test_caches_that_are_integers_are_left_alone() -> None:
    result = quantized(STYLE, "int8")
    assert result.model is not None
    feeds = []
    for feed in prompts(STYLE, 3):
        feeds.append(
            {**feed, **{i.name: np.zeros((1, 2, 0, 8), np.int8) for i in opened(result.model).get_inputs()[2:]}}
        )
    with pytest.raises(RecipeError, match="hold integers already"):
        onnxq.quantize(result.model, calibration=feeds, preset="float", kv_cache="int4")


def test_float_alone_asks_for_nothing() -> None:
    alone = onnxq.quantize(onnx.load_model_from_string(decoder(STYLE)), preset="float", benchmark=False)
    assert alone.preset == "cleaned" and alone.sqnr_db is not None and alone.sqnr_db > 80


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(RecipeError, match="--kv-cache: no 'int2'"):
        onnxq.Recipe(kv_cache="int2")


@CACHES
@pytest.mark.torch
def test_learning_with_rounded_caches_never_comes_out_worse() -> None:
    samples = prompts(STYLE, 30, 24)
    plain = quantized(STYLE, "int4", "w8", samples)
    result = quantized(STYLE, "int4", "w8", samples, finetune=True, epochs=3, learning_rate=0.0005)
    assert result.caches["form"] == "int4" and result.caches["bytes_a_token"] == plain.caches["bytes_a_token"]
    assert result.sqnr_db is not None and plain.sqnr_db is not None
    kept = result.finetuned is None
    assert any("--finetune: " in line for line in result.warnings) == kept
    assert result.sqnr_db == pytest.approx(plain.sqnr_db, abs=0.01) if kept else result.sqnr_db > plain.sqnr_db - 1.0
