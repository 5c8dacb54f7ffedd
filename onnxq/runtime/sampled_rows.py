"""A few rows of inner values, evenly over calibration data: for what has to be tried out on the values themselves."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from onnxq.algorithms.channels.even_channels import SampleExtremes
from onnxq.core.dtypes import Array
from onnxq.data.readers import Reader
from onnxq.graph.views.outputs import Model, with_outputs
from onnxq.runtime.padding import Masks
from onnxq.runtime.session import session_of

_FEEDS = 32
"""Samples that are run at most, evenly spaced."""


def sample_rows(
    model: Model,
    values: Collection[str],
    reader: Reader,
    *,
    rows: int,
    feeds: int = _FEEDS,
    threads: int | None = None,
) -> dict[str, Array]:
    """Run some of the samples and keep some rows of values.

    Args:
        model: unchanged.
        values: names of values of (…, channels), of the main graph.
        reader: samples.
        rows: rows to keep of each value, about; padding is left out (`onnxq.runtime.padding`).
        feeds: samples to run, at most.
        threads: threads an operator may use.

    Returns:
        float32, (rows, channels), finite, by name; values that no sample had a usable row of are left out.

    Raises:
        ModelError: the model cannot be run on a sample.
    """
    augmented = with_outputs(model, values)
    wanted = [name for name in (*augmented.outputs, *augmented.inputs) if name in values]
    if not wanted:
        return {}
    masks = Masks.of(model)
    session = session_of(augmented.model, threads=threads)
    count = reader.count_feeds()
    chosen = set(np.linspace(0, count - 1, min(count, feeds)).astype(int).tolist())
    share = -(-rows // max(len(chosen), 1))
    found: dict[str, list[Array]] = {}
    for index, feed in enumerate(reader):
        if index not in chosen:
            continue
        padding = masks.in_feed(feed)
        # Asked for no output, the runtime gives all.
        given = session.run(feed, augmented.outputs) if augmented.outputs else []
        arrays = dict(zip(augmented.outputs, given, strict=True))
        for name in wanted:
            array = arrays.get(name, feed.get(name))
            if array is None or array.dtype.kind != "f" or array.ndim == 0 or array.size == 0:
                continue
            flat = padding.rows(name, array).reshape(-1, array.shape[-1])
            flat = flat[np.isfinite(flat).all(axis=1)]
            places = np.linspace(0, len(flat) - 1, min(share, len(flat))).astype(int)
            found.setdefault(name, []).append(np.array(flat[places], np.float32))
    joined = {}
    for name, parts in found.items():
        if len({part.shape[1] for part in parts}) == 1 and any(len(part) for part in parts):
            joined[name] = np.concatenate(parts)
    return joined


def sample_channels(
    model: Model, axes: Mapping[str, int], reader: Reader, *, rows: int, feeds: int, threads: int | None = None
) -> dict[str, tuple[SampleExtremes, SampleExtremes]]:
    """Run some of the samples, evenly spaced.

    Args:
        model: unchanged.
        axes: the axis of the channels of values of the main graph, by name.
        reader: samples.
        rows: places to keep of each value, about.
        feeds: samples to run, at most.
        threads: threads an operator may use.

    Returns:
        What every other sample showed, and what the rest did (the same one twice where there is one sample), by name;
        values that are not float32, not finite, or have other channels from sample to sample are left out.

    Raises:
        ModelError: the model cannot be run on a sample.
    """
    augmented = with_outputs(model, axes)
    if not augmented.outputs:
        return {}
    session = session_of(augmented.model, threads=threads)
    count = reader.count_feeds()
    chosen = set(np.linspace(0, count - 1, min(count, feeds)).astype(int).tolist())
    share = -(-rows // max(len(chosen), 1))
    found: dict[str, list[SampleExtremes]] = {}
    dropped: set[str] = set()
    for index, feed in enumerate(reader):
        if index > max(chosen, default=-1):
            break
        if index not in chosen:
            continue
        for name, array in zip(augmented.outputs, session.run(feed, augmented.outputs), strict=True):
            part = _part(array, axes[name], share) if name not in dropped else None
            if part is None or (name in found and found[name][0].lowest.size != part.lowest.size):
                dropped.add(name)
            else:
                found.setdefault(name, []).append(part)
    return {
        name: (_join(parts[::2]), _join(parts[1::2] or parts)) for name, parts in found.items() if name not in dropped
    }


def _part(array: Array, axis: int, share: int) -> SampleExtremes | None:
    if array.dtype != np.float32 or array.ndim <= axis or array.size == 0:
        return None
    others = tuple(other for other in range(array.ndim) if other != axis)
    lowest, highest = array.min(axis=others), array.max(axis=others)
    if not (np.isfinite(lowest).all() and np.isfinite(highest).all()):
        return None
    return SampleExtremes(_some(np.moveaxis(array, axis, -1), share), lowest, highest)


def _join(parts: list[SampleExtremes]) -> SampleExtremes:
    return SampleExtremes(
        np.concatenate([part.rows for part in parts]),
        np.min([part.lowest for part in parts], axis=0),
        np.max([part.highest for part in parts], axis=0),
    )


def _some(array: Array, count: int) -> Array:
    """Evenly spaced places of (…, channels), as (places, channels)."""
    shape = array.shape[:-1]
    total = int(np.prod(shape))
    chosen = np.linspace(0, total - 1, min(count, total)).astype(int)
    return np.array(array[np.unravel_index(chosen, shape)] if shape else array[None], np.float32)
