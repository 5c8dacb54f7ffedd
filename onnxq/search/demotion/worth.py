"""What it costs to give layers back: the noise that goes for each byte, and the time that it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

from onnxq.search.choice import FLOAT, Layer

_LEAST = 0.01
"""Share of the mean price of a layer below which it counts as that: none is had for nothing."""


def by_bytes(groups: Sequence[Sequence[Layer]], base: str) -> list[Sequence[Layer]]:
    """Groups of layers in the order of the noise that goes for each byte that float weights take more.

    Args:
        groups: layers that read one weight, which is in the file once.
        base: the form that they have.
    """
    prices = [
        float(group[0].forms[FLOAT].size - group[0].forms[base].size) if FLOAT in group[0].forms else 0.0
        for group in groups
    ]
    return [groups[index] for index in _by_worth([noise_of(group, base) for group in groups], prices)]


def by_time(layers: Sequence[Layer], base: str, form: str, noise: str) -> list[Layer]:
    """Layers in the order of the noise that goes for the time which another form takes longer.

    Args:
        layers: to be ordered.
        base: the form that they have.
        form: the one that they get.
        noise: the form whose noise counts.
    """
    prices = [_longer(layer, base, form) for layer in layers]
    return [layers[index] for index in _by_worth([noise_of([layer], noise) for layer in layers], prices)]


def _by_worth(noise: Sequence[float], prices: Sequence[float]) -> list[int]:
    """Places in the order of the noise for its price, the most first."""
    known = [max(price, 0.0) for price in prices]
    least = max(_LEAST * sum(known) / max(len(known), 1), 1e-9)
    return sorted(range(len(known)), key=lambda index: -noise[index] / max(known[index], least))


def noise_of(group: Sequence[Layer], form: str) -> float:
    """What the errors of layers in a form do to the outputs, relative to the signal; their powers add up."""
    errors = [layer.forms[form].error_db for layer in group]
    return float(sum(10.0 ** (-max(error, -100.0) / 10) for error in errors if error is not None))


def _longer(layer: Layer, base: str, form: str) -> float:
    now, then = layer.cost(base), layer.cost(form)
    return 0.0 if now is None or then is None else then - now


def lost_times(order: Sequence[Layer], base: str, forms: Mapping[str, str]) -> list[float]:
    """By how much the model takes longer with the first 0, 1, 2 … layers in another form, in µs.

    Args:
        order: layers, in the order in which they are given back.
        base: the form that they have.
        forms: the other form by name of the layer.
    """
    return [0.0, *accumulate(max(_longer(layer, base, forms[layer.name]), 0.0) for layer in order)]
