"""What weights are packed in: the language model, MiniLM, and networks of correlated inputs that are made here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks import workloads
from benchmarks.encoder import encoder, token_feeds
from benchmarks.feeds import Feed
from benchmarks.lengths import of_length
from benchmarks.networks import INPUT_NAME, OPSET, Builder
from benchmarks.weights_speed import correlated, weight_of
from benchmarks.workloads import Workload

WIDTH, PAIRS = 1024, 3
DECODER = 4096
SAMPLES, ROWS = 16, 128
DRAWN = 2 * SAMPLES * ROWS
CALIBRATED = 100
"""Samples of MiniLM that calibrate; the error is measured on the others."""

SCORED = (
    *("w8 rtn", *(f"w{bits} {method}" for bits in (4, 3, 2) for method in ("rtn", "gptq", "awq", "hqq"))),
    *("w4 rtn affine", "nf4", "lut4"),
    *("4 bits rtn symmetric", "4 bits rtn", "4 bits k_quant", "4 bits gptq", "4 bits awq"),
)
"""On MiniLM, where a score takes a while."""
METHODS = "w4 rtn", "w4 gptq", "w4 awq", "w4 hqq", "w4 kquant", "4 bits rtn symmetric", "4 bits gptq", "4 bits awq"
FORMS = "w8 rtn", "w4 rtn", "w2 rtn", "w4 rtn affine", "4 bits rtn symmetric", "8 bits rtn symmetric", "2 bits rtn"


@dataclass(frozen=True)
class WeightTask(Workload):
    """A workload for packed weights.

    Attributes:
        sized: a feed of so many rows or tokens.
        configs: the only configurations to measure; None for all.
        exact: score it at accuracy level 0 too.
    """

    sized: Callable[[int], Feed] = field(kw_only=True)
    configs: Sequence[str] | None = None
    exact: bool = False


def find(zoo: Path) -> tuple[list[Workload], list[str]]:
    """All tasks, and a line for each that cannot be measured here."""
    known, left_out = workloads.find(zoo)
    named = {workload.name: workload for workload in known}
    tasks: list[Workload] = [_language_model(named["tiny_lm"]), _stack(), _encoder(), _decoder()]
    if "minilm_stsb" in named:
        tasks.append(_sentences(named["minilm_stsb"]))
    return tasks, [line for line in left_out if "zoo is" in line or "minilm" in line]


def _task(workload: Workload, sized: Callable[[int], Feed], **changes: object) -> WeightTask:
    same = {item.name: getattr(workload, item.name) for item in fields(Workload)}
    return replace(WeightTask(**same, sized=sized), **changes)  # type: ignore[arg-type]


def _language_model(workload: Workload) -> WeightTask:
    assert workload.score is not None
    likelihood = workload.score
    return _task(
        workload,
        lambda count: of_length(workload.feeds(), count),
        metric="perplexity",
        score=lambda path: math.exp(likelihood(path)),
        exact=True,
    )


def _sentences(workload: Workload) -> WeightTask:
    return _task(
        workload,
        lambda count: of_length(workload.feeds(), count),
        feeds=lambda: workload.feeds()[:CALIBRATED],
        error_feeds=lambda: workload.feeds()[CALIBRATED:],
        configs=SCORED,
    )


def stack(width: int = WIDTH, pairs: int = PAIRS) -> onnx.ModelProto:
    """Norm, two square MatMul with a Relu between them, and a residual sum, over and over; (rows, width) → the same."""
    b = Builder(0)
    x = INPUT_NAME
    for number in range(pairs):
        name = f"block{number}"
        norm = [b.constant(f"{name}.gain", np.ones(width)), b.constant(f"{name}.bias", np.zeros(width))]
        y = b.node("LayerNormalization", [x, *norm], f"{name}/norm", axis=-1)
        first, second = (
            b.constant(f"{name}.{side}.weight", np.sqrt(2) * weight_of(width, width, 2 * number + side).T)
            for side in (0, 1)
        )
        y = b.node("Relu", [b.node("MatMul", [y, first], f"{name}/up")], f"{name}/Relu")
        x = b.node("Add", [x, b.node("MatMul", [y, second], f"{name}/down")], f"{name}/Add")
    return _model(b, x, width)


def _model(b: Builder, last: str, width: int) -> onnx.ModelProto:
    b.nodes.append(helper.make_node("Identity", [last], ["output"], name="output/Identity"))
    (given,), (made,) = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", width])] for name in (INPUT_NAME, "output")
    )
    graph = helper.make_graph(b.nodes, "stack", [given], [made], b.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def _rows(count: int, rows: int, start: int = 0) -> list[Feed]:
    """Feeds of correlated rows, all from one draw: the directions that they share are those of every feed."""
    drawn = correlated(WIDTH, DRAWN, 7)[start : start + count * rows]
    return [{INPUT_NAME: np.ascontiguousarray(part)} for part in np.split(drawn, count)]


def _saved(make: Callable[[], onnx.ModelProto], name: str) -> Callable[[Path], Path]:
    def model(folder: Path) -> Path:
        path = folder / f"{name}.onnx"
        onnx.save(make(), path)
        return path

    return model


def _stack() -> WeightTask:
    return WeightTask(
        "stack1024",
        "shapes",
        _saved(stack, "stack1024"),
        lambda: _rows(SAMPLES, ROWS),
        error_feeds=lambda: _rows(SAMPLES, ROWS, start=DRAWN // 2),
        sized=lambda count: _rows(1, count)[0],
    )


def _encoder() -> WeightTask:
    """What a method costs: 6 layers of width 384 and 8 sequences of 128 tokens."""
    return WeightTask(
        "encoder384",
        "shapes",
        _saved(encoder, "encoder384"),
        lambda: token_feeds(8, seed=1),
        error_feeds=lambda: token_feeds(8, seed=2),
        sized=lambda count: token_feeds(1, seed=3, tokens=count)[0],
        configs=METHODS,
    )


def _decoder() -> WeightTask:
    """What a form gains: one matrix that does not fit a cache."""

    def make() -> onnx.ModelProto:
        b = Builder(0)
        weight = b.constant("weight", weight_of(DECODER, DECODER, 0).T)
        return _model(b, b.node("MatMul", [INPUT_NAME, weight], "MatMul"), DECODER)

    def feeds() -> list[Feed]:
        rng = np.random.default_rng(0)
        return [{INPUT_NAME: rng.normal(size=(32, DECODER)).astype(np.float32)} for _ in range(4)]

    def sized(count: int) -> Feed:
        return {INPUT_NAME: np.random.default_rng(1).normal(size=(count, DECODER)).astype(np.float32)}

    return WeightTask("matmul4096", "shapes", _saved(make, "matmul4096"), feeds, sized=sized, configs=FORMS)
