"""Configurations of other tools become the recipes that their users mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import onnxq
from onnxq.errors import RecipeError
from onnxq.recipe.foreign import convert, converted
from onnxq.recipe.recipe import Recipe

OPTIMUM = {
    "optimum_version": "1.27.0",
    "quantization": {
        "is_static": False, "format": "QOperator", "mode": "IntegerOps", "activations_dtype": "QUInt8",
        "activations_symmetric": False, "weights_dtype": "QInt8", "weights_symmetric": True, "per_channel": True,
        "reduce_range": False, "nodes_to_quantize": [], "nodes_to_exclude": ["head"],
        "operators_to_quantize": ["Conv", "MatMul", "Attention", "LSTM", "Gather", "EmbedLayerNormalization"],
        "qdq_op_type_per_channel_support_to_axis": {"MatMul": 1},
    },
}  # fmt: skip
OLIVE = {
    "input_model": {"type": "ONNXModel", "model_path": "model.onnx"},
    "passes": {
        "fuse": {"type": "OrtTransformersOptimization"},
        "quantize": {
            "type": "OnnxStaticQuantization",
            "config": {
                "quant_format": "QDQ", "calibrate_method": "Entropy", "activation_type": "QUInt8",
                "weight_type": "QInt8", "per_channel": False, "reduce_range": True,
                "op_types_to_quantize": ["Conv"], "extra_options": {"ActivationSymmetric": True},
                "data_config": "calibration", "prepare_qdq_config": True,
            },
        },
    },
}  # fmt: skip
QUARK = {
    "model_type": "llama",
    "quantization_config": {
        "quant_method": "quark",
        "global_quant_config": {
            "input_tensors": None,
            "weight": {"dtype": "uint4", "qscheme": "per_group", "group_size": 128, "symmetric": False},
        },
        "exclude": ["lm_head"],
        "algo_config": [{"name": "awq"}, {"name": "rotation"}],
    },
}


def test_optimum() -> None:
    found = converted(OPTIMUM, "ort_config.json")
    assert found.tool == "optimum"
    assert found.recipe == Recipe(preset="w8a8-dynamic", per_channel=True, exclude=("head",))
    assert found.notes == ["ort_config.json: its 6 operator types not taken over; what pays is quantized"]
    static = {**OPTIMUM["quantization"], "is_static": True, "format": "QDQ", "activations_symmetric": True}  # type: ignore[dict-item]
    assert converted(static, "x").recipe == Recipe(preset="w8a8", format="qdq", symmetric=True, exclude=("head",))


def test_olive_static() -> None:
    found = converted(OLIVE, "olive.json")
    assert found.recipe == Recipe(
        preset="w8a8", format="qdq", range="entropy", symmetric=True, per_channel=False, target="cpu-avx2",
        op_types=("Conv",),
    )  # fmt: skip
    assert found.notes == ["olive.json: pass 'quantize': prepare_qdq_config not taken over"]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ({"type": "OnnxDynamicQuantization", "precision": "int8"}, Recipe(preset="w8a8-dynamic")),
        ({"type": "OnnxQuantization", "quant_mode": "dynamic"}, Recipe(preset="w8a8-dynamic")),
        ({"type": "OnnxQuantization", "quant_mode": "static"}, Recipe(preset="w8a8")),
        (
            {"type": "OnnxMatMul4Quantizer", "block_size": 32, "is_symmetric": True, "algorithm": "HQQ"},
            Recipe(preset="w4", block_size=32, symmetric=True, algorithm="hqq"),
        ),
        (
            {"type": "OnnxBlockWiseRtnQuantization", "block_size": 64, "accuracy_level": 4, "bits": 8},
            Recipe(preset="w8", block_size=64, accuracy_level=4, algorithm="rtn"),
        ),
        ({"type": "OnnxKQuantQuantization", "bits": 4}, Recipe(preset="w4", algorithm="kquant")),
    ],
    ids=lambda value: value.get("type", "") if isinstance(value, dict) else "",
)
def test_olive_passes(step: dict[str, Any], expected: Recipe) -> None:
    assert converted({"passes": {"q": step}}, "olive.json").recipe == expected
    assert converted({"passes": {"q": [step]}}, "olive.json").recipe == expected


def test_quark() -> None:
    found = converted(QUARK, "config.json")
    assert found.recipe == Recipe(preset="w4", block_size=128, symmetric=False, algorithm="awq", exclude=("*lm_head*",))
    assert any("rotation not taken over" in note for note in found.notes)
    int8 = {"dtype": "int8", "qscheme": "per_channel", "symmetric": True}
    dynamic = {"dtype": "int8", "qscheme": "per_token", "is_dynamic": True}
    whole = {"global_quant_config": {"weight": int8, "input_tensors": dynamic}}
    assert converted(whole, "x").recipe == Recipe(preset="w8a8-token", per_channel=True)


def test_transformers_js() -> None:
    found = converted({"per_channel": True, "reduce_range": True, "per_model_config": {"model": {}}}, "x")
    assert found.recipe == Recipe(preset="w8a8-dynamic", per_channel=True, target="cpu-avx2")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "holds a list, not an object with keys"),
        ({"a": 1}, "no configuration of Olive .* its keys are"),
        (
            {"passes": {"c": {"type": "OnnxConversion"}}},
            "none of its passes quantizes an ONNX model; they are Onnx",
        ),
        ({"passes": {"q": {"type": "OnnxQuantization", "weight_type": "QInt16"}}}, "weight_type qint16 has no integer"),
        ({"passes": {"q": {"type": "OnnxMatMul4Quantizer", "block_size": 48}}}, "blocks of 48 have no kernel"),
        ({"passes": {"q": {"type": "OnnxMatMul4Quantizer", "bits": 5}}}, "weights of 5 bits have no kernel"),
        ({"global_quant_config": {"weight": {"dtype": "mxfp4"}}}, "weights of mxfp4 have no kernel on a CPU"),
        ({"global_quant_config": {}}, "global_quant_config has no 'weight'"),
        ({"passes": {"q": None}}, "none of its passes"),
    ],
)
def test_what_no_recipe_can_say_is_an_error(data: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        converted(data, "config.json")


def test_files(tmp_path: Path) -> None:
    config, recipe = tmp_path / "olive.json", tmp_path / "recipe.yaml"
    config.write_text(json.dumps(OLIVE), encoding="utf-8")
    assert onnxq.convert_config(config, recipe).recipe == Recipe.from_file(recipe)
    with pytest.raises(onnxq.OnnxqError, match="olive.json"):
        onnxq.convert_config(config, config)
    assert json.loads(config.read_text(encoding="utf-8")) == OLIVE
    for content, message in ((b"{", "not JSON"), (b"\xff\xfe", "it is not UTF-8 text"), (b"[" * 100_000, "not JSON")):
        config.write_bytes(content)
        with pytest.raises(RecipeError, match=message):
            convert(config)
    with pytest.raises(RecipeError, match="cannot be read"):
        convert(tmp_path / "none.json")
