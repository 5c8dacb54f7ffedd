"""Layers that look quantized and are computed in float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import onnxq
from onnxq.graph.emit import common
from onnxq.graph.files import io
from onnxq.graph.reading.optimized import dequantized_layers, user_name
from onnxq.verify import loads
from tests.graph.build import build, weights


def model(activation: str) -> bytes:
    """A Gemm on integers without a Q behind it."""
    tail = f"h = Gemm (a, b, bias) r = {activation} (h) y = MatMul (r, last)" if activation else "y = Gemm (a, b, bias)"
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
    net (float[N, 8] x) => (float[N, 4] y) {{
        q = QuantizeLinear (x, sx, zx)
        a = DequantizeLinear (q, sx, zx)
        b = DequantizeLinear <axis = 1> (w, sw, zw)
        bias = DequantizeLinear <axis = 0> (ints, sb)
        {tail}
    }}""")
    constants = {
        "sx": np.float32(0.05), "zx": np.uint8(128), "sw": np.full(4, 0.01, np.float32), "zw": np.zeros(4, np.int8),
        "w": np.arange(-16, 16, dtype=np.int8).reshape(8, 4), "ints": np.arange(4, dtype=np.int32),
        "last": np.eye(4, dtype=np.float32),
        "sb": np.full(4, 0.0005, np.float32),
    }  # fmt: skip
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items())
    return proto.SerializeToString()


def float_layers(content: bytes | Path, folder: Path) -> list[str]:
    """Names of the layers that the runtime computes in float although their weights are integers."""
    path = folder / "optimized.onnx"
    loads.check(content, run=False, save_to=path)
    return dequantized_layers(path)


@pytest.mark.parametrize(("activation", "expected"), [("", 0), ("Relu", 1)])
def test_a_gemm_that_is_joined_with_its_activation_is_found(activation: str, expected: int, tmp_path: Path) -> None:
    assert len(float_layers(model(activation), tmp_path)) == expected


def test_what_onnxq_writes_has_none(tmp_path) -> None:  # type: ignore[no-untyped-def]
    result = onnxq.quantize("models/digits_resnet.onnx", tmp_path / "q.onnx", benchmark=False)
    assert result.output is not None
    assert float_layers(result.output, tmp_path) == []
    assert not any("dequantizing it" in line for line in result.warnings)


def test_weights_beside_the_model_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, content = tmp_path / "m.onnx", onnx.load_from_string(model("Relu"))
    onnx.save(content, path, save_as_external_data=True, size_threshold=0)
    inside = path.stat().st_size
    monkeypatch.setattr(loads, "MOST_BYTES", inside)
    assert not loads.worth_a_look(path)
    monkeypatch.setattr(loads, "MOST_BYTES", io.size_bytes(path))
    assert loads.worth_a_look(path)


RESIDUAL = """g (float[N, 32] x) => (float[N, 32] y) {
    [up] a = MatMul (x, w1) [bias] b = Add (a, c1) [relu] r = Relu (b) [down] d = MatMul (r, w2) [res] y = Add (d, x)
}"""


@pytest.mark.parametrize(
    "options", [{"preset": "w8a8"}, {"preset": "w8a8", "format": "qoperator"}, {"preset": "w4", "format": "qdq"}]
)
def test_a_product_of_rank_2_and_a_residual_add_are_not_joined_in_float(
    options: dict[str, str], tmp_path: Path
) -> None:
    constants = {"w1": weights(32, 64), "w2": weights(64, 32, seed=1), "c1": weights(64)}
    samples = [{"x": weights(4, 32, seed=seed)} for seed in range(6)]
    result = onnxq.quantize(
        build(RESIDUAL, **constants),
        calibration=samples,
        benchmark=False,
        **options,  # type: ignore[arg-type]
    )
    assert result.model is not None
    assert float_layers(result.model.SerializeToString(), tmp_path) == []
    assert not any("dequantizing it" in line for line in result.warnings)


def test_names_are_those_before_the_runtime_renamed_nodes() -> None:
    assert user_name("blk2.fc2/MatMulAddFusion") == "blk2.fc2"
    assert user_name("conv_0_token_1") == "conv_0"
    assert user_name("a/duplicated_token_12") == "a"
    assert user_name("plain") == "plain"


def test_what_the_runtime_computes_in_float_counts_as_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "use_sum", lambda node: False)  # so that the runtime joins product and Add
    constants = {"w1": weights(32, 64), "w2": weights(64, 32, seed=1), "c1": weights(64)}
    samples = [{"x": weights(4, 32, seed=seed)} for seed in range(6)]
    proto = build(RESIDUAL, **constants)
    result = onnxq.quantize(proto, calibration=samples, preset="w8a8", benchmark=False)
    assert any(line.startswith("layer 'down': onnxruntime computes it in float") for line in result.warnings)
    reasons = {name: reason for name, _, reason in result.kept_float}
    assert reasons["down"].startswith("onnxruntime joins it with a neighbour")
    assert result.plan is not None
    assert result.plan.nodes["down"].action == "storage"
    without = onnxq.quantize(proto, calibration=samples, preset="w8a8", exclude=["down"], benchmark=False)
    assert {name: reason for name, _, reason in without.kept_float}["down"] == "excluded by --exclude"
    assert not any("computes it in float" in line for line in without.warnings)
