"""A few rows of inner values, evenly over calibration data: for what has to be tried out on the values themselves."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

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
