"""What calibration costs, as a multiple of plain inference of the same samples, in alternation.

Run as ``python -m benchmarks.calibration [mobilenet_v2|resnet50 …] [--samples N] [--threads T] [--rounds R]``. Both
sides get the samples in memory and the same number of threads; plain inference spins while it waits, as it does by
default. Loading is counted for calibration and not for plain inference. One calibration serves every range method, so
there is one figure for all of them.

Wall time means little where other processes take the processors. The last figure does not depend on them: processor
time of calibration, preparing included, over that of plain inference on one thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import onnx
import onnxruntime as ort

import onnxq
from benchmarks.feeds import Feed
from benchmarks.networks import NETWORKS, images


class Round(NamedTuple):
    """Seconds for all samples: of plain inference and of calibration, and processor time of both."""

    plain: float
    calibration: float
    plain_processor: float
    calibration_processor: float


def opened(model: Path, threads: int) -> ort.InferenceSession:
    """The model for plain inference."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def plain_seconds(session: ort.InferenceSession, samples: Sequence[Feed], clock: Callable[[], float]) -> float:
    """Time to run every sample once."""
    start = clock()
    for sample in samples:
        session.run(None, sample)
    return clock() - start


def rounds_of(name: str, samples: int, threads: int, rounds: int) -> list[Round]:
    """Times of plain inference and of calibration, in alternation."""
    feeds = images(samples, seed=1)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        model, saved = Path(folder, "model.onnx"), Path(folder, "statistics.npz")
        onnx.save(NETWORKS[name](), model)
        session, alone = opened(model, threads), opened(model, 1)
        for each in (session, alone):
            plain_seconds(each, feeds[:4], time.perf_counter)
        for _ in range(rounds):
            plain = plain_seconds(session, feeds, time.perf_counter)
            plain_processor = plain_seconds(alone, feeds, time.process_time)
            start = time.process_time()
            calibration = onnxq.calibrate(model, saved, calibration=feeds, threads=threads).seconds
            found.append(Round(plain, calibration, plain_processor, time.process_time() - start))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each network."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__)
    parser.add_argument("network", nargs="*", choices=[*NETWORKS, []], help="all by default")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args(arguments)
    for name in chosen.network or NETWORKS:
        found = rounds_of(name, chosen.samples, chosen.threads, chosen.rounds)
        each = [1e3 * statistics.median(seconds) / chosen.samples for seconds in zip(*found, strict=True)]
        ratio = statistics.median(r.calibration / r.plain for r in found)
        processor = statistics.median(r.calibration_processor / r.plain_processor for r in found)
        print(f"{name:14} plain {each[0]:6.2f} ms a sample, calibration {each[1]:6.2f} ms, ratio {ratio:.2f}")
        print(f"{'':14} processor time {each[2]:6.2f} and {each[3]:6.2f} ms, ratio {processor:.2f}")


if __name__ == "__main__":
    main()
