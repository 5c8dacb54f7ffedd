"""Post-processing that is taken off: what goes, what the model gives instead, and what it means for the user."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import onnxq
from onnxq.cli._app import app
from onnxq.errors import RecipeError
from onnxq.graph.files import io
from onnxq.graph.prepare.whole.drop_tail import drop_tail
from tests.graph.build import build, run, weights

RNG = np.random.default_rng(0)
FEEDS = [{"x": RNG.standard_normal((1, 8, 6, 6)).astype(np.float32)} for _ in range(4)]
TEXT = """g (float[1, 8, 6, 6] x) => (int64[n, 3] chosen, float[1, 9, 16] raw) {
    [a] c = Conv (x, w) [f] d = Reshape (c, shape) [t] raw = Transpose <perm = [0, 2, 1]> (d)
    [s] scores = Sigmoid (d) [b] boxes = Relu (raw)
    [cut] e = Slice (boxes, zero, four, two)
    [n] chosen = NonMaxSuppression (e, scores, most, iou) }"""


def detector() -> onnx.ModelProto:
    one = {"zero": [0], "four": [4], "two": [2], "most": [5]}
    constants = {name: np.array(value, np.int64) for name, value in one.items()}
    return build(
        TEXT, w=weights(16, 8, 2, 2, low=-0.2, high=0.2), shape=np.array([1, 16, 25]), iou=np.array([0.5], np.float32),
        **constants,
    )  # fmt: skip


def fitting() -> onnx.ModelProto:
    model = detector()
    model.graph.output[1].type.tensor_type.shape.dim[1].dim_value = 25
    return model


def test_what_it_read_are_outputs_now() -> None:
    proto = fitting()
    model = io.load(proto)
    said = drop_tail(model)
    after = io.to_proto(model)
    onnx.checker.check_model(after)
    assert [value.name for value in after.graph.output] == ["raw", "scores", "e"]
    assert [value.name for value in after.graph.input] == ["x"]
    assert "iou" not in {t.name for t in after.graph.initializer}
    assert said == (
        "--drop-tail: 1 nodes from NonMaxSuppression 'n' on were removed; the model gives 'raw', 'scores', 'e' instead "
        "of 'chosen'"
    )
    before = build(TEXT.replace("int64[n, 3] chosen, ", "float[a, b, c] e, float[d, k, f] scores, "))
    del before.graph.node[-1]
    before.graph.initializer.extend(proto.graph.initializer)
    want, got = (run(each.SerializeToString(), FEEDS[0]) for each in (before, after))
    for name, array in got.items():
        np.testing.assert_array_equal(array, want[name])


def test_a_second_run_finds_nothing() -> None:
    model = io.load(fitting())
    drop_tail(model)
    with pytest.raises(RecipeError, match="--drop-tail: there is no post-processing in this model"):
        drop_tail(model)


def test_what_a_body_reads_goes_with_it() -> None:
    text = """g (float[2, 3] x, bool c) => (float[2, 3] y) {
        h = Exp (x) k = Neg (h)
        [i] m = If (c) <then_branch = t () => (float[2, 3] p) { p = Abs (k) },
                        else_branch = e () => (float[2, 3] q) { q = Identity (h) }>
        y = Sqrt (m) }"""
    model = io.load(build(text))
    assert "2 nodes from If 'i' on were removed" in drop_tail(model)
    assert [value.name for value in model.graph.outputs] == ["h", "k"]
    assert [value.name for value in model.graph.inputs] == ["x", "c"]


def test_nothing_would_be_left() -> None:
    model = io.load(build("g (float[2, 3] x) => (int64[2, n] y) { [z] y = NonZero (x) }"))
    with pytest.raises(RecipeError, match="--drop-tail: nothing is left in front of NonZero 'z'"):
        drop_tail(model)


def test_a_model_without_its_tail_is_quantized_and_compared() -> None:
    result = onnxq.quantize(fitting(), target="qnn", preset="w8a8", calibration=FEEDS, drop_tail=True, benchmark=False)
    assert result.model is not None
    assert [value.name for value in result.model.graph.output] == ["raw", "scores", "e"]
    assert result.sqnr_db is not None
    assert result.sqnr_db > 25
    assert any(line.startswith("--drop-tail: ") for line in result.warnings)


def test_the_command(tmp_path: Path) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "q.onnx"
    onnx.save(fitting(), path)
    np.savez(tmp_path / "c.npz", x=np.concatenate([feed["x"] for feed in FEEDS]))
    command = ["quantize", path, "-o", out, "-p", "w8a8", "-c", tmp_path / "c.npz", "--include", "*", "--drop-tail"]
    done = CliRunner().invoke(app, [str(word) for word in command], prog_name="onnxq")
    assert done.exit_code == 0, done.output
    assert [value.name for value in onnx.load(out).graph.output] == ["raw", "scores", "e"]
    plain = tmp_path / "plain.onnx"
    onnx.save(build("g (float[2, 3] x) => (float[2, 3] y) { y = Exp (x) }"), plain)
    done = CliRunner().invoke(app, ["quantize", str(plain), "-p", "w8", "--drop-tail"], prog_name="onnxq")
    assert done.exit_code == 2
    assert not list(tmp_path.glob("plain.*.onnx"))
