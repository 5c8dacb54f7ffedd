"""Second moments of what layers see, windows of convolutions included, from samples run through one or two models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.core.spec import QParams
from onnxq.data.feeds import Feed
from onnxq.graph.reading.matrices import Matrices
from onnxq.graph.views.outputs import Model
from onnxq.runtime.probe import InnerValues


@dataclass(frozen=True)
class LayerInput:
    """What a layer sees.

    Attributes:
        value: the value that it reads.
        matrices: how it reads it.
    """

    value: str
    matrices: Matrices


@dataclass(frozen=True)
class SecondStream:
    """A second model that gives the values in another form.

    Attributes:
        model: the quantized model.
        values: for each value, the name there and its grid where it is integers.
    """

    model: Model
    values: Mapping[str, tuple[str, QParams | None]]


@dataclass
class LayerMoments:
    """Second moments of one layer.

    Attributes:
        moment: float64, (groups, inputs, inputs): E[xxᵀ], or E[x̂x̂ᵀ] where there is a second model.
        cross: float64, (groups, inputs, inputs): E[xx̂ᵀ]; None without a second model.
        mean: float64, (groups, inputs): E[x] of the float model.
        given: float64, (groups, inputs): E[x̂], or E[x] again.
        rows: how many rows they are the mean of.
    """

    moment: Array
    cross: Array | None
    mean: Array
    given: Array
    rows: int

    def centred(self) -> tuple[Array, Array | None]:
        """``moment`` and ``cross`` without what the means contribute: a bias can make good for that."""
        cross = None if self.cross is None else self.cross - self.mean[:, :, None] * self.given[:, None, :]
        return self.moment - self.given[:, :, None] * self.given[:, None, :], cross


def layer_moments(
    model: Model,
    layers: Mapping[str, LayerInput],
    feeds: Iterable[Feed],
    *,
    rows: int | Mapping[str, int],
    stream: SecondStream | None = None,
    threads: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, LayerMoments]:
    """Run samples and sum up what each layer sees, sample by sample.

    Args:
        model: the float model.
        layers: what is wanted, by name of the layer.
        feeds: samples.
        rows: rows to take of a layer in a sample, at most; one number, or one by name of the layer.
        stream: a second model, for moments of its values and of both together.
        threads: threads an operator may use.
        progress: called after each sample.

    Returns:
        By name of the layer; those whose input was never usable are left out.

    Raises:
        ModelError: a model cannot be run on a sample.
    """
    names = list(dict.fromkeys(seen.value for seen in layers.values()))
    clean = _Source(model, {name: (name, None) for name in names}, threads)
    other = None
    if stream is not None:
        other = _Source(stream.model, {name: stream.values[name] for name in names if name in stream.values}, threads)
    found: dict[str, LayerMoments] = {}
    for index, feed in enumerate(feeds):
        values = clean.values(feed)
        moved = other.values(feed) if other is not None else {}
        for layer, seen in layers.items():
            if seen.value in values:
                most = rows if isinstance(rows, int) else rows[layer]
                _add(found, layer, seen, values[seen.value], moved.get(seen.value), most, other is not None)
        if progress is not None:
            progress(index + 1, None)
    for entry in found.values():
        entry.moment /= entry.rows
        entry.mean /= entry.rows
        entry.given /= entry.rows
        if entry.cross is not None:
            entry.cross /= entry.rows
    return found


def _add(
    found: dict[str, LayerMoments],
    layer: str,
    seen: LayerInput,
    value: Array,
    moved: Array | None,
    limit: int,
    both: bool,
) -> None:
    given = value if moved is None else moved
    if given.shape != value.shape:
        return
    rows = seen.matrices.rows(given, limit)
    clean = seen.matrices.rows(value, limit) if both and moved is not None else rows
    if rows is None or clean is None or not rows.size:
        return
    if not (np.isfinite(rows).all() and np.isfinite(clean).all()):
        return
    square = np.matmul(rows.swapaxes(1, 2), rows)
    product = np.matmul(clean.swapaxes(1, 2), rows) if both else None
    if layer not in found:
        zeros, flat = np.zeros(square.shape, np.float64), np.zeros(square.shape[:2], np.float64)
        found[layer] = LayerMoments(zeros, zeros.copy() if both else None, flat, flat.copy(), 0)
    entry = found[layer]
    entry.moment += square
    entry.mean += clean.sum(axis=1, dtype=np.float64)
    entry.given += rows.sum(axis=1, dtype=np.float64)
    if entry.cross is not None and product is not None:
        entry.cross += product
    entry.rows += rows.shape[1]


class _Source:
    """A model with inner values as outputs."""

    def __init__(self, model: Model, values: Mapping[str, tuple[str, QParams | None]], threads: int | None) -> None:
        self._inner = InnerValues(model, [name for name, _ in values.values()], threads)
        self._values = values

    def values(self, feed: Feed) -> dict[str, Array]:
        """The values of one sample as real numbers, inputs of the model included."""
        got = self._inner.of(feed)
        found = {}
        for name, (there, params) in self._values.items():
            array = got.get(there)
            if array is None:
                continue
            if params is not None and array.dtype.kind in "iu":
                zero = params.zero_point.reshape(()).astype(np.float32)
                array = (array.astype(np.float32) - zero) * params.scale.reshape(()).astype(np.float32)
            if array.dtype.kind == "f":
                found[name] = array
        return found
