"""Work that runs in a process of its own: its peak memory is its own, and what it breaks is a row with the error.

`run_job` is what others call; ``python -m benchmarks.jobs REQUEST.json ANSWER.json`` is the process it starts.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child_processes import end_with_parent, run_in_group

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_SECONDS = 1800


@dataclass(frozen=True)
class JobResult:
    """What came of a job.

    Attributes:
        values: the answer; empty where it failed.
        peak_bytes: the most memory the process had at once, or None where that is not known.
        error: one line, or None.
    """

    values: dict[str, Any]
    peak_bytes: int | None
    error: str | None


def run_job(kind: str, python: str | None = None, **arguments: Any) -> JobResult:
    """Run one of `JOBS` in a new process with one thread for numpy; arguments must be JSON.

    Another interpreter than this one is given as ``python``. ``limit`` among the arguments is seconds that it may take.

    The process may take two thirds of the memory that is free now; one that wants more ends in a MemoryError.
    """
    limit = int(arguments.pop("limit", TIMEOUT_SECONDS))
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder, "request.json"), Path(folder, "answer.json")
        request.write_text(json.dumps({"kind": kind, "arguments": arguments}), encoding="utf-8")
        command = [python or sys.executable, "-m", "benchmarks.jobs", str(request), str(answer)]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        environment = {**os.environ, **threads, "TMPDIR": folder, "PYTHONPATH": str(ROOT)}
        # onnxruntime's shape inference leaves files where it runs
        status = run_in_group(command, Path(folder), environment, limit)
        if status is None:
            return JobResult({}, None, f"stopped after {limit} s")
        if not answer.is_file():
            return JobResult({}, None, f"the process ended with status {status}")
        return JobResult(**json.loads(answer.read_text(encoding="utf-8")))


def peak_bytes() -> int | None:
    """The most memory this process had at once.

    From /proc, because ``ru_maxrss`` of a new process starts at what the process that started it had.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def _limit_memory() -> None:
    """Hold this process to two thirds of the free memory, where the system tells how much that is."""
    memory = Path("/proc/meminfo")
    if not memory.is_file():
        return
    import resource

    lines = dict(line.split(":", 1) for line in memory.read_text(encoding="utf-8").splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (free * 2 // 3, resource.RLIM_INFINITY))


def _peer(config: str, model: str, feeds: str, output: str) -> dict[str, Any]:
    from benchmarks.peers import CONFIGS, quantize_with_peer

    return dict(quantize_with_peer(CONFIGS[config], Path(model), Path(feeds), Path(output)))


def _quark(config: str, model: str, feeds: str, output: str) -> dict[str, Any]:
    from benchmarks.quark_peer import quantize_with_quark

    return quantize_with_quark(config, Path(model), Path(feeds), Path(output))


def _olive(config: str, model: str, output: str) -> dict[str, Any]:
    from benchmarks.olive_peer import quantize_with_olive

    return dict(quantize_with_olive(config, Path(model), Path(output)))


def _weight_peer(config: str, model: str, feeds: str, output: str) -> dict[str, Any]:
    from benchmarks.weight_peers import PEERS, quantize_with_weight_peer

    return dict(quantize_with_weight_peer(PEERS[config], Path(model), Path(feeds), Path(output)))


def _onnxq_folder(folder: str, output: str, calibration: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """`onnxq.quantize_folder` as a user calls it, verification included, with all processors."""
    import onnxq

    start, busy = time.perf_counter(), time.process_time()
    result = onnxq.quantize_folder(folder, output, calibration=calibration, cache=False, **options)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    facts = result.to_dict()
    return {"seconds": seconds, "processor_seconds": busy, "chosen": facts["graphs"][0].get("preset")}


def _genai(call: str, **arguments: Any) -> dict[str, Any]:
    from benchmarks import genai_side

    made: dict[str, Any] = getattr(genai_side, call)(**arguments)
    return made


def _onnxq(model: str, feeds: str, output: str, options: dict[str, Any]) -> dict[str, Any]:
    """`onnxq.quantize` as a user calls it, timing and verification included."""
    import onnxq

    start, busy = time.perf_counter(), time.process_time()
    result = onnxq.quantize(model, output, calibration=feeds, threads=1, cache=False, **options)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    facts = result.to_dict()
    report = {key: facts[key] for key in ("preset", "coverage", "warnings", "sqnr_db", "latency_ratio", "seconds")}
    report["bits_per_weight"] = facts["bits_per_weight"]
    return {"seconds": seconds, "processor_seconds": busy, "report": {**report, "kept_float": len(facts["kept_float"])}}


def _calibrate(model: str, feeds: str, output: str, repeats: int) -> dict[str, Any]:
    """`onnxq.calibrate` against plain inference of the same samples in memory, in turns."""
    import onnxq
    from benchmarks.feeds import read_feeds
    from benchmarks.measure import plain_inference_seconds

    samples = list(read_feeds(Path(feeds)))
    plain, calibration = [], []
    for number in range(repeats):
        plain.append(plain_inference_seconds(Path(model), samples))
        saved = str(Path(output).with_suffix(f".{number}.npz"))
        calibration.append(onnxq.calibrate(model, saved, calibration=samples, threads=1).seconds)
    plain.append(plain_inference_seconds(Path(model), samples))
    return {"plain_seconds": statistics.median(plain), "seconds": statistics.median(calibration)}


def _calibrate_memory(model: str, feeds: str, output: str) -> dict[str, Any]:
    """`onnxq.calibrate` from a folder, for its peak memory."""
    import onnxq

    return {"samples": onnxq.calibrate(model, output, calibration=feeds, threads=1).samples}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "peer": _peer,
    "quark": _quark,
    "olive": _olive,
    "weight-peer": _weight_peer,
    "onnxq": _onnxq,
    "onnxq-folder": _onnxq_folder,
    "genai": _genai,
    "calibrate": _calibrate,
    "calibrate-memory": _calibrate_memory,
}


def _main(request: Path, answer: Path) -> None:
    asked = json.loads(request.read_text(encoding="utf-8"))
    values: dict[str, Any] = {}
    error = None
    end_with_parent()
    _limit_memory()
    try:
        values = JOBS[asked["kind"]](**asked["arguments"])
    except Exception as problem:  # any failure is a row of the table
        error = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
    result = {"values": values, "peak_bytes": peak_bytes(), "error": error}
    answer.write_text(json.dumps(result, default=str), encoding="utf-8")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
