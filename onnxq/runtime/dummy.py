"""Feeds for models that came without data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.errors import ModelError
from onnxq.runtime.feeds import Dim, Feed, InputSpec
from onnxq.runtime.session import Session, TookTooLongError

_SEED = 20240501

_LONGEST = 8.0
"""Seconds that one run on a made-up sample may take: what a loop does there, nobody can say beforehand."""


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


def runnable_feed(session: Session, sizes: Sequence[int] = (1, 16, 32, 64, 128, 224)) -> Feed:
    """Make up a feed that the model runs on, trying lengths for its dynamic axes one after the other.

    Raises:
        ModelError: the model ran on none of them; the message has the runtime's last reason.
    """
    inputs = session.input_specs
    failure: ModelError | None = None
    tried = sizes if any(not isinstance(dim, int) for spec in inputs for dim in spec.shape) else sizes[:1]
    for size in tried:
        feed = dummy_feed(inputs, size)
        try:
            session.run(feed, session.output_names, seconds=_LONGEST)
        except TookTooLongError as error:
            raise ModelError(f"{error} on made-up data; give samples with --calibration") from error
        except ModelError as error:
            failure = failure or error
        else:
            return feed
    raise ModelError(f"{failure}; no made-up input fits it, so give samples with --calibration")


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
