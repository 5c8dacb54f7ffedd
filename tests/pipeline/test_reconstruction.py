"""Blocks of whole models learn together: fewer bits cost less, and nothing else changes."""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.core.error_measures import sqnr_db
from onnxq.errors import MissingExtraError, RecipeError
from onnxq.recipe.recipe import Recipe
from onnxq.targets import TARGETS
from tests.graph.build import build, run, weights

needs_torch = pytest.mark.torch

ROOT = Path(__file__).resolve().parents[2]

TEXT = """g (float[N,3,8,8] x) => (float[N,6] y) {
    [c1] a = Conv <pads = [1,1,1,1]> (x, w1, b1) [r1] b = Relu (a)
    [c2] c = Conv <pads = [1,1,1,1]> (b, w2, b2) [s] d = Add (b, c) [r2] e = Relu (d)
    [c3] f = Conv <pads = [1,1,1,1]> (e, w3, b3) [r3] h = Clip (f, low, high)
    [c4] i = Conv (h, w4, b4) [r4] j = Relu (i)
    [p] k = GlobalAveragePool (j) [fl] l = Flatten (k) [fc] y = Gemm (l, w5, b5)
}"""


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A target whose weights have 4 bits, so that how they are rounded counts."""
    monkeypatch.setitem(TARGETS, "narrow", replace(TARGETS["cpu"], name="narrow", weight_bits=4))


def model() -> onnx.ModelProto:
    return build(
        TEXT, w1=weights(12, 3, 3, 3), b1=weights(12), w2=weights(12, 12, 3, 3) / 2, b2=weights(12),
        w3=weights(16, 12, 3, 3) / 2, b3=weights(16), w4=weights(16, 16, 1, 1), b4=weights(16), w5=weights(16, 6),
        b5=weights(6), low=np.float32(0), high=np.float32(3),
    )  # fmt: skip


def feeds(count: int = 20) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    mixed = rng.normal(0, 1, (count, 2, 3, 8, 8)) @ (rng.normal(0, 0.3, (8, 8)) + np.eye(8))
    return [{"x": array.astype(np.float32)} for array in mixed]


def ratio(quantized: onnx.ModelProto | None, samples: list[dict[str, np.ndarray]]) -> float:
    assert quantized is not None
    both = [(run(model().SerializeToString(), f)["y"], run(quantized.SerializeToString(), f)["y"]) for f in samples]
    return sqnr_db(np.concatenate([p[0] for p in both]), np.concatenate([p[1] for p in both]))


def quantized(**options: Any) -> onnxq.report.results.QuantizeResult:
    recipe = Recipe(**{"preset": "w8a8", "target": "narrow", "include": ("*",), **options})
    return onnxq.quantize(model(), calibration=feeds(), recipe=recipe, threads=1, benchmark=False, force=True)


@needs_torch
@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_four_bits_cost_less(form: str) -> None:
    plain, learned = quantized(format=form), quantized(format=form, preset="w8a8-learned")
    assert learned.coverage == plain.coverage
    assert plain.model is not None and learned.model is not None
    assert [n.op_type for n in learned.model.graph.node] == [n.op_type for n in plain.model.graph.node]
    assert ratio(learned.model, feeds()) > ratio(plain.model, feeds()) + 6.0
    inside = [onnx.numpy_helper.to_array(t) for t in learned.model.graph.initializer]
    integers = [a for a in inside if a.dtype == np.int8 and a.ndim > 1]
    assert len(integers) == 5 and all(np.abs(array.astype(int)).max() <= 7 for array in integers)


@needs_torch
def test_the_same_twice() -> None:
    assert quantized(reconstruct=True).model == quantized(reconstruct=True).model


@needs_torch
def test_time_bounds_what_learns() -> None:
    result = quantized(reconstruct=True, minutes=1e-9)
    assert result.model == quantized().model
    assert any("did not learn within 1e-09 minutes; --minutes gives more" in warning for warning in result.warnings)


@needs_torch
def test_where_time_is_short_fewer_steps_are_made_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("time.thread_time", lambda: float(next(ticks)))  # a second each time that anyone looks
    result = quantized(reconstruct=True, minutes=1.0)
    said = [re.search(r"blocks made (\d+) of (\d+) steps within 1 minutes of computing", w) for w in result.warnings]
    made, wanted = next(tuple(map(int, found.groups())) for found in said if found is not None)
    assert 0 < made < wanted


@needs_torch
def test_what_was_tried_and_taken_is_said() -> None:
    recipe = Recipe(preset="w8a8-learned", include=("*",))
    result = onnxq.quantize(model(), calibration=feeds(), recipe=recipe, threads=1, benchmark=False, force=True)
    found = result.to_dict()["reconstructed"]
    assert [entry["name"] for entry in found["models"][:2]] == ["weights rounded to nearest", "weights rounded by use"]
    learned = [entry for entry in found["models"] if entry["learned"]]
    assert {entry["start"] for entry in learned} <= {"weights rounded to nearest", "weights rounded by use"}
    (best,) = (entry for entry in found["models"] if entry["name"] == found["taken"])
    assert best["learned"] and found["seconds"] > 0.0 and 0 < found["steps"] <= found["planned"]
    assert f"{best['name']}: SQNR {found['models'][0]['sqnr_db']:.1f} -> {best['sqnr_db']:.1f} dB" in result.summary()
    assert quantized().to_dict()["reconstructed"] is None


@needs_torch
def test_blocks_learn_from_another_start_only_where_time_suffices(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxq.qat.computing_time import Allowance

    monkeypatch.setattr(Allowance, "repeats", lambda self, mark, times, share=1.0: 0.5 if times == 1 else 1e9)
    recipe = Recipe(preset="w8a8-learned", include=("*",))
    result = onnxq.quantize(model(), calibration=feeds(), recipe=recipe, threads=1, benchmark=False, force=True)
    assert sum(entry["learned"] for entry in result.to_dict()["reconstructed"]["models"]) <= 1


@needs_torch
def test_another_load_of_the_machine_gives_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = quantized(reconstruct=True).model
    ticks = itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: 3600.0 * next(ticks))  # hours pass on the clock, none are computed
    assert quantized(reconstruct=True).model == plain


@needs_torch
def test_eight_bit_roundings_are_those_of_a_start_and_do_not_learn_from_few_samples(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def integers(count: int, **options: Any) -> list[Any]:
        recipe = Recipe(preset="w8a8", include=("*",), **options)
        made = onnxq.quantize(
            model(), calibration=feeds(count), recipe=recipe, threads=1, benchmark=False, force=True
        ).model
        assert made is not None
        arrays = map(onnx.numpy_helper.to_array, made.graph.initializer)
        return sorted(array.tobytes() for array in arrays if array.dtype == np.int8 and array.ndim > 1)

    assert integers(5, reconstruct=True) in (integers(5, algorithm="gptq"), integers(5))
    monkeypatch.setattr("onnxq.pipeline.build.compensated", lambda job, plan, rewrite: {})
    assert integers(5, reconstruct=True) == integers(5)
    monkeypatch.setattr("onnxq.qat.reconstruction.EVIDENCE", 1)
    assert integers(5, reconstruct=True) != integers(5)


@needs_torch
def test_a_loss_that_is_not_finite_keeps_the_best_state(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from onnxq.qat.block_learning import BlockLearner

    monkeypatch.setattr(BlockLearner, "_loss", lambda self, samples: torch.tensor(float("nan"), requires_grad=True))
    result = quantized(reconstruct=True)
    assert result.model == quantized(adaround=True).model
    assert any("a loss was not finite; its block kept the best state" in warning for warning in result.warnings)


@needs_torch
def test_what_is_worse_in_the_whole_is_not_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxq.qat.block_learning import BlockLearner, BlockResult

    def spoil(self: BlockLearner, *arguments: Any) -> BlockResult:
        import torch

        self._parts.settle()
        with torch.no_grad():
            for part in self._parts.integers:
                part.latent += 2.0
        return BlockResult(1.0, 0.5, 1)

    monkeypatch.setattr(BlockLearner, "learn", spoil)
    result = quantized(reconstruct=True)
    assert result.model == quantized(adaround=True).model
    assert any("--reconstruct: nothing was taken over" in warning for warning in result.warnings)


KILLED = """
import os, signal, sys
from tests.pipeline.test_reconstruction import written
def watch(step, done, total):
    if step == sys.argv[2] and done == 1:
        os.kill(os.getpid(), signal.SIGKILL)
written(sys.argv[1], progress=watch)
"""


def written(output: str, **options: Any) -> onnxq.report.results.QuantizeResult:
    """A reconstructed model in a file; its weights have 4 bits, so that layers learn before blocks do."""
    recipe = Recipe(preset="w8a8-learned", bits=4, include=("*",))
    return onnxq.quantize(
        model(), output, calibration=feeds(), recipe=recipe, threads=1, benchmark=False, force=True, **options
    )


@needs_torch
@pytest.mark.parametrize(("step", "kept"), [("adaround", 1), ("reconstruct", 6)])
def test_a_killed_run_goes_on_and_comes_to_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, kept: int
) -> None:
    from onnxq.pipeline.learned import learning
    from onnxq.qat.block_learning import BlockLearner

    whole, again = tmp_path / "whole.onnx", tmp_path / "again.onnx"
    done = subprocess.run([sys.executable, "-c", KILLED, str(again), step], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    files = list(Path(f"{again}.layers").iterdir())
    assert not again.exists() and len(files) == kept
    written(str(whole))
    made: list[str] = []
    layer, block = learning._learn, BlockLearner.learn
    monkeypatch.setattr(learning, "_learn", lambda *given: (made.append("layer"), layer(*given))[1])
    monkeypatch.setattr(BlockLearner, "learn", lambda *given: (made.append("block"), block(*given))[1])
    written(str(again))
    assert made.count("layer") + made.count("block") == 7 - kept  # five layers, two blocks
    assert again.read_bytes() == whole.read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {"whole.onnx", "again.onnx"}


@needs_torch
def test_what_is_kept_of_other_samples_or_damaged_is_not_taken(tmp_path: Path) -> None:
    from onnxq.core import atomic

    plain = quantized(reconstruct=True)
    output = tmp_path / "m.onnx"
    folder = Path(f"{output}.layers")

    def interrupt(step: str, done: int, total: int | None) -> None:
        if step == "reconstruct" and done == 1:
            raise KeyboardInterrupt

    def run(**options: Any) -> onnxq.report.results.QuantizeResult:
        recipe = Recipe(preset="w8a8", target="narrow", include=("*",), reconstruct=True)
        return onnxq.quantize(model(), output, recipe=recipe, threads=1, benchmark=False, force=True, **options)

    with pytest.raises(KeyboardInterrupt):
        run(calibration=feeds(16), progress=interrupt)
    assert folder.is_dir() and not output.exists()
    with pytest.raises(KeyboardInterrupt):
        run(calibration=feeds(), progress=interrupt)
    for path in folder.iterdir():
        known = atomic.read_arrays(path)
        assert known is not None
        path.write_bytes(path.read_bytes()[:50])
        assert atomic.read_arrays(path) is None
    run(calibration=feeds())
    assert plain.model is not None and onnx.load(output).graph == plain.model.graph
    assert not folder.exists()


@needs_torch
def test_blocks_with_if_are_left_out() -> None:
    text = """g (float[N,3,8,8] x, bool c) => (float[N,6,8,8] y) {
        [c1] a = Conv <pads = [1,1,1,1]> (x, w1) [r1] b = Relu (a)
        [i] d = If (c) <then_branch = t () => (float[N,12,8,8] t1) { [m] t1 = Mul (b, two) },
                        else_branch = e () => (float[N,12,8,8] e1) { [n] e1 = Neg (b) }>
        [c2] f = Conv <pads = [1,1,1,1]> (d, w2) [c3] y = Conv (f, w3)
    }"""
    made = build(text, w1=weights(12, 3, 3, 3), w2=weights(12, 12, 3, 3), w3=weights(6, 12, 1, 1), two=np.float32(2))
    samples = [{**feed, "c": np.array(i % 2 == 0)} for i, feed in enumerate(feeds())]
    result = onnxq.quantize(
        made, calibration=samples, preset="w8a8", recipe=Recipe(reconstruct=True, include=("*",)), threads=1,
        benchmark=False, force=True,
    )  # fmt: skip
    assert any("blocks with If were left out, for which there is no torch function" in w for w in result.warnings)


@needs_torch
def test_samples_are_needed(tmp_path: Path, digits: Path) -> None:
    statistics = onnxq.calibrate(digits, tmp_path / "s.npz", threads=1).statistics
    with pytest.raises(RecipeError, match="--reconstruct: needs samples to learn from"):
        onnxq.quantize(onnx.load(digits), statistics=statistics, preset="w8a8-learned", benchmark=False)


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxq.qat.has_torch", lambda: False)
    with pytest.raises(MissingExtraError, match=r"--reconstruct: needs PyTorch.*pip install 'onnxq\[torch\]'"):
        quantized(reconstruct=True)
    with pytest.raises(MissingExtraError, match="--reconstruct: needs PyTorch"):
        quantized(reconstruct=True, preset="auto")


@needs_torch
def test_who_asks_auto_for_blocks_that_learn_gets_them() -> None:
    asked = quantized(reconstruct=True, preset="auto")
    assert asked.preset == "w8a8" and asked.model == quantized(reconstruct=True).model


@needs_torch
def test_blocks_end_at_joints() -> None:
    from onnxq.graph.files import io
    from onnxq.graph.views.plain_graph import plain_graph
    from onnxq.qat.network_blocks import Facts, find_blocks, teachers_of

    graph = plain_graph(io.load(model()))
    floats = {name: 1 for node in graph.nodes for name in node.outputs}
    layers = frozenset(node.index for node in graph.nodes if node.op_type in ("Conv", "Gemm"))
    blocks = find_blocks(graph, Facts(teachers_of(graph, frozenset({*floats, "x"})), floats, layers), least=2)
    # not inside the residual block, where b is read later too
    assert [(list(block.outputs.values()), block.layers) for block in blocks] == [(["d"], 2), (["i"], 2), (["y"], 1)]
    assert [node for block in blocks for node in block.nodes] == list(graph.nodes)


@needs_torch
def test_a_block_that_pytorch_cannot_run_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxq.graph.views.plain_graph import PlainNode
    from onnxq.qat.graph_module import GraphModule
    from onnxq.qat.torch_ops.call import NodeError

    step = GraphModule.step

    def fails(module: Any, node: PlainNode, values: Any) -> None:
        if node.op_type == "GlobalAveragePool":
            raise NodeError(node, "PyTorch cannot run it: no such shape")
        step(module, node, values)

    monkeypatch.setattr(GraphModule, "step", fails)
    result = quantized(reconstruct=True)
    said = [line for line in result.warnings if "left out" in line]
    assert said and "a block was left out" in said[0] and said[0].endswith("PyTorch cannot run it: no such shape")


@needs_torch
def test_interrupted_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from onnxq.qat.block_learning import BlockLearner

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(BlockLearner, "learn", interrupt)
    out = tmp_path / "out.onnx"
    recipe = Recipe(preset="w8a8-learned", include=("*",))
    with pytest.raises(KeyboardInterrupt):
        onnxq.quantize(model(), out, calibration=feeds(), recipe=recipe, threads=1, benchmark=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.torch
@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"reconstruct": True}, "--reconstruct: nothing was taken over, since no block came nearer to float"),
        ({"finetune": True, "epochs": 1}, "--finetune: no state was better on held-out samples"),
    ],
    ids=["blocks", "finetune"],
)
def test_blocks_in_which_nothing_can_learn_stay_as_they_are(options: dict[str, Any], line: str) -> None:
    """Roundings to 8 bits want many samples, and scales that are found at inference and have no parameters."""
    model = build("g (float[1,64] x) => (float[1,32] y) { [only] y = MatMul (x, w) }", w=weights(64, 32))
    feeds = [{"x": np.random.default_rng(index).normal(size=(1, 64)).astype(np.float32)} for index in range(12)]
    result = onnxq.quantize(model, preset="w8a8-dynamic", calibration=feeds, benchmark=False, threads=1, **options)
    assert [warning for warning in result.warnings if warning.startswith(line)]
    assert result.model is not None and result.preset == "w8a8-dynamic"
    assert any(node.op_type.startswith("DynamicQuantize") for node in result.model.graph.node)
