"""The statistics file: a versioned .npz without pickled objects.

All values are packed into a few long arrays, so that three hundred of them are read and written as fast as one. Names
are data (a unicode array), not archive members: they may hold any character.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxq.core import atomic
from onnxq.core.dtypes import Array
from onnxq.errors import CalibrationError
from onnxq.stats.means import ChannelMeans
from onnxq.stats.second_moment import ChannelPeaks, SecondMoment, packed_size
from onnxq.stats.value_statistic import ValueStatistic

FORMAT = "onnxq-statistics"
VERSION = 2
"""2 since there are second moments and channel magnitudes; files of version 1, which have none, are still read."""

_KEYS = (
    "model_hash", "data_hash", "samples", "names", "extrema", "counters", "ranks", "shapes", "spans", "counts",
    "mean_names", "mean_items", "mean_lengths", "mean_sums",
)  # fmt: skip

_LATER = ("powers", "power_lengths", "masks", "sample_ends")
"""What older files may lack."""
_MOMENT_KEYS = (
    "moment_names", "moment_counters", "moment_high", "moment_low",
    "peak_names", "peak_counters", "peak_highest", "peak_high", "peak_low",
)  # fmt: skip
_STORED = frozenset({"moment_high", "moment_low"})
"""Members that are not compressed: long, and random in their lower bits."""

_DAMAGE = (
    ValueError,
    TypeError,
    IndexError,
    OverflowError,
    EOFError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Content:
    """What a file holds: the saved fields of `onnxq.stats.statistics.Statistics`, under their names there."""

    model_hash: str
    data_hash: str
    samples: int
    masks: tuple[str, ...]
    values: dict[str, ValueStatistic]
    means: dict[str, ChannelMeans]
    moments: dict[str, SecondMoment]
    peaks: dict[str, ChannelPeaks]


def save(statistics: Content, path: Path) -> None:
    """Write statistics, all or nothing.

    Equal statistics give equal bytes.

    Raises:
        CalibrationError: the file cannot be written; what was at ``path`` is still there.
    """
    content = _archive(_pack(statistics))
    try:
        atomic.write(path, content)
    except OSError as error:
        remedy = "free space there or choose another folder" if error.errno in (28, 122) else "choose another file"
        raise CalibrationError(
            f"{path}: statistics cannot be written: {error.strerror or error}; nothing was changed; {remedy}"
        ) from None


def _archive(arrays: dict[str, Array]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            info = zipfile.ZipInfo(f"{key}.npy")  # its fixed date is what makes equal content equal bytes
            info.compress_type = zipfile.ZIP_STORED if key in _STORED else zipfile.ZIP_DEFLATED
            archive.writestr(info, member.getvalue())
    return content.getvalue()


def _pack(statistics: Content) -> dict[str, Array]:
    names = sorted(statistics.values)
    values = [statistics.values[name].to_arrays() for name in names]

    def stacked(key: str, like: Array) -> Array:
        return np.stack([value[key] for value in values]) if values else like

    def joined(key: str) -> Array:
        return np.concatenate([value[key] for value in values]) if values else np.zeros(0, np.int64)

    return {
        "format": np.array(FORMAT),
        "version": np.array(VERSION),
        "model_hash": np.array(statistics.model_hash),
        "data_hash": np.array(statistics.data_hash),
        "samples": np.array(statistics.samples, np.int64),
        "names": np.array(names, dtype=np.str_) if names else np.zeros(0, "U1"),
        "extrema": stacked("extrema", np.zeros((0, 2))),
        "counters": stacked("counters", np.zeros((0, 6), np.int64)),
        "ranks": np.array([value["shape"].size for value in values], np.int64),
        "shapes": joined("shape"),
        "spans": stacked("span", np.zeros((0, 2), np.int64)),
        "counts": joined("counts"),
        "powers": joined("powers").reshape(-1, 2),
        "power_lengths": np.array([len(value["powers"]) for value in values], np.int64),
        "sample_ends": stacked("ends", np.zeros((0, 3), "U1")),
        "masks": np.array(list(statistics.masks), dtype=np.str_) if statistics.masks else np.zeros(0, "U1"),
        **_pack_means(statistics),
        **_pack_all("moment", statistics.moments, ("high", "low")),
        **_pack_all("peak", statistics.peaks, ("highest", "high", "low")),
    }


def _pack_means(statistics: Content) -> dict[str, Array]:
    means = {name: means for name, means in sorted(statistics.means.items()) if means.sums is not None}
    sums = [m.sums for m in means.values() if m.sums is not None]
    return {
        "mean_names": np.array(list(means), dtype=np.str_) if means else np.zeros(0, "U1"),
        "mean_items": np.array([m.items for m in means.values()], np.int64),
        "mean_lengths": np.array([s.size for s in sums], np.int64),
        "mean_sums": np.concatenate(sums) if sums else np.zeros(0, np.int64),
    }


def _unpack_means(packed: dict[str, Array]) -> dict[str, ChannelMeans]:
    names, items, lengths = packed["mean_names"], packed["mean_items"], packed["mean_lengths"]
    sums = packed["mean_sums"]
    if not len(names) == len(items) == len(lengths) or (lengths < 0).any() or lengths.sum() != sums.size:
        raise CalibrationError("its arrays of channel means do not belong together")
    parts = np.split(sums, np.cumsum(lengths)[:-1]) if len(lengths) else []
    return {
        name: ChannelMeans(int(count), part.astype(np.int64))
        for name, count, part in zip(names.tolist(), items, parts, strict=True)
    }


def _pack_all(
    prefix: str, found: Mapping[str, SecondMoment] | Mapping[str, ChannelPeaks], keys: tuple[str, ...]
) -> dict[str, Array]:
    """Second moments or magnitudes as a few long arrays; the lengths of the parts follow from the channels."""
    states = {name: found[name].to_arrays() for name in sorted(found)}
    packed = {
        f"{prefix}_names": np.array(list(states), dtype=np.str_) if states else np.zeros(0, "U1"),
        f"{prefix}_counters": (
            np.stack([state["counters"] for state in states.values()]) if states else np.zeros((0, 3), np.int64)
        ),
    }
    for key in keys:
        parts = [state[key] for state in states.values()]
        packed[f"{prefix}_{key}"] = np.concatenate(parts) if parts else np.zeros(0)
    return packed


def _unpack_all(
    packed: dict[str, Array], prefix: str, keys: tuple[str, ...], length: Callable[[int], int]
) -> dict[str, dict[str, Array]]:
    names, counters = packed[f"{prefix}_names"], packed[f"{prefix}_counters"]
    lengths = [length(int(channels)) if channels >= 0 else 0 for channels in counters.reshape(-1, 3)[:, 0]]
    sizes = {packed[f"{prefix}_{key}"].size for key in keys}
    if counters.shape != (len(names), 3) or len(set(names.tolist())) != len(names) or sizes != {sum(lengths)}:
        raise CalibrationError(f"its arrays of {prefix}s do not belong together")
    ends = np.cumsum(lengths, dtype=np.int64)
    states = {}
    for row, name in enumerate(names.tolist()):
        part = slice(int(ends[row]) - lengths[row], int(ends[row]))
        states[name] = {"counters": counters[row], **{key: packed[f"{prefix}_{key}"][part] for key in keys}}
    return states


def load(path: Path) -> Content:
    """Read a file that `save` wrote.

    Raises:
        CalibrationError: the file is missing, is not of this kind or version, or is damaged.
    """
    remedy = "write it with `onnxq calibrate`"
    try:
        if not path.is_file():
            kind = "is a directory" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
            raise CalibrationError(f"{path}: statistics file {kind}; {remedy}")
        if not zipfile.is_zipfile(path):
            raise CalibrationError(f"{path}: not a statistics file (.npz expected); {remedy}")
        with np.load(path, allow_pickle=False) as archive:
            members = set(archive.files)
            if "format" not in members or "version" not in members or str(archive["format"]) != FORMAT:
                raise CalibrationError(f"{path}: an .npz, but not of statistics; {remedy}")
            version = int(archive["version"])
            if version not in (1, VERSION):
                raise CalibrationError(
                    f"{path}: statistics of format version {version}; this onnxq reads {VERSION}, {remedy} again"
                )
            keys = _KEYS if version == 1 else (*_KEYS, *_MOMENT_KEYS)
            missing = [key for key in keys if key not in members]
            if missing:
                raise CalibrationError(f"{path}: statistics lack {', '.join(missing)}; {remedy} again")
            return _unpack({key: archive[key] for key in (*keys, *_LATER) if key in members})
    except CalibrationError as error:
        text = str(error)
        raise CalibrationError(text if text.startswith(str(path)) else f"{path}: damaged statistics: {text}") from None
    except OSError as error:
        raise CalibrationError(f"{path}: statistics cannot be read: {error.strerror or error}") from None
    except _DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CalibrationError(f"{path}: damaged statistics file ({reason}); {remedy} again") from None


def _unpack(packed: dict[str, Array]) -> Content:
    names = packed["names"]
    rows = {len(names), *(len(packed[key]) for key in ("extrema", "counters", "ranks", "spans"))}
    if len(rows) != 1 or names.dtype.kind != "U" or len(set(names.tolist())) != len(names):
        raise CalibrationError("its arrays do not belong together")
    moments: dict[str, dict[str, Array]] = {}
    peaks: dict[str, dict[str, Array]] = {}
    if "moment_names" in packed:
        moments = _unpack_all(packed, "moment", ("high", "low"), packed_size)
        peaks = _unpack_all(packed, "peak", ("highest", "high", "low"), lambda channels: channels)
    return Content(
        model_hash=str(packed["model_hash"]),
        data_hash=str(packed["data_hash"]),
        samples=int(packed["samples"]),
        masks=tuple(packed["masks"].tolist()) if "masks" in packed else (),
        values=_unpack_values(packed, names.tolist()),
        means=_unpack_means(packed),
        moments={name: SecondMoment.from_arrays(state) for name, state in moments.items()},
        peaks={name: ChannelPeaks.from_arrays(state) for name, state in peaks.items()},
    )


def _unpack_values(packed: dict[str, Array], names: list[str]) -> dict[str, ValueStatistic]:
    shape_ends = np.cumsum(packed["ranks"])
    count_ends = np.cumsum(packed["spans"][:, 1] - packed["spans"][:, 0])
    lengths = packed.get("power_lengths", np.zeros(len(names), np.int64))
    powers = packed.get("powers", np.zeros((0, 2), np.int64))
    ends = packed.get("sample_ends")
    if ends is not None and (ends.shape != (len(names), 3) or ends.dtype.kind != "U"):
        raise CalibrationError("its extrema of samples do not belong to its values")
    if len(lengths) != len(names) or lengths.sum() != len(powers) or (lengths < 0).any():
        raise CalibrationError("its arrays of powers do not belong together")
    power_ends = np.cumsum(lengths)
    values = {}
    for row, name in enumerate(names):
        shape_start = int(shape_ends[row - 1]) if row else 0
        count_start = int(count_ends[row - 1]) if row else 0
        later = {} if ends is None else {"ends": ends[row]}
        values[name] = ValueStatistic.from_arrays(
            {
                **later,
                "extrema": packed["extrema"][row],
                "counters": packed["counters"][row],
                "shape": packed["shapes"][shape_start : int(shape_ends[row])],
                "span": packed["spans"][row],
                "counts": packed["counts"][count_start : int(count_ends[row])],
                "powers": powers[int(power_ends[row] - lengths[row]) : int(power_ends[row])],
            }
        )
    return values
