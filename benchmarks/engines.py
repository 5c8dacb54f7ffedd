"""``python -m benchmarks.engines --engine qnn``: every model with layers on an engine that is not ONNX Runtime's own.

For each model: the nodes that the engine leaves to the CPU, the error of its outputs beside that of ONNX Runtime's CPU
provider on the same integers, and, where it is no simulator, its speed over float there and over float on ONNX Runtime.
Results are kept by engine and model, so that a run may be made in parts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

import onnxq
from benchmarks import wild, workloads
from benchmarks.command import RESULTS
from benchmarks.engine_tables import render
from benchmarks.feeds import Feed
from benchmarks.kept_rows import Row, add_choice, chosen, measured, rows_in
from benchmarks.workloads import Workload
from onnxq.errors import OnnxqError
from onnxq.runtime.engines.process_engine import ProcessEngine

ENGINES = {"qnn": ("w8a8", "w8a16"), "openvino": ("w8a8",)}
"""The presets that each engine is measured with."""

TIMED = {"openvino": ("OpenVINOExecutionProvider", {"device_type": "CPU"})}
"""Provider and options of the engines whose times mean something."""

LAYERS = frozenset("Conv ConvTranspose Gemm MatMul".split())
MOST_SAMPLES, TURNS, TIMED_FEEDS = 120, 5, 4


def fitting(model: Path, feeds: Sequence[Feed]) -> tuple[list[Feed], list[str]]:
    """Feeds of one shape, and the options that fix the model's dimensions to it.

    A batch that is open becomes 1, and feeds of several rows become as many feeds. Of feeds whose sizes differ those of
    the first one's are taken.
    """
    inputs = {value.name: value for value in onnx.load(model, load_external_data=False).graph.input}
    inputs = {name: value for name, value in inputs.items() if name in feeds[0]}
    sizes = {name: value.type.tensor_type.shape.dim for name, value in inputs.items()}
    rows = {len(feeds[0][name]) if feeds[0][name].ndim else 0 for name in sizes}
    open_batch = all(dims and dims[0].dim_value < 1 for dims in sizes.values())
    if open_batch and len(rows) == 1 and rows != {1}:
        feeds = [{name: feed[name][i : i + 1] for name in feed} for feed in feeds for i in range(len(feed[min(feed)]))]
    first = {name: array.shape for name, array in feeds[0].items()}
    chosen = [feed for feed in feeds if {name: array.shape for name, array in feed.items()} == first]
    step = max(len(chosen) // MOST_SAMPLES, 1)
    fixed = {
        f"{name}:{axis}": first[name][axis]
        for name, dims in sizes.items()
        for axis, dim in enumerate(dims)
        if dim.dim_value < 1
    }
    return chosen[::step][:MOST_SAMPLES], [f"{name}={size}" for name, size in fixed.items()]


def measure(workload: Workload, engine: str, python: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Everything about one model on one engine; what is refused as a whole is a row with the reason."""
    model = workload.model(folder)
    graph = onnx.load(model, load_external_data=False).graph
    feeds, fixed = fitting(model, workload.feeds())
    found: dict[str, Any] = {"model": workload.name, "engine": engine, "nodes": len(graph.node), "forms": {}}
    for preset in ENGINES[engine]:
        output = folder / f"{preset}.onnx"
        try:
            result = onnxq.quantize(
                model, output, target=engine, preset=preset, calibration=feeds, fix_dims=fixed, engine_python=python,
                benchmark=False,
            )  # fmt: skip
        except OnnxqError as error:
            found["forms"][preset] = {"error": str(error)}
            continue
        row: dict[str, Any] = dict(result.engine or {})
        row["error"] = None
        if engine in TIMED and not row["note"]:
            row |= times(model, output, engine, python, feeds[:TIMED_FEEDS], seconds)
        found["forms"][preset] = row
    return found


def times(
    model: Path, output: Path, engine: str, python: str, feeds: Sequence[Feed], seconds: float
) -> dict[str, float]:
    """Median milliseconds of both models on the engine and on ONNX Runtime, which take turns."""
    provider, options = TIMED[engine]
    taken: dict[str, list[float]] = {"float": [], "quantized": [], "float here": [], "quantized here": []}
    with ProcessEngine(python, provider, options) as there, ProcessEngine(sys.executable) as here:
        for _ in range(TURNS):
            for runs, suffix in ((there, ""), (here, " here")):
                for name, ms in zip(
                    ("float", "quantized"), runs.time([model, output], feeds, seconds / TURNS), strict=True
                ):
                    taken[name + suffix] += ms
    return {f"{name} ms": statistics.median(ms) for name, ms in taken.items()}


def find(zoo: Path) -> list[Workload]:
    """The models with layers, of the zoo, of packages, and of ``models/``."""
    found = [*workloads.find(zoo)[0], *wild.find(zoo)[0]]
    return [workload for workload in found if workload.group != "shapes" and _has_layers(workload)]


def _has_layers(workload: Workload) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        nodes = onnx.load(workload.model(Path(folder)), load_external_data=False).graph.node
    return any(node.op_type in LAYERS for node in nodes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the status is 2 where a task is unknown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument("--engine", choices=ENGINES, required=True, help="the target whose engine runs the models")
    parser.add_argument("--engine-python", default=sys.executable, metavar="PATH", help="the Python that has it")
    parser.add_argument("--seconds", type=float, default=2.0, help="to time each model for")
    add_choice(parser)
    options = parser.parse_args(arguments)
    tasks = chosen(find(options.zoo.resolve()), options)
    if isinstance(tasks, int):
        return tasks
    path = RESULTS / "engines.json"

    def on_engine(workload: Workload, folder: Path) -> Row:
        return measure(workload, options.engine, options.engine_python, folder, options.seconds)

    for _ in measured(tasks, on_engine, path, "engine", render):
        pass
    print(render(rows_in(path)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
