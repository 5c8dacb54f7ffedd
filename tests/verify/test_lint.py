"""Twelve models that are broken on purpose, one a rule; what is found, what is made right, and nothing on our own."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import onnx
import pytest
from click.testing import Result
from hypothesis import strategies as st

import onnxq
from onnxq.errors import RecipeError, TargetError
from onnxq.graph.files import io
from onnxq.verify.lint.rules import RULES
from tests.graph.build import build, run, weights
from tests.random_graphs import RandomGraph

RNG = np.random.default_rng(7)
FEEDS = [{"x": RNG.standard_normal((1, 8, 6, 6)).astype(np.float32)} for _ in range(4)]
NET = """g (float[1, 8, 6, 6] x) => (float[1, 4, 6, 6] y) {
    [a] c = Conv (x, w, b) [r] d = Relu (c) [s] e = Conv (d, v, f) [j] h = Add (e, d) [t] y = Conv (h, u) }"""


def net() -> onnx.ModelProto:
    return build(
        NET,
        w=weights(8, 8, 1, 1),
        b=weights(8),
        v=weights(8, 8, 1, 1, seed=1),
        f=weights(8, seed=2),
        u=weights(4, 8, 1, 1),
    )


def written(target: str, preset: str = "w8a8", **options: Any) -> onnx.ModelProto:
    result = onnxq.quantize(net(), target=target, preset=preset, calibration=FEEDS, benchmark=False, **options)
    assert result.model is not None
    return result.model


def node_named(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def writer(model: onnx.ModelProto, value: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if value in node.output)


def content(model: onnx.ModelProto, name: str) -> np.ndarray:
    return onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def put(model: onnx.ModelProto, name: str, array: np.ndarray) -> str:
    model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return name


def int8_activations() -> onnx.ModelProto:
    return written("tensorrt")


def a_zero_point() -> onnx.ModelProto:
    model = written("tensorrt")
    zero = put(model, "off", np.array(5, np.int8))
    scale = node_named(model, "x_QuantizeLinear").input[1]
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[1] == scale:
            node.input[2] = zero
    return model


def unsigned_weights() -> onnx.ModelProto:
    model = written("qnn")
    dq = writer(model, node_named(model, "a").input[1])
    dq.input[0] = put(model, "u8", (content(model, dq.input[0]).astype(np.int16) + 128).astype(np.uint8))
    dq.input[2] = put(model, "z8", np.full(content(model, dq.input[1]).shape, 128, np.uint8))
    return model


def weights_off_zero() -> onnx.ModelProto:
    model = written("qnn")
    dq = writer(model, node_named(model, "s").input[1])
    dq.input[2] = put(model, "off", np.full(content(model, dq.input[1]).shape, 3, np.int8))
    return model


def a_scale_a_channel() -> onnx.ModelProto:
    text = "g (float[1, 8] x) => (float[1, 8] y) { [a] y = MatMul (x, w) }"
    feeds = [{"x": RNG.standard_normal((1, 8)).astype(np.float32)} for _ in range(3)]
    result = onnxq.quantize(
        build(text, w=weights(8, 8)), target="qnn", preset="w8a8", calibration=feeds, benchmark=False
    )
    model = result.model
    assert model is not None
    dq = writer(model, node_named(model, "a").input[1])
    dq.input[1] = put(model, "scales", np.full(8, content(model, dq.input[1])))
    dq.input[2] = put(model, "zeros", np.zeros(8, np.int8))
    dq.attribute.append(onnx.helper.make_attribute("axis", 1))
    return model


def a_bias_on_integers() -> onnx.ModelProto:
    return _with_bias(written("tensorrt"))


def _with_bias(model: onnx.ModelProto) -> onnx.ModelProto:
    layer = node_named(model, "a")
    scale = np.float32(0.001)
    integers = np.round(content(model, layer.input[2]) / scale).astype(np.int32)
    dq = onnx.helper.make_node(
        "DequantizeLinear", [put(model, "bi", integers), put(model, "bs", scale)], ["bias_back"], name="bias_dq"
    )
    model.graph.node.insert(0, dq)
    layer.input[2] = "bias_back"
    return model


def a_bias_at_a_wrong_scale() -> onnx.ModelProto:
    model = written("qnn")
    dq = writer(model, node_named(model, "a").input[2])
    dq.input[1] = put(model, "wrong", content(model, dq.input[1]) * 3)
    return model


def a_float_output() -> onnx.ModelProto:
    """What only moves numbers, and gives them in float."""
    text = "g (float[1, 8, 6, 6] x) => (float[1, 288] y) { [a] c = Conv (x, w) [f] y = Flatten (c) }"
    result = onnxq.quantize(
        build(text, w=weights(8, 8, 1, 1)), target="qnn", preset="w8a8", calibration=FEEDS, benchmark=False
    )
    model = result.model
    assert model is not None
    flatten = node_named(model, "f")
    kept = [n for n in model.graph.node if flatten.output[0] not in n.input and "y" not in n.output]
    kept = [n for n in kept if not (n.op_type == "DequantizeLinear" and "y" in n.output)]
    flatten.output[0] = "y"
    del model.graph.node[:]
    model.graph.node.extend(n for n in kept if not (n is not flatten and n.name == "f"))
    return model


def an_add_with_one_float_input() -> onnx.ModelProto:
    model = written("tensorrt")
    add = node_named(model, "j")
    dq = writer(model, add.input[0])
    add.input[0] = writer(model, dq.input[0]).input[0]
    return model


def sixteen_bits_of_the_standard() -> onnx.ModelProto:
    model = written("qnn", "w8a16")
    for node in model.graph.node:
        node.domain = ""
    return model


def open_shapes() -> onnx.ModelProto:
    model = written("qnn")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return model


def one_constant_at_two_scales() -> onnx.ModelProto:
    model = written("qnn")
    first, second = (writer(model, node_named(model, name).input[1]) for name in ("a", "s"))
    second.input[0] = first.input[0]
    return model


def integer_operators() -> onnx.ModelProto:
    return written("cpu", format="qoperator")


def integers_for_a_gpu() -> onnx.ModelProto:
    return written("cpu")


def weights_that_saturate() -> onnx.ModelProto:
    return written("cpu")


BROKEN: dict[Callable[[], onnx.ModelProto], tuple[str, str, bool, bool]] = {
    int8_activations: ("qnn", "activation-type", True, False),
    a_zero_point: ("tensorrt", "activation-zero-point", True, True),
    unsigned_weights: ("qnn", "weight-type", True, True),
    weights_off_zero: ("qnn", "weight-zero-point", True, True),
    a_scale_a_channel: ("qnn", "weight-granularity", True, True),
    a_bias_on_integers: ("tensorrt", "bias", True, True),
    a_bias_at_a_wrong_scale: ("qnn", "bias", True, True),
    a_float_output: ("qnn", "placement", True, True),
    an_add_with_one_float_input: ("tensorrt", "placement", False, False),
    sixteen_bits_of_the_standard: ("qnn", "opset", True, True),
    open_shapes: ("qnn", "shapes", True, True),
    one_constant_at_two_scales: ("qnn", "shared-integers", True, True),
    integer_operators: ("openvino", "operators", True, False),
    integers_for_a_gpu: ("cuda", "integers", True, False),
    weights_that_saturate: ("cpu-avx2", "saturation", False, True),
}
"""Target, rule, whether the target refuses it, whether it can be made right."""


@pytest.mark.parametrize("broken", BROKEN, ids=lambda function: function.__name__)
def test_what_is_broken_is_found_and_made_right_where_that_can_be(
    broken: Callable[[], onnx.ModelProto], tmp_path: Path
) -> None:
    target, rule, refuses, fixable = BROKEN[broken]
    model = broken()
    before = model.SerializeToString()
    result = onnxq.lint(model, target=target)
    found = [finding for finding in result.findings if finding.rule == rule]
    assert found, result.summary()
    assert any(finding.refuses for finding in found) == refuses
    assert any(finding.fixable for finding in found) == fixable
    assert all(finding.why and finding.remedy and "\n" not in str(finding) for finding in result.findings)
    assert model.SerializeToString() == before
    out = tmp_path / "fixed.onnx"
    fixed = onnxq.lint(model, target=target, output=out, fix_dims=["batch=1"] if rule == "shapes" else [])
    left = [finding for finding in fixed.findings if finding.rule == rule]
    assert bool(left) != fixable, fixed.summary()
    if fixable:
        assert fixed.fixed[rule] > 0
        onnx.checker.check_model(onnx.load(out))
        if broken not in (one_constant_at_two_scales, open_shapes, sixteen_bits_of_the_standard):
            feed = FEEDS[0] if rule != "weight-granularity" else {"x": np.ones((1, 8), np.float32)}
            for left_, right in zip(run(before, feed).values(), run(out.read_bytes(), feed).values(), strict=True):
                assert np.abs(left_ - right).max() <= 0.2 * np.abs(left_).max()


def test_every_rule_is_broken_once() -> None:
    assert len(BROKEN) >= 12
    assert len({rule for _, rule, _, _ in BROKEN.values()}) >= len(RULES) - 1  # two rules speak of weights' types


WAYS = [
    ("cpu", "w8a8"), ("cpu-avx2", "w8a8"), ("arm", "w8a8"), ("qnn", "w8a8"), ("qnn", "w8a16"), ("qnn", "w4a16"),
    ("openvino", "w8a8"), ("openvino", "fp16"), ("tensorrt", "w8a8"), ("tensorrt", "fp16"), ("cuda", "fp16"),
    ("cuda", "w4"), ("web", "w8a8"), ("web", "w8"), ("web-gpu", "fp16"), ("web-gpu", "w8"),
]  # fmt: skip


@hypothesis.settings(max_examples=25)
@hypothesis.given(st.integers(0, 1 << 32), st.integers(1, 6), st.sampled_from(WAYS))
def test_nothing_is_found_in_any_network_that_is_written(seed: int, steps: int, way: tuple[str, str]) -> None:
    """But for nodes that could not be put on integers, and operator sets that could not be had, which is said."""
    graph = RandomGraph(random.Random(seed), steps)
    model, feeds, (target, preset) = graph.model(), graph.feeds(2), way
    if model is None:
        return
    sizes = {
        f"{dim.dim_param}={graph.inputs[value.name].shape[axis]}"
        for value in model.graph.input
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        if dim.dim_param
    }
    try:
        result = onnxq.quantize(
            model, target=target, preset=preset, calibration=feeds, fix_dims=sorted(sizes), benchmark=False, force=True
        )
    except RecipeError as error:
        assert "nothing in this model would be quantized" in str(error)
        return
    assert result.model is not None
    found = onnxq.lint(result.model, target=target).findings
    excused = {"placement"} if result.kept_float else set()
    excused |= {"opset"} if any("operator set" in line for line in result.warnings) else set()
    assert [str(finding) for finding in found if finding.rule not in excused] == []


def test_a_model_newer_than_the_target_reads_is_written_at_what_it_reads() -> None:
    model = net()
    model.opset_import[0].version, model.ir_version = 23, 11
    result = onnxq.quantize(model, target="tensorrt", preset="w8a8", calibration=FEEDS, benchmark=False)
    assert result.model is not None
    assert {entry.domain: entry.version for entry in result.model.opset_import}[""] == 21
    assert onnxq.lint(result.model, target="tensorrt").findings == []


def test_bounds_and_sizes_are_not_asked_to_be_on_integers() -> None:
    text = """g (float[1, 8, 6, 6] x) => (float[1, 8, 12, 12] y) {
        [a] c = Conv (x, w) [b] d = Clip (c, low, high) [r] y = Resize <mode = "nearest"> (d, , scales) }"""
    low, high, scales = (np.array(value, np.float32) for value in (-0.3, 0.4, [1, 1, 2, 2]))
    result = onnxq.quantize(
        build(text, w=weights(8, 8, 1, 1), low=low, high=high, scales=scales),
        target="qnn", preset="w8a8", calibration=FEEDS, benchmark=False,
    )  # fmt: skip
    assert result.model is not None
    assert onnxq.lint(result.model, target="qnn").findings == []


def test_a_dead_channel_has_a_bias_at_the_least_scale() -> None:
    w = weights(8, 8, 1, 1)
    w[3] = 0
    text = "g (float[1, 8, 6, 6] x) => (float[1, 8, 6, 6] y) { [a] y = Conv (x, w, b) }"
    result = onnxq.quantize(
        build(text, w=w * np.float32(1e-3), b=weights(8) * np.float32(1e-3)),
        target="cpu", preset="w8a8", calibration=FEEDS, benchmark=False, include=["*"],
    )  # fmt: skip
    model = result.model
    assert model is not None
    dq = writer(model, node_named(model, "a").input[1])
    scale = content(model, dq.input[1]).copy()
    scale[3] = np.finfo(np.float32).tiny
    dq.input[1] = put(model, "weight_scales", scale)
    bias = writer(model, node_named(model, "a").input[2])
    scale = content(model, bias.input[1]).copy()
    scale[3] = np.finfo(np.float32).tiny
    bias.input[1] = put(model, "bias_scales", scale)
    assert onnxq.lint(model, target="cpu").findings == []


def test_an_add_behind_what_float8_was_written_for_is_none_of_its() -> None:
    text = """g (float[1, 8, 6, 6] x) => (float[1, 8, 6, 6] y, float[1, 8, 6, 6] z) {
        [a] y = Conv (x, w) [r] c = Relu (x) [j] z = Add (x, c) }"""
    result = onnxq.quantize(
        build(text, opset=19, ir=9, w=weights(8, 8, 1, 1)),
        target="tensorrt", preset="fp8", calibration=FEEDS, benchmark=False,
    )  # fmt: skip
    assert result.model is not None
    assert onnxq.lint(result.model, target="tensorrt").findings == []


def test_a_recurrent_layer_keeps_its_weights_and_may_leave_its_sequence_out() -> None:
    text = """g (float[5, 1, 8] x) => (float[1, 1, 16] y) { [l] s, y = LSTM <hidden_size = 16> (x, w, r, b) }"""
    model = build(text, w=weights(1, 64, 8), r=weights(1, 64, 16), b=weights(1, 128))
    model.graph.node[0].output[0] = ""
    samples = [{"x": RNG.standard_normal((5, 1, 8)).astype(np.float32)} for _ in range(3)]
    result = onnxq.quantize(model, target="qnn", preset="w8a8", calibration=samples, benchmark=False)
    assert result.model is not None
    assert result.kept_float == []
    assert onnxq.lint(result.model, target="qnn").findings == []


def test_a_float_model_is_refused_by_an_npu_alone() -> None:
    assert onnxq.lint(net(), target="qnn").refused
    assert not onnxq.lint(net(), target="cpu").findings


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no target 'npu'"):
        onnxq.lint(net(), target="npu")
    with pytest.raises(RecipeError, match="is not NAME=N"):
        onnxq.lint(net(), target="qnn", fix_dims=["batch"])
    with pytest.raises(RecipeError, match="--engine-python: target tensorrt has no engine"):
        onnxq.lint(net(), target="tensorrt", engine_python="/nonexistent")
    assert io.load(net()) is not None


@pytest.mark.qnn
def test_the_simulator_is_asked_too() -> None:
    result = onnxq.lint(written("qnn"), target="qnn")
    assert result.engine is not None
    assert result.findings == []
    broken = onnxq.lint(net(), target="qnn")
    assert broken.refused


def test_the_command(tmp_path: Path, run_command: Callable[..., Result]) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    onnx.save(a_bias_on_integers(), path)
    done = run_command("lint", path, "--target", "tensorrt")
    assert done.exit_code == 1
    assert "Conv 'a': bias: its bias stands behind a DQ" in done.stdout
    done = run_command("lint", path, "--target", "tensorrt", "--fix", "-o", out)
    assert done.exit_code == 0, done.stdout
    assert "fixed bias 1 time" in done.stdout
    assert run_command("lint", out, "--target", "tensorrt", "--json").exit_code == 0
    for wrong in (["--fix"], ["-o", out], ["--fix-dim", "a=1"]):
        assert run_command("lint", path, "--target", "tensorrt", *wrong).exit_code == 2
    assert run_command("lint", path, "--target", "none").exit_code == 2
    assert run_command("lint", tmp_path / "none.onnx", "--target", "qnn").exit_code == 1


@pytest.fixture
def run_command() -> Callable[..., Result]:
    from click.testing import CliRunner

    from onnxq.cli._app import app

    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="onnxq")
