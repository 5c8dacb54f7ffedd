"""LoRA branches are known by their shape, and stay float."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxq
from onnxq.graph.files import io
from onnxq.graph.reading.matrices import low_rank_branches

WIDTH, RANK = 64, 4
Nodes = list[onnx.NodeProto]


def weights(**shapes: tuple[int, ...]) -> list[onnx.TensorProto]:
    generator = np.random.default_rng(0)
    return [
        numpy_helper.from_array((generator.normal(size=shape) / 8).astype(np.float32), name)
        for name, shape in shapes.items()
    ]


def node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=output, **attributes)


def branch(x: str = "x", out: str = "y", *, between: str | None = "Mul", joined: str = "Add") -> Nodes:
    """x·W beside x·A·B, with a factor between them."""
    nodes = [node("MatMul", [x, "W"], f"{out}.large"), node("MatMul", [x, "A"], f"{out}.a")]
    middle = f"{out}.a"
    if between is not None:
        nodes.append(node(between, [middle, *(["factor"] if between == "Mul" else [])], f"{out}.middle"))
        middle = f"{out}.middle"
    return [
        *nodes, node("MatMul", [middle, "B"], f"{out}.b"), node(joined, [f"{out}.large", f"{out}.b"], out),
    ]  # fmt: skip


def model(nodes: Nodes, rank: int = RANK, *, more: list[onnx.TensorProto] | None = None) -> onnx.ModelProto:
    held = weights(W=(WIDTH, 2 * WIDTH), A=(WIDTH, rank), B=(rank, 2 * WIDTH), bias=(2 * WIDTH,))
    held += [numpy_helper.from_array(np.float32(0.5), "factor"), *(more or [])]
    ends = [name for name in ("y", "z") if any(name in node.output for node in nodes)]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ends], held,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def found(given: onnx.ModelProto) -> set[str]:
    return low_rank_branches(io.load(given).graph)


def with_bias() -> Nodes:
    nodes = branch(joined="Add")
    nodes[-1] = node("Add", ["biased", "y.b"], "y")
    return [*nodes[:-1], node("Add", ["y.large", "bias"], "biased"), nodes[-1]]


def scaled_input() -> Nodes:
    return [node("Identity", ["x"], "dropped"), *(replaced(branch(), "y.a", ["dropped", "A"]))]


def replaced(nodes: Nodes, name: str, inputs: list[str]) -> Nodes:
    for given in nodes:
        if given.name == name:
            del given.input[:]
            given.input.extend(inputs)
    return nodes


@pytest.mark.parametrize(
    "make", [branch, lambda: branch(between=None), lambda: branch(between="Identity"), with_bias, scaled_input]
)
def test_a_branch_is_found(make: Callable[[], Nodes]) -> None:
    assert found(model(make())) == {"y.a", "y.b"}


def test_branches_may_share_a_weight() -> None:
    assert found(model([*branch(), *branch(out="z")])) == {"y.a", "y.b", "z.a", "z.b"}


def test_a_branch_in_a_subgraph_is_found() -> None:
    body = helper.make_graph(branch(), "body", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    other = helper.make_graph(
        [node("MatMul", ["x", "W"], "w")], "other", [], [helper.make_tensor_value_info("w", TensorProto.FLOAT, None)]
    )
    chosen = helper.make_node("If", ["flag"], ["z"], name="if", then_branch=body, else_branch=other)
    flag = numpy_helper.from_array(np.array(True), "flag")
    assert found(model([chosen], more=[flag])) == {"y.a", "y.b"}


@pytest.mark.parametrize(
    ("nodes", "rank"),
    [
        (branch(), WIDTH // 2),  # hardly fewer values in the middle
        (branch(between="Relu"), RANK),  # an adapter with a bend: no product of two matrices
        (branch(joined="Mul"), RANK),
        (replaced([node("Neg", ["x"], "minus"), *branch()], "y.a", ["minus", "A"]), RANK),  # of another input
        (replaced(branch(), "y", ["y.b", "bias"]), RANK),  # beside nothing
    ],
    ids=["rank", "bend", "product", "input", "alone"],
)
def test_what_only_looks_like_one_is_none(nodes: Nodes, rank: int) -> None:
    assert found(model(nodes, rank)) == set()


@pytest.mark.parametrize("preset", ["w8", "w4", "w8a8-dynamic", "w8a8"])
def test_a_branch_stays_float_unless_it_is_named(tmp_path: Path, preset: str) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(branch()), path)
    samples = [{"x": np.random.default_rng(i).normal(size=(8, WIDTH)).astype(np.float32)} for i in range(5)]
    options: dict[str, Any] = {"preset": preset, "calibration": samples, "benchmark": False}
    made = onnxq.quantize(path, tmp_path / "q.onnx", include=["y.large"] if preset == "w8a8" else (), **options)
    left = {name: reason for name, _, reason in made.kept_float}
    assert left["y.a"] == left["y.b"] or preset == "w8a8"
    if preset != "w8a8":
        assert left["y.a"].startswith("a LoRA branch")
    kept = {tensor.name for tensor in onnx.load(tmp_path / "q.onnx").graph.initializer if tensor.data_type == 1}
    assert {"A", "B"} <= kept and "W" not in kept
    named = onnxq.quantize(path, tmp_path / "r.onnx", include=["*"], **options)
    assert not any(reason.startswith("a LoRA branch") for _, _, reason in named.kept_float)
