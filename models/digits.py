"""The data of every network here: scikit-learn's digits, one split for all.

1797 images of 8 x 8 pixels, 0 to 16. 597 of them are the test part, drawn by class; the other 1200 are the training
part, and 200 of those, 20 a class, are the calibration samples. Nothing in the test part is ever trained or calibrated
on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HERE = Path(__file__).resolve().parent
CALIBRATION_FOLDER = HERE.parent / "calibration_data"

TEST_SAMPLES = 597
CALIBRATION_PER_CLASS = 20
CLASSES = 10
SEED = 20240917

Prepare = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Digits:
    """The split, as stored by scikit-learn: images (n, 8, 8) with values 0 to 16, labels (n,) int64."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    calibration: np.ndarray
    """Indices into the training part, (200,)."""


def split() -> Digits:
    """The split that every network and every file here uses."""
    data = load_digits()
    images = data.images.astype(np.float32)
    labels = data.target.astype(np.int64)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=TEST_SAMPLES, stratify=labels, random_state=SEED
    )
    by_class = [np.flatnonzero(train_labels == label)[:CALIBRATION_PER_CLASS] for label in range(CLASSES)]
    calibration = np.sort(np.concatenate(by_class))
    return Digits(train_images, train_labels, test_images, test_labels, calibration)


def as_image(images: np.ndarray) -> np.ndarray:
    """(n, 8, 8) in 0...16 -> (n, 1, 16, 16) float32 in 0...1, each pixel repeated 2 x 2."""
    larger = images.repeat(2, axis=1).repeat(2, axis=2)
    return np.ascontiguousarray(larger[:, None] / 16, dtype=np.float32)


def as_vector(images: np.ndarray) -> np.ndarray:
    """(n, 8, 8) in 0...16 -> (n, 64) float32 in 0...1."""
    return np.ascontiguousarray(images.reshape(len(images), 64) / 16, dtype=np.float32)


def write_samples(stem: str, input_name: str, prepare: Prepare) -> list[Path]:
    """Write ``calibration_data/<stem>.npz`` and ``models/<stem>.test.npz``: the prepared input and ``labels``."""
    data = split()
    chosen = data.calibration
    parts = {
        CALIBRATION_FOLDER / f"{stem}.npz": (data.train_images[chosen], data.train_labels[chosen]),
        HERE / f"{stem}.test.npz": (data.test_images, data.test_labels),
    }
    CALIBRATION_FOLDER.mkdir(exist_ok=True)
    for path, (images, labels) in parts.items():
        np.savez_compressed(path, **{input_name: prepare(images), "labels": labels})
    return list(parts)
