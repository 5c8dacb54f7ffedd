"""A planted fault comes first also where channels were scaled or turned before anything was rounded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.algorithms.channels.recovered import ChangedWeight, recovered_scales
from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from onnxq.graph.views.counterparts import Counterparts
from onnxq.passes.recover import recover, weight_fit
from tests.decoders import Style, decoder, prompts
from tests.graph.build import build, feeds_for, run, same, session, weights

Feed = dict[str, np.ndarray]
DECODER = replace(Style(caches=False, mask=False), norm="rms")


def images(seed: int, residual: bool) -> tuple[onnx.ModelProto, list[Feed]]:
    """Convolutions, one of them depthwise, and a sum on request; the channels between them differ."""
    rng = np.random.default_rng(seed)
    s, t = (2.0 ** (rng.uniform(-1, 1, 8).astype(np.float32) * (5 if residual else 2)) for _ in range(2))

    def kernel(out: int, inner: int, size: int) -> np.ndarray:
        return rng.normal(0, (inner * size * size) ** -0.5, (out, inner, size, size)).astype(np.float32)

    def along(array: np.ndarray) -> np.ndarray:
        return array[:, None, None, None]

    text = """g (float[N,3,12,12] x) => (float[N,5,12,12] y) {
        [a] a = Conv <pads = [1,1,1,1]> (x, wa, ba) [ra] c = Relu (a)
        [b] b = Conv <pads = [1,1,1,1], group = 8> (c, wb, bb) [rb] d = Relu (b)
        [e] e = Conv (d, we, be) SUM [rf] h = Relu (f)
        [k] k = Conv (h, wk, bk) [rk] l = Relu (k) [m] y = Conv <pads = [1,1,1,1]> (l, wm, bm)
    }"""
    model = build(
        text.replace("SUM", "[s] f = Add (e, c)" if residual else "[s] f = Identity (e)"),
        wa=kernel(8, 3, 3) * along(s), ba=rng.normal(0, 0.3, 8).astype(np.float32) * s,
        wb=kernel(8, 1, 3), bb=rng.normal(0, 0.3, 8).astype(np.float32) * s,
        we=kernel(8, 8, 1) * along(s) / s[:, None, None], be=weights(8),
        wk=kernel(8, 8, 1) * along(t) / s[:, None, None], bk=rng.normal(0, 0.3, 8).astype(np.float32) * t,
        wm=kernel(5, 8, 3) / t[:, None, None], bm=weights(5),
    )  # fmt: skip
    opened = session(model.SerializeToString())
    return model, [feeds_for(opened, 2, each) for each in range(8)]


def spoil_weight(model: onnx.ModelProto, prefix: str) -> None:
    """Keep two bits of a weight."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    name = next(n for n in constants if n.startswith(prefix) and n.endswith(("_quantized", "_packed")))
    array = onnx.numpy_helper.to_array(constants[name])
    rounded = array & 0xCC | 0x22 if name.endswith("_packed") else np.clip(np.rint(array / 48.0) * 48, -127, 127)
    constants[name].CopyFrom(onnx.numpy_helper.from_array(rounded.astype(array.dtype), name))


def spoil_range(model: onnx.ModelProto, value: str, factor: float) -> None:
    """Make the range of a value ``factor`` times as wide."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    q = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == value)
    old = onnx.numpy_helper.to_array(constants[q.input[1]])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(old * factor), "spoiled"))
    for node in model.graph.node:
        if node is q or (node.op_type == "DequantizeLinear" and node.input[0] == q.output[0]):
            node.input[1] = "spoiled"


def quantized(model: onnx.ModelProto | bytes, feeds: list[Feed], preset: str, **options: object) -> onnx.ModelProto:
    source = onnx.load_model_from_string(model) if isinstance(model, bytes) else model
    result = onnxq.quantize(
        source,
        calibration=feeds,
        preset=preset,
        threads=1,
        benchmark=False,
        force=True,
        **options,  # type: ignore[arg-type]
    )
    assert result.model is not None
    return result.model


REWRITES = [({}, True), ({"equalize": True}, False), ({"equalize": True, "per_channel": False}, False)]


@pytest.mark.parametrize(("options", "residual"), REWRITES, ids=["evened out", "equalized", "equalized by tensor"])
@pytest.mark.parametrize("bad", ["a", "e"])
def test_a_bad_weight_of_a_convolution(options: dict[str, object], residual: bool, bad: str) -> None:
    model, feeds = images(ord(bad), residual)
    form = quantized(model, feeds, "w8a8", include=["*"], **options)
    before = onnxq.diagnose(model, form, data=feeds, threads=1)
    assert all(f.weight_sqnr_db is None or f.weight_sqnr_db > 35 for f in before.findings)
    spoil_weight(form, f"w{bad}")
    first = onnxq.diagnose(model, form, data=feeds, threads=1).findings[0]
    assert first.node == bad and "rounding its weights" in first.cause


@pytest.mark.parametrize("factor", [0.2, 20.0])
def test_a_wrong_range_of_a_value_whose_channels_were_evened_out(factor: float) -> None:
    model, feeds = images(5, True)
    form = quantized(model, feeds, "w8a8", include=["*"])
    spoil_range(form, "d", factor)
    first = onnxq.diagnose(model, form, data=feeds, threads=1).findings[0]
    assert first.node == "b" and ("clips" if factor < 1 else "times wider") in first.cause


TURNS: list[tuple[str, dict[str, object]]] = [
    ("w8a8-dynamic", {"smooth": 0.5}), ("w8a8-dynamic", {"rotate": True}), ("w4", {"algorithm": "awq"}),
    ("w4", {"algorithm": "awq", "rotate": True}),
]  # fmt: skip


@pytest.mark.parametrize(("preset", "options"), TURNS, ids=["smoothed", "rotated", "awq", "rotated and awq"])
def test_a_bad_weight_of_a_decoder(preset: str, options: dict[str, object]) -> None:
    bad = "b1.o"
    model, feeds = onnx.load_model_from_string(decoder(DECODER)), prompts(DECODER, 6)
    form = quantized(model, feeds, preset, **options)
    before = onnxq.diagnose(model, form, data=feeds, threads=1)
    assert all(f.weight_sqnr_db is None or f.weight_sqnr_db > (18 if preset == "w4" else 40) for f in before.findings)
    spoil_weight(form, f"{bad}_proj")
    assert onnxq.diagnose(model, form, data=feeds, threads=1).findings[0].node == bad


def test_a_report_compares_layers_with_what_they_were_made_from(tmp_path: Path) -> None:
    model, feeds = images(6, False)
    result = onnxq.quantize(
        model, tmp_path / "q.onnx", calibration=feeds, preset="w8a8", equalize=True, include=["*"], threads=1,
        benchmark=False, force=True, report=tmp_path / "r.html",
    )  # fmt: skip
    assert result.evidence is not None
    ratios = [layer["weight_sqnr_db"] for layer in result.evidence["layers"] if layer["weight_sqnr_db"] is not None]
    assert len(ratios) == 5 and min(ratios) > 35


@pytest.mark.parametrize("rewrite", ["evened out", "none"])
def test_whatever_is_recovered_the_float_model_computes_the_same(rewrite: str) -> None:
    model, feeds = images(7, True)
    form = io.load(quantized(model, feeds, "w8a8", include=["*"], per_channel=rewrite != "none"))
    found = io.load(model)
    prepare(found)
    before, content = weight_fit(found, Counterparts(form)), io.to_bytes(found)
    changed = recover(found, Counterparts(form))
    after = weight_fit(found, Counterparts(form))
    assert (changed == 0) == (rewrite == "none") == (io.to_bytes(found) == content)
    if rewrite != "none":
        assert min(after.values()) > 35 > min(before.values())
    for feed in feeds[:2]:
        same(run(model.SerializeToString(), feed), run(io.to_bytes(found), feed), 1e-5)
    content = io.to_bytes(found)
    recover(found, Counterparts(form))
    assert io.to_bytes(found) == content


def test_factors_of_two_bits_with_a_layer_that_lies() -> None:
    """Rows and columns of several layers speak for each factor; one whose integers are wrong is outvoted."""
    rng = np.random.default_rng(0)
    widths, count = (32, 48, 40, 24), 89
    numbers = [np.zeros(32, int), np.arange(1, 49), np.arange(49, 89), np.zeros(24, int)]
    truth = np.concatenate([[1.0], 2.0 ** rng.uniform(-4, 4, count - 1)])
    links = []
    for i in range(3):
        before = rng.normal(0, 1, (widths[i + 1], widths[i]))
        exact = before * truth[numbers[i]] / truth[numbers[i + 1]][:, None]
        step = np.abs(exact).max(axis=1, keepdims=True) / (1.5 if i == 1 else 127)
        links.append(ChangedWeight(before[None, ..., None], (np.rint(exact / step) * step)[None, ..., None],
                          numbers[i + 1][None], numbers[i][None]))  # fmt: skip
    off = np.abs(np.log(recovered_scales(links, count) / truth))
    assert np.median(off) < 0.01 and np.quantile(off, 0.9) < 0.05
    plain = [ChangedWeight(link.before, link.before, link.outputs, link.inputs) for link in links]
    assert (recovered_scales(plain, count) == 1).all()
