"""Perplexity and agreement over tokens, against a plain computation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxq.errors import RecipeError
from onnxq.verify.compare import compare
from onnxq.verify.metrics import METRICS, metric_of
from onnxq.verify.tokens import targets_of, token_ids

VOCABULARY = 7
TABLE = np.random.default_rng(0).normal(0, 2, (VOCABULARY, VOCABULARY)).astype(np.float32)
NOISE = np.random.default_rng(1).normal(0, 1, (VOCABULARY, VOCABULARY)).astype(np.float32)


def text(table):
    numbers = ", ".join(str(float(x)) for x in table.reshape(-1))
    return (
        "g (int64[N,S] input_ids, int64[N,S] attention_mask) => (float[N,S,7] logits)"
        f" <float[7,7] table = {{{numbers}}}> {{ logits = Gather(table, input_ids) }}"
    )


def likely(rng, shape):
    """Ids that follow the table, so that the model predicts them."""
    ids = np.zeros(shape, np.int64)
    for item in range(shape[0]):
        for place in range(1, shape[1]):
            p = np.exp(TABLE[ids[item, place - 1]].astype(np.float64))
            ids[item, place] = rng.choice(VOCABULARY, p=p / p.sum())
    return ids


def feeds(padded=False):
    rng = np.random.default_rng(2)
    found = []
    for length in (40, 30, 50):
        mask = np.ones((2, length), np.int64)
        if padded:
            mask[0, : length // 3] = 0
            mask[1, length // 2 :] = 0
        found.append({"input_ids": likely(rng, (2, length)), "attention_mask": mask})
    return found


def expected(samples, table):
    loss, hits, tokens = 0.0, 0, 0
    for feed in samples:
        for ids, mask in zip(feed["input_ids"], feed["attention_mask"], strict=True):
            for place in range(len(ids) - 1):
                if mask[place] and mask[place + 1]:
                    row = table[ids[place]].astype(np.float64)
                    loss -= row[ids[place + 1]] - math.log(np.exp(row).sum())
                    hits += row.argmax() == ids[place + 1]
                    tokens += 1
    return math.exp(loss / tokens), hits / tokens


@pytest.mark.parametrize("padded", [False, True])
def test_perplexity_of_the_next_token(content, padded):
    samples = feeds(padded)
    found = compare(content(text(TABLE)), content(text(TABLE + NOISE)), samples, threads=1)
    assert found.perplexity == {
        "float": pytest.approx(expected(samples, TABLE)[0]),
        "quantized": pytest.approx(expected(samples, TABLE + NOISE)[0]),
    }
    assert found.accuracy is None
    assert 0 < found.token_agreement < 1
    assert "perplexity: " in found.summary()
    same = compare(content(text(TABLE)), content(text(TABLE)), samples, threads=1)
    assert same.token_agreement == 1.0
    assert same.token_divergence == 0.0
    rows = np.concatenate([np.concatenate([f["input_ids"][0, :-1], f["input_ids"][1, :-1]]) for f in samples])
    if not padded:
        p, q = (np.exp(t[rows].astype(np.float64)) for t in (TABLE, TABLE + NOISE))
        p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
        assert found.token_divergence == pytest.approx((p * np.log(p / q)).sum(-1).mean())
        assert metric_of(found, "divergence").quantized == found.token_divergence
    assert same.perplexity["float"] == same.perplexity["quantized"]


def test_labels_that_repeat_the_ids_and_labels_of_their_own(content):
    samples = feeds()[:1] * 2
    ids = np.concatenate([feed["input_ids"] for feed in samples])
    repeated = ids.copy()
    repeated[:, :5] = -100
    moved = np.full_like(ids, -100)
    moved[:, :-1] = ids[:, 1:]
    by_ids = compare(content(text(TABLE)), content(text(TABLE)), samples, threads=1)
    by_moved = compare(content(text(TABLE)), content(text(TABLE)), samples, labels=moved, threads=1)
    assert by_moved.perplexity == by_ids.perplexity
    assert by_moved.accuracy["float"] == pytest.approx(expected(samples, TABLE)[1])
    by_repeated = compare(content(text(TABLE)), content(text(TABLE)), samples, labels=repeated, threads=1)
    moved[:, :4] = -100
    again = compare(content(text(TABLE)), content(text(TABLE)), samples, labels=moved, threads=1)
    assert by_repeated.perplexity == again.perplexity != by_ids.perplexity
    assert by_moved.warnings == by_repeated.warnings == []


def test_an_output_that_does_not_predict_the_ids_has_no_perplexity(content):
    rng = np.random.default_rng(3)
    random = [{"input_ids": rng.integers(0, 7, (2, 60)), "attention_mask": np.ones((2, 60), np.int64)}]
    found = compare(content(text(TABLE)), content(text(TABLE)), random, threads=1)
    assert found.perplexity is found.token_agreement is None
    with pytest.raises(RecipeError, match="--metric perplexity: cannot be given, for no output"):
        metric_of(found, "perplexity")


def test_ids_beyond_the_classes_are_none(content):
    few = "g (int64[N,S] input_ids) => (float[N,S,2] y) <float[9,2] t = {" + ",".join(["1.0"] * 18) + "}>"
    few += " { y = Gather(t, input_ids) }"
    found = compare(content(few), content(few), [{"input_ids": np.array([[1, 8, 3]])}], threads=1)
    assert found.perplexity is None


def test_broken_logits_have_infinite_perplexity(content):
    broken = TABLE.copy()
    broken[:, 2] = -3e38
    found = compare(content(text(TABLE)), content(text(broken)), feeds(), threads=1)
    assert found.perplexity["quantized"] == math.inf


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["input_ids", "attention_mask", "token_type_ids"], "input_ids"),
        (["tokens", "other"], "tokens"),
        (["decoder_input_ids", "numbers"], "decoder_input_ids"),
        (["words", "position_ids"], "words"),
        (["a", "b"], None),
        (["attention_mask"], None),
    ],
)
def test_which_input_holds_the_ids(names, chosen):
    feed = {name: np.full((1, 2), number) for number, name in enumerate(names)}
    found = token_ids(feed)
    assert found is (None if chosen is None else feed[chosen])


def test_targets_without_ids_or_labels():
    assert targets_of({"x": np.ones((2, 3), np.float32)}, None) is None


def test_metrics_by_name(content):
    found = compare(content(text(TABLE)), content(text(TABLE + NOISE)), feeds(), threads=1)
    assert metric_of(found, "perplexity").reference == found.perplexity["float"]
    assert metric_of(found, "top1").quantized == found.token_agreement
    assert metric_of(found, "sqnr").quantized == found.sqnr_db
    assert metric_of(found, "cosine").quantized == found.outputs["logits"].cosine
    with pytest.raises(RecipeError, match="--metric accuracy: cannot be given, for the data has no array 'labels'"):
        metric_of(found, "accuracy")
    with pytest.raises(RecipeError, match=f"no 'perplexty'; did you mean 'perplexity'.*{METRICS[0]}"):
        metric_of(found, "perplexty")
