"""Weights in blocks rounded by every algorithm, from the float model to ONNX Runtime's output."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import onnxq
from onnxq.errors import CalibrationError, RecipeError
from onnxq.pipeline.planning import settle_preset
from onnxq.recipe.recipe import Recipe, Rule
from onnxq.stats.statistics import Statistics
from tests.correlated_models import network, samples
from tests.graph.build import build
from tests.runtime_version import TWO_BITS

DATA = samples(60)


def quantized(**options: Any) -> onnxq.QuantizeResult:
    options = {"preset": "w4", "accuracy_level": 0, "format": "qoperator"} | options
    return onnxq.quantize(network(), calibration=DATA, benchmark=False, threads=1, **options)


@functools.cache
def sqnr(algorithm: str, bits: int = 4, symmetric: bool = True) -> float:
    found = quantized(algorithm=algorithm, bits=bits, symmetric=symmetric).sqnr_db
    assert found is not None
    return found


@pytest.mark.parametrize("bits", [pytest.param(2, marks=TWO_BITS), 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_beats_rounding_to_nearest_and_leads_by_more_at_fewer_bits(bits: int, symmetric: bool) -> None:
    assert sqnr("gptq", bits, symmetric) > sqnr("rtn", bits, symmetric) + 2


@pytest.mark.parametrize("symmetric", [True, False])
def test_awq_beats_rounding_to_nearest(symmetric: bool) -> None:
    assert sqnr("awq", 4, symmetric) > sqnr("rtn", 4, symmetric) + 0.5


@pytest.mark.parametrize("algorithm", ["hqq", "kquant"])
def test_what_needs_no_data_is_run_too(algorithm: str) -> None:
    assert sqnr(algorithm) > sqnr("rtn") - 1
    assert sqnr(algorithm) != sqnr("rtn")


def test_in_the_qdq_form_gptq_gives_the_same_weights() -> None:
    result = quantized(algorithm="gptq", format="qdq", accuracy_level=4)
    assert result.unoptimized is not None
    assert result.unoptimized.sqnr_db == pytest.approx(sqnr("gptq"), abs=0.3)


def test_groups_give_what_one_pass_gives_and_say_so() -> None:
    whole, parts = quantized(algorithm="gptq"), quantized(algorithm="gptq", max_memory=1e-6)
    assert whole.model is not None
    assert parts.model is not None
    assert parts.model.SerializeToString() == whole.model.SerializeToString()
    assert "--max-memory 1e-06: the second moments of 4 layer inputs" in "; ".join(parts.warnings)
    assert "the samples are run 4 times" in "; ".join(parts.warnings)
    assert not any("max-memory" in line for line in whole.warnings)


def test_awq_in_groups_is_the_same_too() -> None:
    whole, parts = quantized(algorithm="awq"), quantized(algorithm="awq", max_memory=1e-6)
    assert whole.model is not None
    assert parts.model is not None
    assert parts.model.SerializeToString() == whole.model.SerializeToString()


def test_awq_folds_scales_where_it_can_and_keeps_names() -> None:
    result = quantized(algorithm="awq")
    assert result.model is not None
    names = [node.name for node in result.model.graph.node]
    assert {"gate", "up", "down", "mix", "shift", "head"} <= set(names)
    # what gate and up read comes from a normalization, down's from up, head's from mix; mix reads a residual sum
    assert names.count("r_scaled") <= 1
    assert not any(name.endswith("_scaled") for name in names if name != "r_scaled")


def test_rules_choose_by_node() -> None:
    recipe = Recipe(
        preset="w4", algorithm="rtn", accuracy_level=0, format="qoperator", rules=(Rule("down", algorithm="gptq"),)
    )
    result = onnxq.quantize(network(), calibration=DATA, recipe=recipe, benchmark=False, threads=1)
    assert {name: node.algorithm for name, node in result.plan.nodes.items() if node.action == "weight"} == {
        "gate": "rtn", "up": "rtn", "down": "gptq", "mix": "rtn", "head": "rtn",
    }  # fmt: skip
    assert result.sqnr_db is not None
    assert result.sqnr_db != sqnr("rtn")


def test_with_data_gptq_is_the_default_and_without_it_what_needs_none() -> None:
    assert settle_preset(Recipe(preset="w4"), True).algorithm == "gptq"
    assert settle_preset(Recipe(preset="w4"), False).algorithm == "kquant"
    assert settle_preset(Recipe(preset="w4"), True, has_moments=False).algorithm == "kquant"
    assert settle_preset(Recipe(preset="w4", algorithm="kquant"), True).algorithm == "kquant"
    assert settle_preset(Recipe(preset="w4", bits=8), True).algorithm == "rtn"
    assert settle_preset(Recipe(preset="w8"), True).algorithm == "rtn"
    assert settle_preset(Recipe(preset="w8a8"), True).algorithm is None
    mixed = Recipe(preset="w8a8", rules=(Rule("head", preset="w4"),))
    assert settle_preset(mixed, True).algorithm == "gptq"


@pytest.mark.parametrize("algorithm", ["gptq", "awq"])
def test_without_data_the_remedy_is_named(algorithm: str) -> None:
    with pytest.raises(RecipeError, match=rf"--algorithm {algorithm}: needs .* data .* use kquant, hqq or rtn"):
        onnxq.quantize(network(), preset="w4", algorithm=algorithm)
    with pytest.raises(RecipeError, match=f"--algorithm {algorithm}: needs calibration data"):
        settle_preset(Recipe(preset="w4", rules=(Rule("head", algorithm=algorithm),)), False)


def test_an_algorithm_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match="--algorithm awq: preset w8a8 rounds weights to nearest or with gptq; use a"):
        settle_preset(Recipe(preset="w8a8", algorithm="awq"), True)
    for algorithm in ("rtn", "gptq"):
        assert settle_preset(Recipe(preset="w8a8", algorithm=algorithm), True).preset == "w8a8"


def test_saved_statistics_serve_gptq(tmp_path) -> None:
    path = tmp_path / "stats.npz"
    result = onnxq.calibrate(network(), path, calibration=DATA[:48], threads=1, moments=True)
    assert sorted(result.statistics.moments) == ["h", "k", "n", "r"]
    saved = Statistics.load(path)
    assert saved == result.statistics
    by_file = quantized(algorithm="gptq", statistics=path)
    by_data = quantized(algorithm="gptq")
    assert by_file.model is not None
    assert by_data.model is not None
    assert by_file.model.SerializeToString() == by_data.model.SerializeToString()
    alone = onnxq.quantize(network(), preset="w4", statistics=saved, benchmark=False, threads=1)
    assert {node.algorithm for node in alone.plan.nodes.values() if node.action == "weight"} == {"gptq"}
    with pytest.raises(RecipeError, match="--algorithm awq: needs samples, for it changes the float model"):
        onnxq.quantize(network(), preset="w4", algorithm="awq", statistics=saved)
    both = quantized(algorithm="awq", statistics=path)
    assert "--stats: AWQ changes the float model" in "; ".join(both.warnings)


def test_statistics_without_second_moments_are_not_enough(tmp_path) -> None:
    path = tmp_path / "stats.npz"
    onnxq.calibrate(network(), path, calibration=DATA[:4], threads=1)
    with pytest.raises(RecipeError, match=r"--algorithm gptq: needs calibration data .*onnxq calibrate --moments"):
        onnxq.quantize(network(), preset="w4", algorithm="gptq", statistics=path)
    partial = Statistics.load(path)
    partial.update_moments("n", np.ones((3, 64), np.float32))
    with pytest.raises(CalibrationError, match=r"value 'h' has no second moment \(3 missing\)"):
        onnxq.quantize(network(), preset="w4", algorithm="gptq", statistics=partial)


def test_errors_of_layers_are_reported() -> None:
    by_layer = {}
    for algorithm in ("rtn", "gptq"):
        found = quantized(algorithm=algorithm).to_dict()["weights"]
        by_layer[algorithm] = {layer["node"]: layer for layer in found}
    assert all(layer["output_db"] is None for layer in by_layer["rtn"].values())
    for name, layer in by_layer["gptq"].items():
        # more noise in the weight, less in what it gives: about what the runtime finds at the end
        assert layer["error_db"] < by_layer["rtn"][name]["error_db"]
        assert layer["output_db"] > layer["error_db"] + 3


def test_bits_are_spent_where_the_calibrated_error_is_largest() -> None:
    budget = {"target_bits": 4.5, "bits": None}
    blind = quantized(algorithm="rtn", **budget)
    seeing = quantized(algorithm="gptq", **budget)
    assert seeing.to_dict()["bits_per_weight"] <= 4.5
    assert seeing.sqnr_db is not None
    assert blind.sqnr_db is not None
    assert seeing.sqnr_db > blind.sqnr_db
    parts = quantized(algorithm="gptq", max_memory=1e-6, **budget)
    assert parts.sqnr_db == seeing.sqnr_db


def test_an_output_layer_tied_to_the_embedding_shares_its_weight_though_others_have_gptq() -> None:
    rng = np.random.default_rng(0)
    table, inner = (rng.normal(size=shape).astype(np.float32) for shape in ((96, 64), (64, 64)))
    text = (
        "g (int64[N,S] ids) => (float[N,S,96] y) { [embed] e = Gather (E, ids) \n [inner] h = MatMul (e, I) \n"
        " n = LayerNormalization (h, g) \n [head] y = MatMul (n, H) }"
    )
    proto = build(text, opset=21, ir=10, E=table, H=np.ascontiguousarray(table.T), I=inner, g=np.ones(64, np.float32))
    feeds = [{"ids": rng.integers(0, 96, (1, 32))} for _ in range(10)]
    result = onnxq.quantize(proto, preset="w4", calibration=feeds, benchmark=False, threads=1, format="qoperator")
    layers = {layer["node"]: layer for layer in result.to_dict()["weights"]}
    assert {name: layer["algorithm"] for name, layer in layers.items()} == {
        "embed": "kquant", "inner": "gptq", "head": "kquant",
    }  # fmt: skip
    assert layers["head"]["shares"] == "embed"


def test_few_rows_are_said() -> None:
    result = onnxq.quantize(
        network(), preset="w4", calibration=samples(4, rows=2), benchmark=False, threads=1, format="qoperator"
    )
    assert "calibration saw 6 rows of its input of 128 channels" in "; ".join(result.warnings)
