"""Inner values as they really are: their types and shapes, where shape inference does not know them, or themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.errors import ModelError
from onnxq.graph.views.inner import shape_of
from onnxq.graph.views.outputs import Model, only_outputs, tensor_names, value_names, with_inner_shapes, with_outputs
from onnxq.runtime.session import Session, session_of


@dataclass(frozen=True)
class ValueInfo:
    """Type and shape of a value in one run."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def probe(model: Model, feed: Feed, *, threads: int | None = None) -> dict[str, ValueInfo]:
    """Run a model once and say what every value was.

    Args:
        model: unchanged.
        feed: arrays by input name.
        threads: threads an operator may use; None lets the runtime choose.

    Returns:
        By name: the inputs, then the values in graph order, then the float32 values of subgraphs that were run.
        Sequences and optional values are left out, and so are values that the runtime cannot give as outputs.

    Raises:
        ModelError: the model itself cannot be loaded or run on the feed.
    """
    given = [value.name for value in model.graph.outputs if value.name]
    found = {name: ValueInfo(array.dtype, array.shape) for name, array in feed.items()}
    # First everything; then without what may be no tensor; then only what the model gives anyway.
    for names in (value_names(model), tensor_names(model)):
        try:
            return found | _run(model, names, feed, threads) | _inside(model, feed, threads)
        except ModelError:
            continue
    return found | _run(model, given, feed, threads)


def _inside(model: Model, feed: Feed, threads: int | None) -> dict[str, ValueInfo]:
    augmented = with_inner_shapes(model)
    if not augmented.inner:
        return {}
    try:
        session = session_of(augmented.model, threads=threads, optimize=False, packed=False)
        shapes = map(shape_of, session.run(feed, list(augmented.inner.values())))
    except ModelError:
        return {}
    return {
        name: ValueInfo(np.dtype(np.float32), shape)
        for name, shape in zip(augmented.inner, shapes, strict=True)
        if shape is not None
    }


def _run(model: Model, names: Sequence[str], feed: Feed, threads: int | None) -> dict[str, ValueInfo]:
    augmented = with_outputs(model, names)
    session = session_of(augmented.model, threads=threads, optimize=False, packed=False)
    arrays = session.run(feed, augmented.outputs)
    return {
        name: ValueInfo(array.dtype, array.shape)
        for name, array in zip(augmented.outputs, arrays, strict=True)
        if isinstance(array, np.ndarray)
    }


class InnerValues:
    """A model of which only some values are computed."""

    def __init__(self, model: Model, names: Iterable[str], threads: int | None = None) -> None:
        """Open it.

        Args:
            model: unchanged.
            names: of its values; its inputs may be among them, unknown ones are left out.
            threads: threads an operator may use.

        Raises:
            ModelError: the runtime cannot load it.
        """
        self._names = list(dict.fromkeys(names))
        cut = only_outputs(model, self._names)
        self._fetch = [value.name or "" for value in cut.graph.outputs]
        self._session: Session | None = session_of(cut, threads=threads) if self._fetch else None
        self._takes = {spec.name for spec in self._session.input_specs} if self._session is not None else set()

    def of(self, feed: Feed) -> dict[str, Array]:
        """The values of one sample by name.

        Raises:
            ModelError: the runtime fails on it.
        """
        got: dict[str, Array] = {}
        if self._session is not None:
            taken = {name: array for name, array in feed.items() if name in self._takes}
            got = dict(zip(self._fetch, self._session.run(taken, self._fetch), strict=True))
        return got | {name: feed[name] for name in self._names if name in feed and name not in got}
