"""What the weight algorithms cost and what they gain, without a model: arrays alone.

Run as ``python -m benchmarks.weights_speed``; ``--errors`` prints only the errors, ``--quick`` takes a tenth of the
gigabyte. Everything runs on one thread, in processor seconds, so that other work on the machine counts little. The
encoder has 6 layers of width 384, each with four matrices of 384 × 384, one to 1536 and one back, and Hessians of
correlated inputs that are there already. Peak memory is that of a process that makes a weight and rounds it.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from onnxq.algorithms.awq import awq_clip, awq_scales
from onnxq.algorithms.gptq import GPTQConfig, gptq
from onnxq.algorithms.grid import GridConfig, quantize_range, search_range
from onnxq.algorithms.hqq import hqq
from onnxq.algorithms.kmeans import KMeansConfig, kmeans
from onnxq.algorithms.kquant import kquant
from onnxq.algorithms.nearest import quantize_codebook
from onnxq.algorithms.rtn import rtn
from onnxq.core import codebook
from onnxq.core.affine import dequantize
from onnxq.core.dtypes import Array, QType
from onnxq.core.spec import PerAxis, PerBlock, PerTensor, QTensor, TensorSpec

SYMMETRIC = TensorSpec(QType.INT4, PerBlock(1, 32), symmetric=True, mirrored=True)
AFFINE = TensorSpec(QType.UINT4, PerBlock(1, 32))
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
LAYERS = 6
# matrices of a layer by the input that they share
GROUPS = [[(384, 384)] * 3, [(384, 384)], [(1536, 384)], [(384, 1536)]]


def correlated(inputs: int, samples: int, seed: int) -> Array:
    """Inputs that share an eighth as many directions, with a few channels far larger than the others."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(samples, inputs // 8)) @ rng.normal(size=(inputs // 8, inputs)) / np.sqrt(inputs // 8)
    x = shared + 0.3 * rng.normal(size=(samples, inputs))
    x *= np.exp(0.5 * rng.normal(size=inputs))
    x[:, rng.choice(inputs, inputs // 64, replace=False)] *= 10
    return np.asarray(x, np.float32)


def weight_of(out: int, inputs: int, seed: int) -> Array:
    """A weight with the tails of trained ones."""
    return np.asarray(np.random.default_rng(seed).standard_t(5, size=(out, inputs)) / np.sqrt(inputs), np.float32)


def seconds(function: Callable[[], object]) -> float:
    """Processor seconds of a call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def encoder() -> list[tuple[list[Array], Array, Array]]:
    """(weights, Hessian, magnitudes) of each shared input of one layer."""
    found = []
    for seed, shapes in enumerate(GROUPS):
        x = correlated(shapes[0][1], 1024, seed)
        weights = [weight_of(*shape, seed * 10 + index) for index, shape in enumerate(shapes)]
        found.append((weights, 2 * x.T.astype(np.float64) @ x, np.abs(x).mean(axis=0)))
    return found


def print_encoder() -> None:
    """Seconds of each method on the encoder."""
    layer = encoder()
    matrices = [(weight, hessian) for weights, hessian, _ in layer for weight in weights]

    def awq() -> None:
        for weights, hessian, magnitude in layer:
            scales = awq_scales(weights, hessian, magnitude, SYMMETRIC)
            scaled = hessian / np.outer(scales, scales)
            for weight in weights:
                quantize_range(weight * scales, *awq_clip(weight * scales, scaled, SYMMETRIC), SYMMETRIC)

    def each(method: Callable[[Array, Array], object]) -> Callable[[], object]:
        return lambda: [method(weight, hessian) for weight, hessian in matrices]

    rows = [
        ("RTN", each(lambda w, _: rtn(w, SYMMETRIC))),
        ("RTN, ranges by squared error", each(lambda w, _: search_and_round(w, SYMMETRIC))),
        ("GPTQ, plain", each(lambda w, h: gptq(w, h, SYMMETRIC, PLAIN_GPTQ))),
        ("GPTQ, plain, affine", each(lambda w, h: gptq(w, h, AFFINE, PLAIN_GPTQ))),
        ("GPTQ, act_order, ranges by error", each(lambda w, h: gptq(w, h, SYMMETRIC))),
        ("AWQ, scales and clips", awq),
        ("HQQ", each(lambda w, _: hqq(w, AFFINE))),
        ("k-quant", each(lambda w, _: kquant(w, SYMMETRIC))),
        ("NF4", each(lambda w, _: quantize_codebook(w))),
        ("k-means, 16 a tensor", each(lambda w, _: kmeans(w, PerTensor()))),
        ("k-means, 256 a tensor", each(lambda w, _: kmeans(w, PerTensor(), KMeansConfig(bits=8)))),
        ("k-means, 16 a channel", each(lambda w, _: kmeans(w, PerAxis(0)))),
    ]
    print("| 6-layer encoder of width 384, 4 bits in blocks of 32 | s |\n|---|---|")
    for name, method in rows:
        print(f"| {name} | {LAYERS * seconds(method):.2f} |", flush=True)


PLAIN_GPTQ = GPTQConfig(act_order=False, grid=None)
ORDERED_GPTQ = GPTQConfig(grid=None)
SEARCHED_GPTQ = GPTQConfig(act_order=False)


def search_and_round(weight: Array, spec: TensorSpec, importance: Array | None = None) -> QTensor:
    """Round to nearest on ranges by squared error."""
    return quantize_range(weight, *search_range(weight, spec, GridConfig(), importance), spec)


def print_gigabyte(rows: int) -> None:
    """Seconds and peak memory of rounding one large weight, each grid in a process of its own."""
    print(f"\n| RTN of {rows * 16384 * 4 / 1e9:.2f} GB of float32 | s | peak GB |\n|---|---|---|")
    for name in GRIDS:
        command = [sys.executable, "-m", "benchmarks.weights_speed", "--round", name, str(rows)]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="", flush=True)


GRIDS = {
    "int4, symmetric, blocks of 32": SYMMETRIC,
    "uint4, affine, blocks of 32": AFFINE,
    "int8, symmetric, per channel": TensorSpec(QType.INT8, PerAxis(0), symmetric=True),
}


def print_round(name: str, rows: int) -> None:
    """One row of `print_gigabyte`."""
    weight, rng = np.empty((rows, 16384), np.float32), np.random.default_rng(0)
    for start in range(0, rows, 64):
        rng.standard_normal(dtype=np.float32, out=weight[start : start + 64])
    took = seconds(lambda: rtn(weight, GRIDS[name]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"| {name} | {took:.2f} | {peak:.2f} |")


def print_errors() -> None:
    """Errors of weight and output of each method, in dB of signal over noise, on inputs not calibrated with."""
    weight = weight_of(512, 512, 1)
    x, held_out = np.split(correlated(512, 3072, 2), [2048])
    hessian, magnitude = 2 * x.T.astype(np.float64) @ x, np.abs(x).mean(axis=0)
    squares = np.asarray((x.astype(np.float64) ** 2).mean(axis=0))
    bits = {
        "2 bits": TensorSpec(QType.UINT2, PerBlock(1, 32)),
        "3 bits": TensorSpec(QType.UINT4, PerBlock(1, 32), grid_bits=3),
        "4 bits": AFFINE,
        "4 bits, symmetric": SYMMETRIC,
        "8 bits": TensorSpec(QType.INT8, PerBlock(1, 32), symmetric=True),
    }

    def real(result: QTensor) -> Array:
        return dequantize(result.values, result.params)

    def awq(spec: TensorSpec, clip: bool) -> Array:
        scales = awq_scales([weight], hessian, magnitude, spec)
        scaled = weight * scales
        ranges = awq_clip(scaled, hessian / np.outer(scales, scales), spec) if clip else search_range(scaled, spec)
        return np.asarray(real(quantize_range(scaled, *ranges, spec)) / scales)

    methods: list[tuple[str, Callable[[TensorSpec], Array | None]]] = [
        ("RTN", lambda spec: real(rtn(weight, spec))),
        ("RTN, ranges by squared error", lambda spec: real(search_and_round(weight, spec))),
        ("HQQ", lambda spec: real(hqq(weight, spec))),
        ("k-quant", lambda spec: real(kquant(weight, spec))),
        ("k-quant, weighted by mean x²", lambda spec: real(kquant(weight, spec, importance=squares))),
        ("AWQ, scales", lambda spec: awq(spec, clip=False)),
        ("AWQ, scales and clips", lambda spec: awq(spec, clip=True)),
        ("GPTQ, plain", lambda spec: real(gptq(weight, hessian, spec, PLAIN_GPTQ))),
        ("GPTQ, act_order", lambda spec: real(gptq(weight, hessian, spec, ORDERED_GPTQ))),
        ("GPTQ, ranges by error", lambda spec: real(gptq(weight, hessian, spec, SEARCHED_GPTQ))),
        ("GPTQ, act_order, ranges by error", lambda spec: real(gptq(weight, hessian, spec))),
    ]

    def decibels(signal: Array, noise: Array) -> float:
        return float(10 * np.log10(np.sum(signal.astype(np.float64) ** 2) / np.sum(noise.astype(np.float64) ** 2)))

    def cell(found: Array | None) -> str:
        if found is None:
            return "–"
        error = found - weight
        return f"{decibels(weight, error):.1f} / {decibels(held_out @ weight.T, held_out @ error.T):.1f}"

    print(f"\n| SQNR in dB, weight / output | {' | '.join(bits)} |\n|---|{'---|' * len(bits)}")
    for name, method in methods:
        print(f"| {name} | {' | '.join(cell(method(spec)) for spec in bits.values())} |", flush=True)
    print("\n| tables, 4-bit indices | SQNR in dB, weight / output |\n|---|---|")
    tables = [
        ("NF4, blocks of 64", quantize_codebook(weight)),
        ("FP4, blocks of 64", quantize_codebook(weight, codebook.FP4)),
        ("k-means, a tensor", kmeans(weight, PerTensor())),
        ("k-means, a channel", kmeans(weight, PerAxis(0))),
        ("k-means, a channel, weighted by mean x²", kmeans(weight, PerAxis(0), importance=squares)),
    ]
    for name, table in tables:
        print(f"| {name} | {cell(codebook.decode(table))} |")


def main(arguments: list[str]) -> None:
    """Print the tables, on one thread."""
    if any(os.environ.get(name) != "1" for name in THREADS):
        # libraries read these when they are loaded
        command = [sys.executable, "-m", "benchmarks.weights_speed", *arguments]
        os.execve(sys.executable, command, os.environ | dict.fromkeys(THREADS, "1"))
    if arguments[:1] == ["--round"]:
        print_round(arguments[1], int(arguments[2]))
        return
    if "--errors" not in arguments:
        print_encoder()
        print_gigabyte(1526 if "--quick" in arguments else 15259)
    print_errors()


if __name__ == "__main__":
    main(sys.argv[1:])
