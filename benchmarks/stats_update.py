"""What folding activations into statistics costs, part by part.

Run as ``python -m benchmarks.stats_update``. Arrays have the shapes of a MobileNetV2's activations; the rows are the
parts of `Statistics.update`, the whole, and what counting every element with numpy would take instead. The last
column is the cost of one sample of the network.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.stats.extrema import Extrema
from onnxq.stats.histogram import HALF, exponent_of, stride
from onnxq.stats.observation import observe
from onnxq.stats.statistics import Statistics

ROUNDS = 15

# (channels, side, how many): what a plan for MobileNetV2 at 224 asks for
SHAPES = [
    (3, 224, 1),
    (32, 112, 2),
    (16, 112, 1),
    (96, 112, 1),
    (96, 56, 1),
    (24, 56, 3),
    (144, 56, 3),
    (144, 28, 1),
    (32, 28, 5),
    (192, 28, 5),
    (192, 14, 1),
    (64, 14, 7),
    (384, 14, 8),
    (96, 14, 5),
    (576, 14, 5),
    (576, 7, 1),
    (160, 7, 5),
    (960, 7, 6),
    (320, 7, 1),
    (1280, 7, 1),
]


def activations() -> list[Array]:
    """One sample of the network's values: alternately clipped as by ReLU6 and not."""
    generator = np.random.default_rng(0)
    arrays: list[Array] = []
    for channels, side, count in SHAPES:
        for number in range(count):
            x = 2.0 * generator.standard_normal((1, channels, side, side), dtype=np.float32)
            arrays.append(np.clip(x, 0.0, 6.0) if number % 2 else x)
    return arrays


def median_ms(function: Callable[[], object]) -> float:
    """Median wall time of a call, in milliseconds."""
    function()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * sorted(times)[len(times) // 2]


def main() -> None:
    """Print the table."""
    arrays = activations()
    million = sum(array.size for array in arrays) / 1e6
    flats = [array.reshape(-1) for array in arrays]
    seen = [observe(array) for array in arrays]
    statistics = Statistics()
    names = [f"value{number}" for number in range(len(arrays))]

    def whole(flat: Array) -> Array:
        low, high = float(flat.min()), float(flat.max())
        scaled = flat * np.float32(HALF * 2.0 ** -exponent_of(low, high))
        return np.bincount(np.floor(scaled, out=scaled).astype(np.intp) + HALF, minlength=2 * HALF)

    rows: list[tuple[str, Callable[[], object]]] = [
        ("min + max, every element", lambda: [Extrema.of(flat) for flat in flats]),
        (
            "sample, copied",
            lambda: [flat[:: stride(array.shape)].copy() for flat, array in zip(flats, arrays, strict=True)],
        ),
        ("observe: both", lambda: [observe(array) for array in arrays]),
        ("Statistics.take", lambda: deque(map(statistics.take, names, seen), maxlen=0)),
        ("Statistics.update: all of it", lambda: deque(map(statistics.update, names, arrays), maxlen=0)),
        ("np.bincount, every element", lambda: [whole(flat) for flat in flats]),
        ("np.histogram, every element", lambda: [np.histogram(flat, bins=2 * HALF) for flat in flats]),
    ]
    print(f"{len(arrays)} values, {million:.2f} million elements")
    print(f"{'':28} {'ms per million':>14} {'ms per sample':>14}")
    for name, function in rows:
        taken = median_ms(function)
        print(f"{name:28} {taken / million:14.3f} {taken:14.2f}")


if __name__ == "__main__":
    main()
