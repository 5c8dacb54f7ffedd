"""``python -m benchmarks.busy``: how long small jobs take alone, and beside processes that never rest.

Two threads that wait for each other by spinning wait longest where other processes want the processor: one spins while
the other, which it waits for, is not running. Each job here runs in a process of its own, alone and beside as many busy
processes as asked, for this source tree and for others (``--source``) in turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import machine
from benchmarks.command import RESULTS
from benchmarks.jobs import ROOT

JOBS: dict[str, tuple[str, str]] = {
    "w8a8": ("tiny_lm", 'preset="w8a8"'),
    "gptq": ("tiny_lm", 'preset="w4", algorithm="gptq"'),
    "awq": ("tiny_lm", 'preset="w4", algorithm="awq"'),
    "w8a8, convolutions": ("digits_resnet", 'preset="w8a8"'),
}
"""Model and arguments of `onnxq.quantize`, by the name of the job; latency is not measured."""

_WORK = """
import sys, time
import onnxq
started = time.perf_counter()
onnxq.quantize({model!r}, {output!r}, benchmark=False, {arguments})
print(time.perf_counter() - started)
"""
_BUSY = "while True: sum(range(10000))"
_TIMEOUT = 600.0


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep so many processes at work."""
    running = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def seconds_of(job: str, source: Path) -> float:
    """Seconds that a job takes in a process of its own, imports not counted; infinite where it is stopped.

    Args:
        job: one of `JOBS`.
        source: folder that holds the package to import.
    """
    model, arguments = JOBS[job]
    with tempfile.TemporaryDirectory() as folder:
        path, output = ROOT / "models" / f"{model}.onnx", Path(folder, "q.onnx")
        code = _WORK.format(model=str(path), output=str(output), arguments=arguments)
        try:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", code],
                env={**os.environ, "PYTHONPATH": str(source)},
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
                check=True,
            )
        except subprocess.TimeoutExpired:
            return float("inf")
    return float(done.stdout.split()[-1])


def measure(jobs: Sequence[str], sources: dict[str, Path], counts: Sequence[int], repeats: int) -> str:
    """The table: median seconds of each job, by source and number of busy processes, sources in alternation."""
    head = ["job", "source", *(f"{count} busy" for count in counts)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for job in jobs:
        found: dict[str, list[str]] = {name: [] for name in sources}
        for count in counts:
            taken: dict[str, list[float]] = {name: [] for name in sources}
            with busy(count):
                for _ in range(repeats):
                    for name, source in sources.items():
                        taken[name].append(seconds_of(job, source))
            for name, times in taken.items():
                found[name].append(f"{statistics.median(times):.2f} ({min(times):.2f}…{max(times):.2f})")
        for name, cells in found.items():
            lines.append(f"| {job} | {name} | " + " | ".join(cells) + " |")
            print(lines[-1], file=sys.stderr)
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write ``results/busy.md``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.busy", description=__doc__)
    parser.add_argument("--job", action="append", choices=JOBS, help="only these jobs")
    parser.add_argument("--busy", default="0,2,4", help="numbers of busy processes, by commas")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--source", action="append", default=[], metavar="NAME=FOLDER", help="another tree to compare")
    parser.add_argument("--output", type=Path, default=RESULTS / "busy.md")
    options = parser.parse_args(arguments)
    sources = {name: Path(folder).resolve() for name, folder in (given.split("=", 1) for given in options.source)}
    sources["this"] = ROOT
    counts = [int(count) for count in options.busy.split(",")]
    table = measure(options.job or list(JOBS), sources, counts, options.repeats)
    facts = machine.facts()
    said = f"{facts['cpu']}, {facts['cores']} cores, onnxruntime {facts['onnxruntime']}, {facts['date']}"
    title = "# Small jobs beside busy processes"
    text = f"{title}\n\nMedian seconds (least … most of {options.repeats}). {said}.\n\n{table}\n"
    options.output.write_text(text, encoding="utf-8")
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
