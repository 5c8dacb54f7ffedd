"""Small models for tests of graphs, and the check that every clean-up has to pass."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort

from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.files.checker import check_model
from onnxq.graph.prepare import PrepareReport, prepare
from onnxq.graph.walk import all_nodes

Array = np.ndarray[Any, Any]
NUMPY = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
NAMED = re.compile(r"\[(\w+)\] (\w+)\b(?=[\w, ]* = )")
ort.set_default_logger_severity(4)


def build(text: str, /, *, opset: int = 17, ir: int = 8, imports: str = "", **initializers: Array) -> onnx.ModelProto:
    """A model from the ONNX text form of a graph (and functions) and the contents of its initializers.

    ``[name] out = Op (...)`` names a node; older parsers do not know that form, so it is read here.
    """
    header = f'<ir_version: {ir}, opset_import: ["": {opset}{imports}]>\n'
    model = onnx.parser.parse_model(header + NAMED.sub(r"\2", text))
    named = NAMED.findall(text)
    for node in _nodes(model.graph):
        if named and node.output[0] == named[0][1]:
            node.name = named.pop(0)[0]
    assert not named
    for name, array in initializers.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g)


def weights(*shape: int, seed: int = 0, low: float = -1.0, high: float = 1.0) -> Array:
    return np.random.default_rng([seed, *shape]).uniform(low, high, shape).astype(np.float32)


def session(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def feeds_for(opened: ort.InferenceSession, dims: int = 2, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    feeds = {}
    for spec in opened.get_inputs():
        shape = [dim if isinstance(dim, int) else dims for dim in spec.shape]
        feeds[spec.name] = np.asarray(rng.normal(0, 2, shape)).astype(NUMPY[spec.type])
    return feeds


def run(model: bytes, feeds: dict[str, Array]) -> dict[str, Array]:
    opened = session(model)
    wanted = {spec.name for spec in opened.get_inputs()}
    values = opened.run(None, {name: array for name, array in feeds.items() if name in wanted})
    return {spec.name: value for spec, value in zip(opened.get_outputs(), values, strict=True)}


def same(left: dict[str, Array], right: dict[str, Array], rtol: float) -> None:
    assert list(left) == list(right)
    for name, array in left.items():
        assert array.dtype == right[name].dtype
        assert array.shape == right[name].shape
        scale = float(np.abs(array.astype(np.float64)).max(initial=0.0))
        np.testing.assert_allclose(right[name], array, rtol=rtol, atol=rtol * scale, err_msg=name)


def ops(model: Any) -> Counter[str]:
    return Counter(node.op_type for node in all_nodes(model.graph))


def prepared(
    proto: onnx.ModelProto, *, min_opset: int = 13, rtol: float = 1e-5, dims: int = 2
) -> tuple[Any, PrepareReport]:
    """Prepare a copy and check what holds for every model; returns the prepared model and the report.

    Outputs, names and order of inputs and outputs are kept; the source is not changed; the result is valid ONNX
    with unique names; a second run changes nothing.
    """
    before = proto.SerializeToString()
    model = io.load(proto)
    report = prepare(model, min_opset=min_opset)
    assert proto.SerializeToString() == before, "the source was changed"

    content = io.to_bytes(model)
    check_model(content)
    constants = {tensor.name for tensor in proto.graph.initializer}
    assert [v.name for v in model.graph.inputs] == [v.name for v in proto.graph.input if v.name not in constants]
    assert [v.name for v in model.graph.outputs] == [v.name for v in proto.graph.output]
    values = [value.name for value in walk.all_values(model.graph) if value.name]
    nodes = [node.name for node in all_nodes(model.graph)]
    assert max(Counter(values).values()) == 1, "value names are not unique"
    assert max(Counter(nodes).values(), default=1) == 1, "node names are not unique"
    assert all(nodes)

    opened = session(before)
    for seed in (0, 1):
        feeds = feeds_for(opened, dims, seed)
        same(run(before, feeds), run(content, feeds), rtol)

    prepare(model, min_opset=min_opset)
    assert io.to_bytes(model) == content, "a second run changed something"
    return model, report
