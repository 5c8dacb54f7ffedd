from __future__ import annotations

import gc
import tempfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import OnnxqError
from onnxq.graph.files import io
from onnxq.graph.views.outputs import value_names, with_outputs
from onnxq.runtime import layout
from onnxq.runtime.calibrate import Run, calibrate
from onnxq.runtime.layout import unordered_session
from onnxq.runtime.session import session_of
from tests.graph.build import build, weights


def convolutions():
    """Convolutions of 16, 24, 3 and 32 channels, an addition, and an end that the runtime wants in NCHW."""
    generator = np.random.default_rng(0)
    nodes, weights = [], []
    for index, (inputs, outputs) in enumerate([(3, 16), (16, 24), (24, 3), (3, 32), (32, 32)]):
        kernel = generator.standard_normal((outputs, inputs, 3, 3)).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"w{index}"))
        source = f"r{index - 1}" if index else "x"
        nodes.append(helper.make_node("Conv", [source, f"w{index}"], [f"c{index}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
    nodes.append(helper.make_node("Add", ["r3", "r4"], ["sum"]))
    nodes.append(helper.make_node("Flatten", ["sum"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "M"])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return io.load(model)


def feed(batch=2, height=5, width=7, seed=1):
    return {"x": np.random.default_rng(seed).standard_normal((batch, 3, height, width)).astype(np.float32)}


def test_every_output_has_the_same_elements_and_shape():
    model = with_outputs(convolutions(), value_names(convolutions())).model
    names = [value.name for value in model.graph.outputs]
    usual, fast = session_of(model, threads=1), unordered_session(model, threads=1)
    assert fast.output_names == usual.output_names
    for sample in (feed(), feed(1, 8, 3)):
        for name, a, b in zip(names, usual.run(sample, names), fast.run(sample, names), strict=True):
            assert a.shape == b.shape, name
            np.testing.assert_array_equal(np.sort(a, axis=None), np.sort(b, axis=None), name)


def test_statistics_are_those_of_the_usual_session(monkeypatch):
    model, samples = convolutions(), [feed(), feed(3, 6, 6, seed=2)]
    names = ["x", *value_names(model)]
    images = ["x", "r0", "r3", "r4", "sum"]
    fast = calibrate(model, names, samples, Run(threads=1), image_means=images)
    monkeypatch.setattr(layout, "_MOST_WEIGHTS", 0)
    usual = calibrate(model, names, samples, Run(threads=1), image_means=images)
    assert sorted(fast.peaks) == [f"c{index}" for index in range(5)]
    assert fast.peaks == usual.peaks
    assert sorted(fast.means) == sorted(images)
    for name in images:
        np.testing.assert_allclose(fast.means[name].mean, usual.means[name].mean, atol=1e-6)
    assert list(fast) == list(usual) == sorted(names)
    for name in names:
        assert fast[name] == usual[name]  # arrays this small are counted whole


@pytest.mark.parametrize("error", [OnnxqError("full"), OSError(28, "No space left on device")])
def test_the_usual_session_is_the_way_out(monkeypatch, error):
    def fails(path):
        raise error

    monkeypatch.setattr(layout, "without_reorders", fails)
    assert unordered_session(convolutions(), threads=1).run(feed())[0].shape == (2, 32 * 35)


def test_the_temporary_folder_goes_with_the_session(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    session = unordered_session(convolutions(), threads=1)
    assert len(list(tmp_path.iterdir())) == 1
    del session
    gc.collect()
    assert list(tmp_path.iterdir()) == []

    def fails(path):
        raise KeyboardInterrupt("stop")

    monkeypatch.setattr(layout, "without_reorders", fails)
    with pytest.raises(KeyboardInterrupt, match=r"stop"):
        unordered_session(convolutions(), threads=1)
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_a_body_reads_is_put_in_order():
    text = """g (float[1,16,9,9] x, bool c) => (float[1,16,9,9] y) { [conv] a = Conv <pads = [1,1,1,1]> (x, w)
        y = If (c) <then_branch = t () => (float[1,16,9,9] p) { p = Mul (a, s) },
        else_branch = e () => (float[1,16,9,9] q) { q = Neg (a) }> }"""
    scale = 10.0 ** np.arange(16, dtype=np.float32).reshape(1, 16, 1, 1) / 1e8
    proto = build(text, w=weights(16, 16, 3, 3), s=scale)
    feed = {"x": np.random.default_rng(0).normal(size=(1, 16, 9, 9)).astype(np.float32), "c": np.array(True)}
    model = io.load(proto)
    found = calibrate(model, ["a", "p"], [feed], Run(threads=1))
    straight = session_of(model, optimize=False, threads=1).run(feed)[0]
    assert found["p"].high == pytest.approx(float(straight.max()), rel=1e-4)
    assert found["p"].low == pytest.approx(float(straight.min()), rel=1e-4)
