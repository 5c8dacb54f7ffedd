"""Call a weight algorithm by its name, and quantize each weight once however many nodes read it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from onnxq.algorithms.kmeans import KMeansConfig, kmeans
from onnxq.algorithms.nearest import quantize_codebook
from onnxq.algorithms.rounding_error import weight_error_db
from onnxq.core.codebook import FP4, NF4, CodebookTensor
from onnxq.core.dtypes import Array
from onnxq.core.in_order import each
from onnxq.core.mapped import Spill, forget
from onnxq.core.spec import Granularity, QTensor, TensorSpec
from onnxq.errors import RecipeError
from onnxq.recipe.rounding import BY_ROWS, MEAN_SQUARES, ROUNDINGS, SECOND_MOMENTS
from onnxq.stats.statistics import InputStatistics

_TABLES = {"nf4": NF4, "fp4": FP4}
_SAMPLED = 64
"""Elements of a weight that stand for it until it is compared as a whole."""


def quantize_weight(
    weight: Array, spec: TensorSpec, algorithm: str, statistics: InputStatistics | None = None
) -> QTensor:
    """Quantize one weight.

    Args:
        weight: float32, (out, in).
        spec: the grid; scales lie along axis 1 in blocks, or one a row.
        algorithm: a name that ``--algorithm`` takes. Of "awq" this is the second half: its scales are in the weight
            and its input already (`onnxq.passes.awq_scales`), and what is left is to clip the ranges.
        statistics: of the input that the weight is multiplied with; None where there are none.

    Raises:
        RecipeError: there is no such algorithm, or it needs statistics that are not there.
        CalibrationError: the statistics do not fit the weight.
    """
    rounding = ROUNDINGS.get(algorithm)
    if rounding is None:
        raise RecipeError(f"--algorithm {algorithm}: there is no such algorithm; use {', '.join(ROUNDINGS)}")
    known: dict[str, Any] = {}
    corrected = False
    if rounding.statistics == MEAN_SQUARES:
        known = {"importance": _mean_squares(statistics)}
    elif rounding.statistics == SECOND_MOMENTS:
        if statistics is None or not statistics.moment.rows:
            raise RecipeError(f"--algorithm {algorithm}: needs calibration data; pass --calibration, or use kquant")
        known = {"moment": statistics.moment.normalized, "rows": statistics.moment.rows}
        corrected = statistics.correction is not None
        weight = corrected_weight(weight, statistics)
    found: QTensor = rounding.load()(weight, spec, **known)
    if corrected:
        from onnxq.algorithms.learned.correction import refined

        found = refined(weight, found, known["moment"], known["rows"])
    return found


def corrected_weight(weight: Array, statistics: InputStatistics | None) -> Array:
    """The weight that is rounded: for the input of a quantized model it is another one; float32, (out, in)."""
    if statistics is None or statistics.correction is None:
        return weight
    return np.asarray(weight + weight @ statistics.correction, np.float32)


def _mean_squares(statistics: InputStatistics | None) -> Array | None:
    if statistics is None or not statistics.moment.rows:
        return None
    return np.asarray(statistics.moment.diagonal / statistics.moment.rows)


def plain_weight(weight: Array, algorithm: str) -> Array:
    """A weight as an algorithm takes it: float32, and by rows where it does not work through them one by one."""
    plain = np.asarray(weight, np.float32)
    return plain if algorithm in BY_ROWS else np.ascontiguousarray(plain)


def quantize_by_table(weight: Array, codebook: str, granularity: Granularity, bits: int) -> CodebookTensor:
    """Store one weight as indices into a table.

    Args:
        weight: float32, (out, in).
        codebook: "nf4", "fp4" or "kmeans".
        granularity: what shares a scale, or a table.
        bits: bits of an index; tables have 16 entries at 4 and, fitted to the weight, 256 at 8.
    """
    if codebook in _TABLES:
        return quantize_codebook(weight, _TABLES[codebook], granularity, bits)
    return kmeans(weight, granularity, KMeansConfig(bits=bits))


class PackedWeights:
    """Quantized matrices, each (contents, grid, algorithm) once.

    Weights are compared by their contents, so that an embedding and the output layer tied to it stay one although the
    transposition between them was folded.

    Attributes:
        errors: signal to quantization noise in dB, by the identity of the quantized weight, of what was put into a
            file: it is computed while the float weight is in memory, so that it is not read again.
    """

    def __init__(self, spill: Spill | None = None) -> None:
        """Start without any.

        Args:
            spill: where quantized weights are put, so that no more than one of them is in memory; None keeps all there.
        """
        self._spill = spill
        self.errors: dict[int, float | None] = {}
        self._known: dict[tuple[Any, ...], list[tuple[Array, Any]]] = {}

    def of(self, weight: Array, spec: TensorSpec, algorithm: str, statistics: InputStatistics | None = None) -> QTensor:
        """Quantize a weight, or find it; arguments as for `quantize_weight`."""
        known = self.find(weight, spec, algorithm)
        if known is None:
            plain = plain_weight(weight, algorithm)
            known = self.add(weight, quantize_weight(plain, spec, algorithm, statistics), spec, algorithm)
        return known  # type: ignore[no-any-return]

    def find(self, weight: Array, *how: object) -> Any | None:
        """What was added for a weight of these contents, quantized in this way."""
        for array, found in self._known.get(_key(weight, how), []):
            if array is weight or np.array_equal(array, weight, equal_nan=True):
                return found
        return None

    def add(self, weight: Array, found: Any, *how: object) -> Any:
        """Keep a quantized weight; returns it as it is kept."""
        key = _key(weight, how)
        if self._spill is not None:
            if isinstance(found, QTensor):
                # one reads memory, the other writes to the disk
                work: list[Callable[[], Any]] = [
                    partial(weight_error_db, weight, found),
                    partial(self._spill.keep_tensor, found),
                ]
                error, found = each(_called, work)
                self.errors[id(found)] = error
            else:
                found = self._spill.keep_codes(found)
            forget(weight)  # last of all: a single element brings a whole huge page back
        self._known.setdefault(key, []).append((weight, found))
        return found


def _called(work: Callable[[], Any]) -> Any:
    return work()


def _key(weight: Array, how: tuple[object, ...]) -> tuple[Any, ...]:
    places = np.linspace(0, max(weight.size - 1, 0), _SAMPLED, dtype=np.int64)
    sample = weight[np.unravel_index(places, weight.shape)] if weight.size else weight
    return (weight.shape, str(weight.dtype), sample.tobytes(), *how)
