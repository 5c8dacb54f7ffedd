"""Feeds: what a model takes, whether a sample fits it, and what identifies a stream of samples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.errors import CalibrationError, closest

Feed: TypeAlias = dict[str, Array]
"""Arrays by input name: what one run of a model takes."""

Dim: TypeAlias = int | str | None


@dataclass(frozen=True)
class InputSpec:
    """What one input of a model takes.

    Attributes:
        name: its name.
        dtype: element type; ``np.str_`` for strings.
        shape: for each axis its length, the name of a dynamic one, or None. A runtime reports an unknown rank as ().
        optional: samples may lack it, as a state that is carried from one sample to the next.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[Dim, ...]
    optional: bool = False

    @property
    def shape_text(self) -> str:
        """The shape for messages, as ``(N, 3, 32, 32)``."""
        dims = ", ".join("?" if dim is None else str(dim) for dim in self.shape)
        return f"({dims},)" if len(self.shape) == 1 else f"({dims})"


def check_names(names: Sequence[str], inputs: Sequence[InputSpec], where: str) -> None:
    """Check that the names are those of the inputs.

    Raises:
        CalibrationError: one is unknown (the nearest input is named), or one that is not optional is missing.
    """
    expected = [spec.name for spec in inputs]
    listed = ", ".join(f"'{name}'" for name in expected) or "none"
    missing = [spec.name for spec in inputs if spec.name not in names and not spec.optional]
    for name in names:
        if name not in expected:
            near = closest(name, missing or expected, cutoff=0.4)
            hint = f"did you mean '{near}'? " if near else ""
            raise CalibrationError(f"{where}: the model has no input '{name}'; {hint}its inputs are {listed}")
    if missing:
        raise CalibrationError(
            f"{where}: input '{missing[0]}' is missing; got {sorted(names) or 'nothing'}, the model takes {listed}"
        )


def check_array(array: Array, spec: InputSpec, where: str, *, samples_axis: bool = False) -> Array:
    """Check type, rank and fixed dimensions of one array.

    Args:
        array: contents of the input.
        spec: the input.
        where: subject of the message.
        samples_axis: axis 0 counts samples of many feeds, so that a fixed length there is not compared.

    Returns:
        The array in the byte order and type object that the runtime wants; not copied where that is not needed.

    Raises:
        CalibrationError: it does not fit.
    """
    array = _cast(array, spec, where)
    rank = len(spec.shape)
    if rank and array.ndim != rank:
        along = "samples go along the first axis, or along a new one in front of it"
        remedy = along if samples_axis else "add or drop axes with .reshape"
        raise CalibrationError(
            f"{where}: input '{spec.name}' has rank {array.ndim} with shape {array.shape}, the model takes rank {rank} "
            f"with shape {spec.shape_text}; {remedy}"
        )
    for axis, (got, want) in enumerate(zip(array.shape, spec.shape, strict=False)):
        if isinstance(want, int) and got != want and not (samples_axis and axis == 0):
            raise CalibrationError(
                f"{where}: input '{spec.name}' has shape {array.shape}, the model takes {spec.shape_text}; "
                f"axis {axis} has to be {want} long"
            )
    return array


def _cast(array: Array, spec: InputSpec, where: str) -> Array:
    if spec.dtype.kind == "U":
        if array.dtype.kind in "OUS":
            return array.astype(np.str_)
    elif array.dtype.hasobject:
        raise CalibrationError(
            f"{where}: input '{spec.name}' holds Python objects, the model takes {spec.dtype}; "
            f"make it an array with np.asarray(x, np.{spec.dtype})"
        )
    elif array.dtype == spec.dtype:
        return array
    elif array.dtype.newbyteorder("=") == spec.dtype:
        return array.astype(spec.dtype)
    elif array.dtype.kind == "V" and array.dtype.names is None and array.dtype.itemsize == spec.dtype.itemsize:
        return array.view(spec.dtype)  # numpy files know bfloat16 and the like only as bytes
    raise CalibrationError(
        f"{where}: input '{spec.name}' has type {array.dtype}, the model takes {spec.dtype}; "
        f"convert it with .astype(np.{spec.dtype})"
    )


def check_feed(feed: object, inputs: Sequence[InputSpec], where: str) -> Feed:
    """Check a sample against the inputs of a model.

    Args:
        feed: what a reader gave.
        inputs: what the model takes.
        where: subject of the message, for example ``calibration sample 3``.

    Returns:
        The arrays in the order of the inputs; without optional ones that are not there.

    Raises:
        CalibrationError: no dict, a wrong or missing name, or an array of a wrong type, rank or shape.
    """
    given, feed = feed, _by_name(feed, inputs)
    if not isinstance(feed, Mapping):
        raise CalibrationError(
            f"{where}: is a {type(given).__name__}, not a dict of arrays by input name; "
            f"pass for example {{{', '.join(repr(spec.name) + ': array' for spec in inputs)}}}"
        )
    wanted = [spec.name for spec in inputs if not spec.optional]
    if not wanted or not all(name in feed for name in wanted):  # further columns of a data set are left alone
        check_names([str(name) for name in feed], inputs, where)
    absent = [spec.name for spec in inputs if spec.optional and spec.name not in feed]
    known = {spec.name for spec in inputs}
    if absent and any(closest(name, absent, cutoff=0.65) for name in feed if name not in known):
        check_names([str(name) for name in feed], inputs, where)  # a state that is written otherwise
    held = [spec for spec in inputs if not spec.optional or spec.name in feed]
    return {spec.name: check_array(_array_of(feed[spec.name], spec, where), spec, where) for spec in held}


def _array_of(given: object, spec: InputSpec, where: str) -> Array:
    """An array for an input; plain lists and numbers, as data sets hold them, get its type and its batch axis."""
    array = _array(given, spec.name, where)
    if not isinstance(given, list | tuple | int | float | str):
        return array
    if array.dtype.kind == spec.dtype.kind and spec.dtype.kind in "if":
        array = array.astype(spec.dtype)
    batched = bool(spec.shape) and (spec.shape[0] in (1, None) or isinstance(spec.shape[0], str))
    return array[None] if batched and array.ndim + 1 == len(spec.shape) else array


def _by_name(feed: object, inputs: Sequence[InputSpec]) -> object:
    """What data loaders give instead of a dict, as one: arrays in the order of the inputs, targets behind them."""
    if isinstance(feed, Mapping):
        return feed
    entries = feed if isinstance(feed, tuple | list) else [feed]
    if entries and isinstance(entries[0], Mapping):
        return entries[0]
    if len(entries) < len(inputs):  # the states of a model are not in a data set
        inputs = [spec for spec in inputs if not spec.optional]
    first = entries[: len(inputs)]
    if not inputs or len(first) < len(inputs) or not all(hasattr(entry, "__array__") for entry in first):
        return feed
    return {spec.name: array for spec, array in zip(inputs, first, strict=True)}


def _array(given: object, name: str, where: str) -> Array:
    """An array of whatever holds one; a tensor that gradients flow to is taken out of its graph."""
    for step in ("detach", "cpu"):
        method = getattr(given, step, None)
        given = method() if callable(method) else given
    try:
        return np.asarray(given)
    except Exception as error:  # ragged lists, or what another library raises
        raise CalibrationError(
            f"{where}: input '{name}' is a {type(given).__name__} that makes no array ({error}); pass np.asarray of it"
        ) from error


class FeedHash:
    """Hash of a stream of feeds: names, types, shapes and contents.

    The sum modulo 2^256 of the feeds' SHA-256, as `onnxq.stats.statistics.combine_hashes` joins the hashes of shards.
    """

    def __init__(self) -> None:
        self._total: int | None = None

    def update(self, feed: Feed) -> None:
        """Add one feed; the order of its names does not matter."""
        self.add(self.number(feed))

    @staticmethod
    def number(feed: Feed) -> int:
        """The SHA-256 of one feed, as a number; other threads run meanwhile."""
        digest = hashlib.sha256()
        for name in sorted(feed):
            array = np.ascontiguousarray(feed[name])
            digest.update(f"{name}\0{array.dtype.name}\0{feed[name].shape}\0".encode())
            if array.nbytes:
                digest.update(array.reshape(-1).view(np.uint8).data)
        return int.from_bytes(digest.digest(), "big")

    def add(self, number: int) -> None:
        """Add the hash of one feed; feeds may come in any order."""
        self._total = ((self._total or 0) + number) % (1 << 256)

    def hexdigest(self) -> str:
        """The hash of all feeds so far; empty before the first."""
        return "" if self._total is None else f"{self._total:064x}"
