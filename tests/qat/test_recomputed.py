"""A graph that is run in parts gives the same values and gradients, and writes less at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.graph.files import io
from onnxq.graph.views.plain_graph import plain_graph
from tests.graph.build import build, weights

pytestmark = pytest.mark.torch

TEXT = """g (float[N,3,8,8] x) => (float[N,6] y, float[N,12,8,8] b, float[2] k) {
    a = Conv <pads = [1,1,1,1]> (x, w1) b = Relu (a) c = Conv <pads = [1,1,1,1]> (b, w2) d = Add (b, c)
    e = Sigmoid (d) f = Mul (d, e) p = GlobalAveragePool (f) l = Flatten (p) y = Gemm (l, w3) k = Identity (two)
}"""


def module() -> Any:
    from onnxq.qat.graph_module import GraphModule

    made = build(
        TEXT, w1=weights(12, 3, 3, 3), w2=weights(12, 12, 3, 3) / 3, w3=weights(12, 6), two=np.ones(2, np.float32)
    )
    return GraphModule(plain_graph(io.load(made)))


def test_the_same_values_and_gradients_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from onnxq.qat import recomputed

    graph = module()
    feed = {"x": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
    for value in graph.floats.values():
        value.requires_grad_(True)
    sizes = recomputed.written_bytes(graph, feed)
    by_type = dict(zip((node.op_type for node in graph.graph.nodes), sizes, strict=True))
    assert by_type["Add"] == by_type["Mul"] == 2 * 12 * 64 * 4 and by_type["Identity"] == 0

    def learned(run: Any, outputs: list[str]) -> tuple[list[Any], list[Any]]:
        graph.zero_grad()
        values = run(feed, outputs)
        sum((values[name] ** 2).sum() for name in outputs).backward()
        return [values[name].detach() for name in outputs], [
            p.grad.clone() for p in graph.floats.values() if p.grad is not None
        ]

    for outputs in (["y", "b"], ["y", "d", "x"], ["y", "two"]):
        whole = learned(graph, outputs)
        monkeypatch.setattr(recomputed, "_PART_BYTES", 2048)
        parts = recomputed.Recomputed(graph, sizes)
        assert len(parts.parts) > 3 and [n for part in parts.parts for n in part] == list(graph.graph.nodes)
        found = learned(parts, outputs)
        for expected, got in zip((*whole[0], *whole[1]), (*found[0], *found[1]), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_less_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from onnxq.qat import recomputed
    from onnxq.qat.graph_module import GraphModule

    steps = " ".join(f"s{i} = Sigmoid (x{i}) x{i + 1} = Mul (x{i}, s{i})" for i in range(16))
    graph = GraphModule(
        plain_graph(
            io.load(build(f"g (float[N,1024] x) => (float[N,1024] x16) {{ x0 = Add (x, w) {steps} }}", w=weights(1024)))
        )
    )
    feed = {"x": torch.ones(4, 1024)}
    graph.floats["w"].requires_grad_(True)
    monkeypatch.setattr(recomputed, "_PART_BYTES", 55000)
    parts = recomputed.Recomputed(graph, recomputed.written_bytes(graph, feed))
    assert len(parts.parts) == 9

    def held(run: Any) -> int:
        """Bytes that wait for the way back."""
        found: dict[int, int] = {}

        def keep(tensor: Any) -> Any:
            found[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            run(feed, ["x16"])["x16"].sum()
        return sum(found.values())

    assert held(parts) < 0.5 * held(graph)


def test_a_small_graph_is_one_part() -> None:
    import torch

    from onnxq.qat import recomputed

    graph = module()
    feed = {"x": torch.ones(1, 3, 8, 8)}
    assert len(recomputed.Recomputed(graph, recomputed.written_bytes(graph, feed)).parts) == 1
