from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from onnxq.errors import ModelError, VerificationError
from onnxq.runtime.session import open_session
from onnxq.verify.compare import compare

FLOAT = "g (float[N,3] x) => (float[N,3] y) { y = Identity(x) }"
NOISY = "g (float[N,3] x) => (float[N,3] y) <float[3] b = {0.0, 0.5, 0.0}> { y = Add(x, b) }"
FEEDS = [{"x": np.array([[1, 0, 0], [0.3, 0, 0]], np.float32)}, {"x": np.array([[0, 0, 2]], np.float32)}]


def test_all_measures_over_all_samples(content):
    found = compare(content(FLOAT), content(NOISY), FEEDS, labels=np.array([0, 1, 2]), threads=1)
    assert found.samples == 2
    signal, noise = 1 + 0.09 + 4, 3 * 0.25
    assert found.sqnr_db == found.outputs["y"].sqnr_db == pytest.approx(10 * math.log10(signal / noise), abs=1e-5)
    assert found.outputs["y"].max_abs_error == 0.5
    assert found.class_output == "y"
    assert found.top1_agreement == pytest.approx(2 / 3)
    assert found.accuracy == {"float": pytest.approx(2 / 3), "quantized": 1.0}
    assert found.finite
    assert found.warnings == []


def test_paths_and_generators_are_taken(content, tmp_path):
    (tmp_path / "a.onnx").write_bytes(content(FLOAT))
    found = compare(tmp_path / "a.onnx", Path(tmp_path / "a.onnx"), (feed for feed in FEEDS), optimize=False)
    assert found.sqnr_db == math.inf
    assert "equal, cosine 1.000000" in found.summary()


def test_the_worst_output_counts_and_the_first_with_classes_is_chosen(content):
    two = (
        "g (float[N,3] x) => (float[N,1] s, float[N,2] y, float[N,3] z)"
        " <int64[1] a = {1}, float[3] b = {0.0, EPS, 0.0}, float[3,2] w = {5.0, 0.0, 1.0, 1.0, 0.0, 5.0}>"
        " { s = ReduceSum(x, a) \n y = MatMul(x, w) \n z = Add(x, b) }"
    )
    found = compare(content(two.replace("EPS", "0.0")), content(two.replace("EPS", "0.1")), FEEDS, threads=1)
    assert found.class_output == "y"
    assert found.outputs["y"].sqnr_db == math.inf
    assert found.sqnr_db == found.outputs["z"].sqnr_db < 30
    assert found.outputs["s"].top1_agreement is None


def test_integer_outputs_have_an_agreement_and_no_sqnr(content):
    text = "g (float[N,3] x) => (int64[N,1] y) { y = ArgMax<axis=1>(INPUT) }"
    noisy = (
        "g (float[N,3] x) => (int64[N,1] y) <float[3] b = {0.0, 0.5, 0.0}> { z = Add(x, b) \n y = ArgMax<axis=1>(z) }"
    )
    found = compare(content(text.replace("INPUT", "x")), content(noisy), FEEDS, threads=1)
    assert found.outputs["y"].agreement == pytest.approx(2 / 3)
    assert found.sqnr_db is found.top1_agreement is found.accuracy is None


def test_sequences_are_left_out(content):
    text = "g (float[N,3] x) => (seq(float[N,3]) q, float[N,3] y) { q = SequenceConstruct(x, x) \n y = Identity(x) }"
    assert list(compare(content(text), content(text), FEEDS, threads=1).outputs) == ["y"]


def test_shapes_that_differ_are_a_warning(content):
    text = (
        "g (float[N,3] x) => (float[K,2] y) <float[3] b = {0.0, EPS, 0.0}>"
        " { z = Add(x, b) \n i = NonZero(z) \n t = Transpose(i) \n y = Cast<to=1>(t) }"
    )
    found = compare(content(text.replace("EPS", "0.0")), content(text.replace("EPS", "1.0")), FEEDS, threads=1)
    assert found.outputs["y"].mismatched == 2
    assert found.outputs["y"].top1_agreement is None
    assert found.sqnr_db is None
    assert found.warnings == [
        "output 'y': shapes or types differ between the models on 2 of 2 samples, which are left out"
    ]


def test_a_model_that_gives_nan_is_not_finite(content):
    broken = "g (float[N,3] x) => (float[N,3] y) { y = Log(x) }"
    found = compare(content(FLOAT), content(broken), [{"x": np.full((1, 3), -1, np.float32)}], threads=1)
    assert not found.finite
    assert found.sqnr_db == -math.inf
    assert "3 elements are NaN or infinite" in found.summary()


def test_outputs_are_matched_by_position_when_names_differ(content):
    renamed = "g (float[N,3] x) => (float[N,3] other) { other = Identity(x) }"
    assert compare(content(FLOAT), content(renamed), FEEDS, threads=1).outputs["y"].sqnr_db == math.inf
    more = "g (float[N,3] x) => (float[N,3] a, float[N,3] b) { a = Identity(x) \n b = Identity(x) }"
    with pytest.raises(VerificationError, match=r"quantized model: its outputs \['a', 'b'\] are not those of float"):
        compare(content(FLOAT), content(more), FEEDS)


@pytest.mark.parametrize("labels", [np.array([0, 1]), np.array([0, 1, 2, 0]), np.zeros(0)])
def test_labels_that_do_not_match_the_samples_give_no_accuracy(content, labels):
    found = compare(content(FLOAT), content(NOISY), FEEDS, labels=labels, threads=1)
    assert found.accuracy is None
    assert found.warnings == [
        "labels: they do not match an output of class scores item by item, so accuracy is not given"
    ]


def test_labels_of_which_the_float_model_hits_none_are_doubted(content):
    feeds = [{"x": np.eye(3, dtype=np.float32)[np.arange(12) % 3]}]
    (warning,) = compare(content(FLOAT), content(NOISY), feeds, labels=(np.arange(12) + 1) % 3, threads=1).warnings
    assert "the float model hits none of 12" in warning
    assert compare(content(FLOAT), content(NOISY), feeds, labels=np.arange(12) % 3, threads=1).warnings == []


def test_labels_may_be_one_hot_or_a_column(content):
    for labels in (np.eye(3)[[0, 1, 2]], np.array([[0], [1], [2]])):
        found = compare(content(FLOAT), content(NOISY), FEEDS, labels=labels, threads=1)
        assert found.accuracy == {"float": pytest.approx(2 / 3), "quantized": 1.0}


def test_the_dict_is_plain(content):
    found = compare(content(FLOAT), content(NOISY), FEEDS, labels=np.array([0, 1, 2]), threads=1).to_dict()
    assert json.loads(json.dumps(found))["outputs"]["y"]["samples"] == 2


def test_models_that_do_not_run_are_named(content):
    with pytest.raises(ModelError, match=r"^quantized model: onnxruntime .* cannot load it"):
        compare(content(FLOAT), b"nonsense", FEEDS)
    with pytest.raises(VerificationError, match=r"there is not one sample"):
        compare(content(FLOAT), content(FLOAT), [])


DRAWING = "g (float[N,3] x) => (float[N,3] y) { a = RandomNormalLike<scale = 3.0>(x) \n y = Add(x, a) }"
DRAWING_TOO = (
    "g (float[N,3] x) => (float[N,3] y) <float[3] b = {0.0, 0.01, 0.0}>"
    " { z = Add(x, b) \n a = RandomNormalLike<scale = 3.0>(x) \n y = Add(z, a) }"
)


def test_models_that_draw_are_compared_on_the_same_draws(content):
    feeds = [{"x": np.zeros((20, 3), np.float32)}] * 3
    equal = compare(content(DRAWING), content(DRAWING), feeds, threads=1)
    assert equal.sqnr_db == math.inf
    near = compare(content(DRAWING), content(DRAWING_TOO), feeds, threads=1)
    assert near.sqnr_db > 40
    assert [line.partition(",")[0] for line in near.warnings] == [
        "the model draws random numbers (RandomNormalLike 'RandomNormalLike_0')"
    ]


def test_open_sessions_that_draw_are_compared_so_too(content):
    reference, actual = (open_session(content(text), threads=1) for text in (DRAWING, DRAWING_TOO))
    feeds = [{"x": np.zeros((20, 3), np.float32)}]
    reference.run(feeds[0])
    found = compare(reference, actual, feeds)
    assert found.sqnr_db > 40
    assert found.sqnr_db == compare(reference, actual, feeds).sqnr_db


def test_nan_that_becomes_a_number_is_said(content):
    healed = "g (float[N,3] x) => (float[N,3] y) { n = IsNaN(x) \n z = Sub(x, x) \n o = Not(n) \n y = Cast<to = 1>(o) }"
    feeds = [{"x": np.array([[1.0, math.nan, 2.0]], np.float32)}, {"x": np.ones((1, 3), np.float32)}]
    found = compare(content(FLOAT), content(healed), feeds, threads=1)
    assert found.outputs["y"].nonfinite_lost == 1
    assert [
        line for line in found.warnings if line.startswith("output 'y': 1 elements that are NaN or infinite in the")
    ]
    same = compare(content(FLOAT), content(FLOAT), feeds, threads=1)
    assert [line for line in same.warnings if line.startswith("samples: 1 hold NaN or infinite inputs; integer layers")]
    assert not compare(content(FLOAT), content(FLOAT), feeds[1:], threads=1).warnings
