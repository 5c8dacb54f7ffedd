"""Weights that are quantized elsewhere, layer by layer, before they are asked for here."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxq.core import atomic
from onnxq.core.dtypes import Array
from onnxq.core.processors import blas_exactly, blas_now
from onnxq.core.spec import QParams, QTensor, TensorSpec
from onnxq.core.tasks import Tasks
from onnxq.plan.weights.weight_algorithms import PackedWeights, plain_weight, quantize_weight
from onnxq.stats.statistics import InputStatistics


@dataclass(frozen=True)
class Spread:
    """What quantizes the weights of layers.

    Attributes:
        tasks: runs one of them each.
        kept: folder where what is done stays until the model is written, so that a run which was killed goes on; None
            keeps nothing.
    """

    tasks: Tasks
    kept: Path | None = None


@dataclass(frozen=True)
class LayerTask:
    """The weight of one layer and how it is rounded; as for `onnxq.plan.weights.weight_algorithms.quantize_weight`."""

    weight: Array
    spec: TensorSpec
    algorithm: str
    statistics: InputStatistics | None


def quantize_elsewhere(layers: Iterable[LayerTask], packed: PackedWeights, spread: Spread) -> None:
    """Quantize weights, each contents once, and put them where they are looked for.

    Args:
        layers: taken as they are needed.
        packed: what is quantized already; results are added.
        spread: what does the work.

    Raises:
        CalibrationError: the statistics of one do not fit it.
        EngineError: the machines are lost.
        OnnxqError: results cannot be kept.
    """
    sent: list[tuple[LayerTask, str]] = []
    threads = blas_now()

    def tasks() -> Iterator[tuple[object, ...]]:
        known: set[str] = set()
        for layer in layers:
            if packed.find(layer.weight, layer.spec, layer.algorithm) is not None:
                continue
            task = (plain_weight(layer.weight, layer.algorithm), layer.spec, layer.algorithm, layer.statistics)
            key = _key(task, threads)
            if key in known:
                continue
            known.add(key)
            done = None if spread.kept is None else _read(spread.kept / f"{key}.npz", layer.spec)
            if done is not None:
                packed.add(layer.weight, done, layer.spec, layer.algorithm)
                continue
            sent.append((layer, key))
            yield task

    for found in spread.tasks.map(quantize_there, tasks(), (threads,)):
        layer, key = sent.pop(0)
        if spread.kept is not None:
            _write(spread.kept / f"{key}.npz", found)
        packed.add(layer.weight, found, layer.spec, layer.algorithm)


def quantize_there(
    weight: Array, spec: TensorSpec, algorithm: str, statistics: InputStatistics | None, threads: int
) -> QTensor:
    """`quantize_weight`, with as many threads of the matrix library as where it was sent from."""
    with blas_exactly(threads):
        return quantize_weight(weight, spec, algorithm, statistics)


def _key(task: tuple[object, ...], threads: int) -> str:
    """Of all that the result depends on."""
    weight, *rest = task
    assert isinstance(weight, np.ndarray)
    digest = hashlib.sha256(pickle.dumps((weight.shape, rest, threads), protocol=5))
    digest.update(np.ascontiguousarray(weight).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:32]


def _read(path: Path, spec: TensorSpec) -> QTensor | None:
    """What `_write` wrote; None where there is nothing, or nothing usable."""
    arrays = atomic.read_arrays(path)
    if arrays is None or not {"values", "scale", "zero_point"} <= set(arrays):
        return None
    values = arrays["values"].view(spec.dtype.numpy)
    return QTensor(values, QParams(spec, arrays["scale"], arrays["zero_point"].view(spec.dtype.numpy)))


def _write(path: Path, tensor: QTensor) -> None:
    atomic.write_arrays(
        path,
        {
            "values": np.ascontiguousarray(tensor.values).view(np.uint8),
            "scale": tensor.params.scale,
            "zero_point": np.ascontiguousarray(tensor.params.zero_point).view(np.uint8),
        },
    )
