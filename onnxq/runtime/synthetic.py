"""Feeds for models that came without data."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Dim, Feed, InputSpec
from onnxq.errors import ModelError
from onnxq.graph.reading.lengths import lengths_in
from onnxq.runtime.session import Session, TookTooLongError

_SEED = 20240501

_LONGEST = 8.0
"""Seconds that one run on a synthetic sample may take: what a loop does there, nobody can say beforehand."""

LENGTHS = (64, 32, 128, 224, 16, 1, 256, 512, 1024, 2048, 4096, 16000, 65536)
"""Lengths tried for dynamic axes of a synthetic sample."""

_HINTS = 60
"""Lengths that the graph hints at which are tried."""

_ONE_WINDOW, _WINDOWS = 256, 8
"""A model that needs as much as this is one of windows over sound: a few of them are tried."""

_MOST_ELEMENTS = 1 << 24
_SIGMAS = 6.0
"""Standard deviations that a range holds."""
_PAST = ("past", "cache")
_NAMED = 3


def dummy_feed(inputs: Sequence[InputSpec], dims: int | Mapping[str, int] = 1) -> Feed:
    """Make up one feed, the same at every call.

    Args:
        inputs: what the model takes.
        dims: length of each dynamic axis, or lengths by the name of the axis (others get 1). Axis 0 of an input of
            rank 2 or more is a batch and has length 1 unless named, and so have all axes of the same name.

    Returns:
        Standard normal numbers for float inputs, ones for masks and booleans, zeros for other integers (every
        vocabulary has a token 0), empty strings.
    """
    generator = np.random.default_rng(_SEED)
    batches = {spec.shape[0] for spec in inputs if len(spec.shape) > 1 and isinstance(spec.shape[0], str)}
    return {spec.name: _contents(spec, _shape(spec.shape, dims, batches), generator) for spec in inputs}


def runnable_feed(session: Session) -> Feed:
    """Make up a feed that the model runs on, trying lengths for its dynamic axes one after the other.

    The first that are tried give a timing some work; then come longer ones, which raw sound needs, and then those that
    the graph hints at (`onnxq.graph.reading.lengths`). Axes named as the past of a sequence are also tried as 0.

    Raises:
        ModelError: the model ran on none of them; the message has the runtime's first reason.
    """
    inputs = session.input_specs
    if not _fits(inputs, 1):
        raise ModelError(
            f"{session.label}: its inputs are too large to make data up for; pass samples with --calibration"
        )
    failure: ModelError | None = None
    for size, feed in _candidates(inputs, session):
        error = _refusal(session, feed)
        failure = failure or error
        if error is None:
            longer = _WINDOWS * size
            if size < _ONE_WINDOW or not _fits(inputs, longer):
                return feed
            more = dummy_feed(inputs, longer)
            return feed if _refusal(session, more) else more
    raise ModelError(f"{failure}; no synthetic input fits it, so pass samples with --calibration")


def within(feed: Feed, ranges: Mapping[str, Sequence[float]]) -> Feed:
    """A made-up feed with its float inputs spread over ranges.

    Args:
        feed: standard normal numbers for float inputs.
        ranges: low and high end by input; others stay.
    """
    return {name: _spread(array, ranges[name]) if name in ranges else array for name, array in feed.items()}


def _spread(array: Array, ends: Sequence[float]) -> Array:
    low, high = ends
    middle, sigma = (low + high) / 2, (high - low) / _SIGMAS
    return np.clip(middle + sigma * array, low, high).astype(array.dtype) if array.dtype.kind == "f" else array


def _refusal(session: Session, feed: Feed) -> ModelError | None:
    """Why a model does not run on a feed; None where it does."""
    try:
        session.run(feed, session.output_names, seconds=_LONGEST)
    except TookTooLongError as error:
        raise ModelError(f"{error} on synthetic data; pass samples with --calibration") from error
    except ModelError as error:
        return error
    return None


def described(feed: Feed) -> str:
    """The sizes of a feed in words, of the first inputs where there are many."""
    sizes = [f"{name} ({', '.join(map(str, array.shape))})" for name, array in feed.items()]
    return ", ".join(sizes[:_NAMED]) + (f" and {len(sizes) - _NAMED} more" if len(sizes) > _NAMED else "")


def _candidates(inputs: Sequence[InputSpec], session: Session) -> Iterator[tuple[int, Feed]]:
    """Feeds to try, with the length of their free axes."""
    names = {dim for spec in inputs for dim in spec.shape if not isinstance(dim, int)}
    if not names:
        yield 1, dummy_feed(inputs)
        return
    batches = {spec.shape[0] for spec in inputs if len(spec.shape) > 1}
    past = {name for name in names if isinstance(name, str) and any(word in name.lower() for word in _PAST)}
    for size in LENGTHS:
        if _fits(inputs, size):
            yield size, dummy_feed(inputs, size)
            if past:
                sizes = {name: 0 if name in past else 1 if name in batches else size for name in names}
                lengths = {name: length for name, length in sizes.items() if isinstance(name, str)}
                yield 1, dummy_feed(inputs, lengths)
    if session.source is not None:
        hints = [size for size in lengths_in(session.source) if size not in LENGTHS and _fits(inputs, size)]
        yield from ((size, dummy_feed(inputs, size)) for size in hints[:_HINTS])


def _fits(inputs: Sequence[InputSpec], size: int) -> bool:
    """Whether no input of that length is too large to be run for a look."""
    return all(np.prod([float(n) for n in _shape(spec.shape, size, ())]) <= _MOST_ELEMENTS for spec in inputs)


def _shape(shape: tuple[Dim, ...], dims: int | Mapping[str, int], batches: Collection[Dim]) -> tuple[int, ...]:
    lengths = []
    for axis, dim in enumerate(shape):
        if isinstance(dim, int):
            lengths.append(max(dim, 0))
        elif isinstance(dims, int):
            lengths.append(1 if (axis == 0 and len(shape) > 1) or dim in batches else dims)
        else:
            lengths.append(dims.get(dim, 1) if dim is not None else 1)
    return tuple(lengths)


def _contents(spec: InputSpec, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    if spec.dtype.kind == "U":
        return np.full(shape, "", np.str_)
    if spec.dtype.kind == "b" or "mask" in spec.name.lower():
        return np.ones(shape, spec.dtype)
    if spec.dtype.kind in "iu":
        return np.zeros(shape, spec.dtype)
    return np.asarray(generator.standard_normal(shape), np.float32).astype(spec.dtype)
