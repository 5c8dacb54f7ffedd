"""Which preprocessing a model was trained with, found by trying.

A classifier that is shown images as it learned to see them tells them apart, and goes on doing so when they are
changed a little; shown anything else, it gives all of them one class, or another one at each change. What is measured
is the information that its answer carries about the image, over small changes of it: the entropy of the mean answer
less the mean entropy of each image's own (the mutual information of Bridle, Heading and MacKay, NIPS 1991). Logits are
brought to one size first, since confidence alone grows with the size of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed, InputSpec
from onnxq.data.preprocessing import Preprocess

Change = Callable[[Array], Array]

_SHARPNESS = 3.0
"""Size that logits are brought to: their root mean square."""

_CLOSE = 0.1
"""Share of the best score by which another preset has to be worse to count as told apart."""


_CLEARLY = 0.1
"""Accuracy by which the best preset has to lead for labels to decide."""


def _shifted(pixels: Array) -> Array:
    return np.roll(pixels, max(1, pixels.shape[0] // 16), 0)


CHANGES: tuple[Change, ...] = (
    lambda pixels: pixels,
    lambda pixels: pixels[:, ::-1],
    lambda pixels: (pixels * 0.85).astype(np.uint8),
    _shifted,
)
"""Small changes that leave what an image shows: none, mirrored, darker, moved."""


def guess(
    presets: Mapping[str, Preprocess],
    feeds: Callable[[Preprocess, Change], Iterator[Feed]],
    run: Callable[[Feed, Sequence[str]], Sequence[Any]] | None,
    outputs: Sequence[InputSpec],
    labels: Array | None,
    where: str,
) -> tuple[str, str]:
    """Take the preset under which the model's answers tell the most.

    Args:
        presets: to choose from, by name.
        feeds: the first samples by a preset, each image changed.
        run: the float model.
        outputs: of it.
        labels: classes of the samples, if known: accuracy then decides.
        where: subject of the note.

    Returns:
        Name of the preset, and what was guessed from what, for a note.
    """
    classes = [spec for spec in outputs if len(spec.shape) == 2 and spec.shape[1] != 1 and spec.dtype.kind == "f"]
    remedy = "--preprocess says it"
    if run is None or len(classes) != 1:
        usual = "imagenet" if "imagenet" in presets else "0-1"
        return usual, (
            f"{where}: how the model wants its pixels cannot be told from its outputs, so that '{usual}' was assumed; "
            f"ranges are wrong if it is another of {', '.join(presets)}: {remedy}"
        )
    answers = {
        name: np.stack([_answers(run, feeds(preset, change), classes[0].name) for change in CHANGES])
        for name, preset in presets.items()
    }
    what, scores = "information in nats", {name: information(found) for name, found in answers.items()}
    if labels is not None:
        right = {name: _accuracy(found, labels) for name, found in answers.items()}
        second, first = sorted(right.values())[-2:]
        if first - second >= _CLEARLY:  # else alike, or labels that count the classes in another order
            what, scores = "accuracy", right
    ranked = sorted(scores, key=lambda name: -scores[name])
    best = ranked[0]
    listed = ", ".join(f"{name} {scores[name]:.2f}" for name in ranked)
    near = [name for name in ranked[1:] if scores[name] > scores[best] * (1 - _CLOSE)]
    doubt = f", {' and '.join(near)} nearly as likely" if near else ""
    return best, f"{where}: preprocessing guessed by trying: '{best}'{doubt} ({what}: {listed}); {remedy} otherwise"


def _answers(run: Callable[[Feed, Sequence[str]], Sequence[Any]], feeds: Iterator[Feed], output: str) -> Array:
    """Logits of the samples, or logarithms of their probabilities: (samples, classes)."""
    found: Array = np.concatenate([np.asarray(run(feed, [output])[0], np.float64) for feed in feeds])
    found = np.nan_to_num(found, nan=0.0, posinf=1e30, neginf=-1e30)
    if found.min() >= 0 and np.allclose(found.sum(-1), 1, atol=1e-3):
        found = np.log(np.maximum(found, 1e-9))
    return found


def information(answers: Array) -> float:
    """Nats that an answer tells about its image.

    Args:
        answers: logits, (changes, images, classes).
    """
    centred = answers - answers.mean(-1, keepdims=True)
    size = np.sqrt(np.mean(np.square(centred)))
    logits = centred * (_SHARPNESS / size) if size > 0 else centred
    logits -= logits.max(-1, keepdims=True)
    shares = np.exp(logits)
    shares /= shares.sum(-1, keepdims=True)
    return float(_entropy(shares.mean((0, 1))) - _entropy(shares.mean(0)).mean())


def _entropy(shares: Array) -> Array:
    entropy: Array = -(shares * np.log(np.maximum(shares, 1e-300))).sum(-1)
    return entropy


def _accuracy(answers: Array, labels: Array) -> float:
    found = answers[0].argmax(-1)
    return float(np.mean(found == labels[: len(found)]))
