"""Layers rounded in the order of the graph, each by what the quantized ones before it give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.core.error_measures import sqnr_db
from onnxq.errors import RecipeError
from onnxq.pipeline.learned import sequential as module
from onnxq.recipe.recipe import Recipe
from tests.correlated_models import network, samples
from tests.graph.build import run
from tests.runtime_version import TWO_BITS

Array = np.ndarray


def quantized(**options: object) -> onnx.ModelProto:
    chosen: dict[str, object] = {"preset": "w4", "accuracy_level": 0, "calibration": samples(48), "benchmark": False}
    result = onnxq.quantize(network(), **(chosen | options))  # type: ignore[arg-type]
    assert isinstance(result.model, onnx.ModelProto)
    return result.model


def error_db(model: onnx.ModelProto) -> float:
    """SQNR of the outputs on samples that nothing was calibrated with."""
    pairs = [
        (run(network().SerializeToString(), feed)["y"], run(model.SerializeToString(), feed)["y"])
        for feed in samples(24, seed=5)
    ]
    return sqnr_db(np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs]))


@pytest.mark.parametrize(
    ("algorithm", "bits"),
    [
        ("gptq", 4),
        ("gptq", 3),
        pytest.param("gptq", 2, marks=TWO_BITS),
        pytest.param("autoround", 2, marks=TWO_BITS),
    ],
)
def test_outputs_come_nearer_to_those_of_the_float_model(algorithm: str, bits: int) -> None:
    plain = quantized(algorithm=algorithm, bits=bits)
    in_order = quantized(algorithm=algorithm, bits=bits, sequential=True)
    assert error_db(in_order) > error_db(plain) + 0.2


@TWO_BITS
def test_each_layer_reads_what_the_rounded_ones_before_it_give(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, tuple[Array, Array]] = {}
    told: dict[str, Array] = {}
    known, done = module.Sequential.known, module.Sequential.done

    def watched(self: module.Sequential, node: object) -> object:
        found = known(self, node)  # type: ignore[arg-type]
        assert found is not None and found.correction is not None
        seen[node.name] = found.moment.matrix, found.correction  # type: ignore[attr-defined, assignment]
        return found

    def heard(self: module.Sequential, node: object, change: object) -> None:
        done(self, node, change)  # type: ignore[arg-type]
        told[node.name] = self.constants[node.name][1].copy()  # type: ignore[attr-defined]

    monkeypatch.setattr(module.Sequential, "known", watched)
    monkeypatch.setattr(module.Sequential, "done", heard)
    feeds = samples(20)
    quantized(sequential=True, calibration=feeds, bits=2)
    assert list(seen) == list(told) == ["gate", "up", "down", "mix", "head"]
    model = network()
    weight_of = {"gate": "G", "up": "U", "down": "D", "mix": "M", "head": "H"}
    value_of = {"gate": "n", "up": "n", "down": "h", "mix": "r", "head": "k"}
    used = feeds[:16]  # the last fifth is held out for verification
    for layer, (moment, _) in seen.items():
        x = np.concatenate([_value(model, value_of[layer], feed) for feed in used]).astype(np.float64)
        np.testing.assert_allclose(moment, x.T @ x, rtol=1e-3, atol=1e-3 * np.abs(moment).max())
        changed = next(i for i in model.graph.initializer if i.name == weight_of[layer])
        changed.CopyFrom(onnx.numpy_helper.from_array(told[layer], changed.name))
    assert any(correction.any() for _, correction in seen.values())
    assert not seen["gate"][1].any()  # nothing before it is quantized


def _value(model: onnx.ModelProto, name: str, feed: dict[str, Array]) -> Array:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    array = run(copy.SerializeToString(), feed)[name]
    return np.asarray(array.reshape(-1, array.shape[-1]))


def test_a_model_that_was_run_in_order_is_the_same_again() -> None:
    first, second = (quantized(sequential=True, bits=3).SerializeToString() for _ in range(2))
    assert first == second


def test_nothing_is_left_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    quantized(sequential=True)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("onnxq-")]


def test_without_samples_or_packed_weights_it_is_refused() -> None:
    with pytest.raises(RecipeError, match="--sequential: needs samples"):
        quantized(sequential=True, calibration=None)
    with pytest.raises(RecipeError, match="--sequential: no layer's weight is rounded by samples"):
        quantized(sequential=True, algorithm="rtn")
    with pytest.raises(RecipeError, match="--sequential: auto tries forms of 8 bits"):
        quantized(sequential=True, preset="auto", accuracy_level=None)
    with pytest.raises(RecipeError, match="--sequential: does nothing with preset w8a8"):
        quantized(sequential=True, preset="w8a8", accuracy_level=None)


def test_a_recipe_keeps_it() -> None:
    recipe = Recipe(preset="w4", sequential=True)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
