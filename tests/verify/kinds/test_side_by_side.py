"""What is shown of a sample: the form fits the kind, and numbers are those of the arrays."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from onnxq.verify import loss
from onnxq.verify.kinds.boxes import boxes_of
from onnxq.verify.kinds.side_by_side import BOXED, PIXELS, shown_sample

GENERATOR = np.random.default_rng(0)
IMAGE = GENERATOR.uniform(size=(2, 3, 40, 60)).astype(np.float32)


def only(kind: str, expected: np.ndarray, got: np.ndarray, feed: np.ndarray = IMAGE) -> dict:
    (row, *_) = shown_sample({"x": feed}, {"y": (expected, got)}, {"y": kind}, 0, most=1)
    (shown,) = row["outputs"]
    return shown


def test_classes_are_scores_of_the_best() -> None:
    scores = np.zeros((2, 20), np.float32)
    scores[0, 7], scores[0, 3] = 4.0, 2.0
    other = scores.copy()
    other[0, 3] = 5.0
    shown = only(loss.CLASSES, scores, other)
    assert shown["form"] == "scores" and shown["rows"][0][0] == 7 and not shown["same"]
    assert shown["rows"][0][1] == pytest.approx(np.exp(4) / (np.exp(4) + np.exp(2) + 18))


def test_a_picture_is_as_large_as_it_needs_to_be() -> None:
    (row,) = shown_sample({"x": np.zeros((1, 3, 300, 500), np.float32)}, {}, {}, 5, most=3)
    height, width, channels = row["input"]["picture"]["shape"]
    assert row["sample"] == 5 and channels == 3 and width <= PIXELS and height == 50
    pixels = base64.b64decode(row["input"]["picture"]["pixels"])
    assert len(pixels) == height * width * channels


def test_maps_of_classes_and_masks() -> None:
    scores = GENERATOR.normal(size=(1, 5, 32, 32)).astype(np.float32)
    shown = only(loss.POSITIONS, scores, scores, IMAGE[:1])
    assert shown["form"] == "classes" and shown["differs"] == 0.0 and shown["count"] == 5
    assert base64.b64decode(shown["float"]["pixels"]) == scores[0].argmax(axis=0).astype(np.uint8).tobytes()
    mask = GENERATOR.uniform(size=(1, 1, 32, 32)).astype(np.float32)
    shown = only(loss.PROBABILITIES, mask, mask + 0.25, IMAGE[:1])
    assert shown["form"] == "pictures" and shown["largest"] == pytest.approx(0.25, rel=1e-5)


def test_texts_are_collapsed() -> None:
    best = np.array([0, 3, 3, 0, 3, 5, 0, 0])
    scores = np.eye(8, dtype=np.float32)[best][None]
    other = np.eye(8, dtype=np.float32)[np.where(best == 5, 6, best)][None]
    shown = only(loss.TEXT, scores, other, IMAGE[:1])
    assert (shown["float"], shown["quantized"]) == ([3, 3, 5], [3, 3, 6])
    assert shown["differs"] == pytest.approx(1 / 8)


def test_curves_points_numbers_and_strings() -> None:
    wave = np.sin(np.arange(4000, dtype=np.float32))[None]
    assert only(loss.SIGNAL, wave, wave, wave)["form"] == "curves"
    assert len(only(loss.SIGNAL, wave, wave, wave)["float"]) <= 240
    vector = GENERATOR.normal(size=(1, 8, 16)).astype(np.float32)
    assert only(loss.VALUES, vector, vector, IMAGE[:1])["form"] == "points"
    assert only(loss.VALUES, vector[:, 0, :3], vector[:, 0, :3], IMAGE[:1])["form"] == "numbers"
    words = np.array([["yes", "no"]], dtype=object)
    assert only(loss.ELEMENTS, words, words, IMAGE[:1]) | {"kind": ""} == {
        "output": "y", "kind": "", "form": "strings", "float": ["yes", "no"],
        "quantized": ["yes", "no"], "differs": 0.0,
    }  # fmt: skip


def test_states_and_other_shapes_are_left_out() -> None:
    arrays = {"s": (IMAGE, IMAGE), "y": (IMAGE, IMAGE[:, :1])}
    (row,) = shown_sample({"x": IMAGE}, arrays, {"s": loss.STATE, "y": loss.SIGNAL}, 0, most=1)
    assert row["outputs"] == []


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_boxes_in_every_form(pixels: bool, centred: bool) -> None:
    corners = np.tile(np.array([0.1, 0.2, 0.3, 0.6], np.float32), (1, 40, 1))
    corners[0, 20] = [0.5, 0.5, 0.9, 0.8]
    scores = np.full((1, 40, 2), [1.0, 0.0], np.float32)
    for index in (3, 4, 20):  # two of them overlap
        scores[0, index] = [0.1, 0.9]
    boxes = corners * (np.array([60, 40, 60, 40], np.float32) if pixels else 1)
    if centred:
        boxes = np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], axis=-1)
    found = boxes_of(
        {"s": (scores, scores * 0.9), "b": (boxes, boxes)}, {"s": loss.POSITIONS, "b": loss.VALUES}, (40, 60)
    )
    assert found is not None and found["names"] == ["s", "b"]
    np.testing.assert_allclose(np.array(found["float"])[:, :4], [[0.1, 0.2, 0.3, 0.6], [0.5, 0.5, 0.9, 0.8]], atol=1e-3)
    assert np.array(found["quantized"])[:, 4] == pytest.approx([0.81, 0.81])


def test_a_line_of_text_can_be_read() -> None:
    (row,) = shown_sample({"x": np.zeros((1, 3, 48, 480), np.float32)}, {}, {}, 0, most=1)
    height, width, _ = row["input"]["picture"]["shape"]
    assert height >= 24 and width > 2 * PIXELS and height * width <= PIXELS * PIXELS


def test_a_detector_with_one_output_is_drawn_on_a_larger_picture() -> None:
    output = np.zeros((1, 7, 50), np.float32)
    output[0, :4, 9] = [200, 100, 80, 40]
    output[0, 5, 9] = 0.8
    feed = np.zeros((1, 3, 200, 400), np.float32)
    (row,) = shown_sample({"x": feed}, {"y": (output, output)}, {"y": loss.DETECTION}, 0, most=1)
    assert row["outputs"][0]["float"] == [[0.4, 0.4, 0.6, 0.6, 0.8]]
    assert PIXELS < row["input"]["picture"]["shape"][1] <= BOXED


def test_a_cache_is_no_picture() -> None:
    past = np.random.default_rng(0).random((1, 3, 20, 16), np.float32)
    present = np.concatenate([past, past[:, :, :1]], axis=2)
    feed = {"ids": np.zeros((1, 1), np.int64), "past": past}
    outputs = {"logits": (np.eye(1, 40, dtype=np.float32),) * 2, "present": (present, present)}
    (row,) = shown_sample(feed, outputs, {"logits": "classes", "present": "state"}, 0, most=4)
    assert row["input"] is None
    assert shown_sample({"image": past}, {"logits": outputs["logits"]}, {"logits": "classes"}, 0, most=4)[0]["input"]
