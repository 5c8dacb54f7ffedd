"""AWQ's scales: which layers share them, which have none, and that the model computes the same."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.core.dtypes import QType
from onnxq.core.spec import PerBlock, TensorSpec
from onnxq.errors import CalibrationError
from onnxq.graph.files import io
from onnxq.passes.awq_scales import scale_for_weights
from onnxq.plan.decisions import WEIGHT, NodePlan, Plan
from onnxq.runtime.calibrate import Run, calibrate
from onnxq.stats.statistics import Statistics
from tests.correlated_models import network, samples
from tests.graph.build import build, run, same

LAYERS = ("gate", "up", "down", "mix", "head")


def plan_of(algorithm="awq", layers=LAYERS, bits=4, **other_bits):
    nodes = {}
    for name in layers:
        spec = TensorSpec(QType.UINT8, PerBlock(1, 32), symmetric=True, grid_bits=other_bits.get(name, bits))
        nodes[name] = NodePlan(name, "MatMul", WEIGHT, weights={1: spec}, algorithm=algorithm)
    return Plan(nodes, {})


def statistics_of(model, *values):
    return calibrate(model, [], samples(20), Run(threads=1), moments=values, peaks=values)


@pytest.fixture
def model():
    return io.load(network())


def test_layers_with_one_input_share_scales_and_the_model_computes_the_same(model):
    found = scale_for_weights(model, plan_of(), statistics_of(model, "n", "h", "r", "k"))
    assert set(found) <= {"n", "h", "r", "k"}
    assert found["n"].into
    assert found["h"].into == ("up",)
    assert {found[name].added for name in found if name != "r"} == {None}
    for feed in samples(3, seed=5):
        same(run(network().SerializeToString(), feed), run(io.to_bytes(model), feed), 1e-5)


def test_only_layers_that_the_plan_names_are_scaled(model):
    before = io.to_bytes(model)
    statistics = statistics_of(model, "n", "h", "r", "k")
    assert scale_for_weights(model, plan_of("gptq"), statistics) == {}
    assert scale_for_weights(model, Plan({}, {}), statistics) == {}
    assert scale_for_weights(model, plan_of(), Statistics()) == {}  # nothing was seen of any input
    assert io.to_bytes(model) == before
    found = scale_for_weights(model, plan_of(layers=("gate",)), statistics)
    assert found["n"].added  # up reads the value too and is not scaled


def test_the_layer_with_the_fewest_bits_decides(model):
    statistics = statistics_of(model, "n")
    coarse, mixed = (io.load(network()) for _ in range(2))
    scale_for_weights(coarse, plan_of(layers=("gate", "up"), bits=2), statistics)
    scale_for_weights(mixed, plan_of(layers=("gate", "up"), bits=8, up=2), statistics)
    assert io.to_bytes(coarse) == io.to_bytes(mixed)


def test_a_weight_that_something_else_reads_is_left_alone():
    table = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    text = (
        "g (float[N,S,64] x, int64[K] i) => (float[N,S,64] y, float[K,64] z)"
        " { n = LayerNormalization (x, g) \n [down] y = MatMul (n, W) \n z = Gather (W, i) }"
    )
    model = io.load(build(text, W=table, g=np.linspace(0.1, 9, 64, dtype=np.float32)))
    feeds = [{**feed, "i": np.array([1, 2])} for feed in samples(10)]
    statistics = calibrate(model, [], feeds, Run(threads=1), moments=["n"], peaks=["n"])
    assert scale_for_weights(model, plan_of(layers=("down",)), statistics) == {}


def test_statistics_that_do_not_fit_are_an_error_that_names_the_layer(model):
    statistics = Statistics()
    statistics.update_moments("n", np.ones((3, 5), np.float32))
    statistics.update_peaks("n", np.ones((3, 5), np.float32))
    with pytest.raises(CalibrationError, match="MatMul 'gate': awq_scales: a Hessian of shape"):
        scale_for_weights(model, plan_of(), statistics)
