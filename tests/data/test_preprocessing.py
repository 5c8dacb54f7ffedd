from __future__ import annotations

import numpy as np
import pytest

from onnxq.data.feeds import InputSpec
from onnxq.data.guess_preprocess import guess, information
from onnxq.data.preprocessing import PREPROCESSES, preprocess_named
from onnxq.errors import RecipeError

PIXELS = np.array([[[0, 128, 255]]], np.uint8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0-255", [0, 128, 255]),
        ("0-1", [0, 128 / 255, 1]),
        ("-1-1", [-1, 128 / 127.5 - 1, 1]),
        ("imagenet", [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]),
        ("caffe", [255 - 103.939, 128 - 116.779, 0 - 123.68]),
    ],
)
def test_presets_compute_what_their_makers_do(name: str, expected: list[float]) -> None:
    numbers = PREPROCESSES[name].apply(PIXELS)
    assert numbers.dtype == np.float32
    np.testing.assert_allclose(numbers[0, 0], expected, rtol=1e-5, atol=1e-4)


def test_mean_and_std_are_of_pixels_in_the_unit_of_the_preset() -> None:
    ours = preprocess_named(None, mean=[0.5], std=[0.25])
    theirs = preprocess_named("0-255", mean=[127.5], std=[63.75])
    assert ours is not None and theirs is not None
    np.testing.assert_allclose(ours.apply(PIXELS), theirs.apply(PIXELS), rtol=1e-5, atol=1e-5)
    assert preprocess_named(None, bgr=True, resize=256) is None, "neither says what the numbers are"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "imagnet"}, r"imagnet: no such preset; did you mean 'imagenet'\? there are imagenet, 0-1"),
        ({"name": None, "mean": [123.0]}, "--mean 123: pixels are scaled to 0…1 .* add --preprocess 0-255"),
        ({"name": None, "std": [0.0]}, "--std 0: deviations are above 0"),
        ({"name": "0-1", "mean": [float("nan")]}, "--mean nan: a value is not finite"),
        ({"name": "0-1", "resize": "cover"}, "--resize cover: pass the length of the shorter side"),
        ({"name": "0-1", "crop": 0}, "--crop 0: pass a length in pixels from 1"),
    ],
)
def test_what_makes_no_sense_is_said(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        preprocess_named(**arguments)  # type: ignore[arg-type]


def test_a_wrong_number_of_channels_is_said() -> None:
    with pytest.raises(RecipeError, match="--mean: 2 values for an image of 3 channels; pass 1 or 3"):
        preprocess = preprocess_named("0-1", mean=[0.1, 0.2])
        assert preprocess is not None
        preprocess.apply(PIXELS)


def test_information_knows_steady_answers_from_collapsed_and_from_noisy_ones() -> None:
    generator = np.random.default_rng(0)
    classes = np.eye(10)[np.arange(20) % 10] * 5
    steady = np.stack([classes + 0.1 * generator.standard_normal(classes.shape) for _ in range(4)])
    noisy = generator.standard_normal((4, 20, 10))
    collapsed = np.tile(np.eye(10)[3] * 5, (4, 20, 1)) + 0.1 * generator.standard_normal((4, 20, 10))
    assert information(steady) > 3 * information(noisy)
    assert information(steady) > 3 * information(collapsed)
    assert information(1000 * steady) == pytest.approx(information(steady)), "confidence alone is no evidence"
    assert information(np.zeros((4, 20, 10))) == pytest.approx(0)


def test_without_class_scores_a_guess_is_an_assumption_and_says_so() -> None:
    boxes = [InputSpec("boxes", np.dtype(np.float32), (None, 100, 4))]
    chosen, said = guess(PREPROCESSES, lambda preprocess, change: iter(()), None, boxes, None, "photos")
    assert chosen == "imagenet"
    assert "cannot be told from its outputs, so that 'imagenet' was assumed" in said
