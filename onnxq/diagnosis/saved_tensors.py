"""The raw values behind a diagnosis, as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.diagnosis.ranking import Tensors


class TensorFolder:
    """Writes ``sample_0000.npz`` and so on, one sample in memory.

    A file has ``nodes`` and ``values``, the names of each unit in the order of the graph, and for the n-th of them
    ``float_n``, ``alone_n`` and, where the quantized model shows it, ``quantized_n``. Names are arrays, not members of
    the archive, since they may hold any character.
    """

    def __init__(self, place: Path) -> None:
        self._place = place

    def add(self, sample: int, tensors: Sequence[Tensors]) -> None:
        """Write the file of one sample."""
        arrays: dict[str, Array] = {
            "nodes": np.array([found.node for found in tensors], np.str_),
            "values": np.array([found.value for found in tensors], np.str_),
        }
        for index, found in enumerate(tensors):
            arrays[f"float_{index}"] = found.floating
            arrays[f"alone_{index}"] = found.own
            if found.arriving is not None:
                arrays[f"quantized_{index}"] = found.arriving
        with (self._place / f"sample_{sample:04d}.npz").open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
