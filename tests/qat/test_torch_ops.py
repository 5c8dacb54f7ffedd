"""Each torch function of an ONNX operator, against ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from onnxq.graph.files import io
from onnxq.graph.views.plain_graph import plain_graph

pytestmark = pytest.mark.torch

RNG = np.random.default_rng(11)


def real(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return np.abs(real(*shape)) + 0.1


def whole(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@dataclass
class Case:
    op_type: str
    inputs: list[np.ndarray | None]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 18
    outputs: int = 1
    domain: str = ""
    fed: int = 1
    """How many of the inputs, from the first on, are fed; the others are constants."""


def cases() -> list[Case]:
    x = real(2, 6, 5, 7)
    one = [
        Case(name, [x])
        for name in "Relu Sigmoid Tanh Exp Neg Abs Erf Floor Ceil Round Sign Sin Cos Tan Atan Sinh Cosh Asinh "
        "Softplus Softsign Mish Identity HardSwish HardSigmoid LeakyRelu Elu Celu Selu ThresholdedRelu Reciprocal "
        "Shape Size GlobalAveragePool GlobalMaxPool IsNaN NonZero Flatten Transpose Softmax LogSoftmax".split()
    ]
    reduced = [
        Case(f"Reduce{name}", [positive(2, 3, 4), whole(1)], {"keepdims": keep})
        for name in "Max Min Mean Sum Prod L1 L2 SumSquare LogSum LogSumExp".split()
        for keep in (0, 1)
    ]
    two = [Case(name, [real(2, 3, 4), real(3, 1)], fed=2) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min")]
    compared = [
        Case(name, [RNG.integers(0, 3, (2, 3)), RNG.integers(0, 3, (2, 3))], fed=2)
        for name in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")
    ]
    logical = [Case(name, [real(2, 3) > 0, real(2, 3) > 0], fed=2) for name in ("And", "Or", "Xor")]
    image = real(2, 4, 9, 8)
    return [
        *one, *reduced, *two, *compared, *logical,
        Case("Log", [positive(3)]), Case("Sqrt", [positive(3)]), Case("Acosh", [positive(3) + 1]),
        Case("Asin", [np.tanh(real(5))]), Case("Acos", [np.tanh(real(5))]), Case("Atanh", [np.tanh(real(5))]),
        Case("Not", [real(4) > 0]), Case("IsInf", [np.array([1, np.inf, -np.inf], np.float32)]),
        Case("Pow", [positive(2, 3), np.float32(2)]), Case("Pow", [positive(2, 3), real(3)]),
        Case("Div", [whole(-7, 7, 5), whole(2, -2, 3)], fed=2), Case("Mod", [whole(-7, 7, 5), whole(2, -2, 3)], fed=2),
        Case("Mod", [real(4), real(4)], {"fmod": 1}, fed=2), Case("PRelu", [x, real(6, 1, 1)]),
        Case("Clip", [x, np.float32(-0.5), np.float32(0.5)]), Case("Clip", [x, None, np.float32(0.5)]),
        Case("Clip", [x], {"min": -0.5, "max": 0.5}, opset=10), Case("Sum", [x, x, x], fed=3),
        Case("Mean", [x, x], fed=2), Case("Where", [real(2, 1) > 0, real(2, 3), real(3)], fed=3),
        Case("Gelu", [x], opset=20), Case("Gelu", [x], {"approximate": "tanh"}, opset=20),
        Case("Cast", [x * 3], {"to": 7}), Case("Cast", [x * 3], {"to": 9}), Case("Cast", [whole(3, -2)], {"to": 1}),
        Case("Shrink", [x], {"bias": 0.1, "lambd": 0.3}),
        Case("Reshape", [x, whole(0, -1, 7)]), Case("Squeeze", [real(1, 3, 1), whole(0)]),
        Case("Squeeze", [real(1, 3, 1)]), Case("Unsqueeze", [real(3, 4), whole(0, 3)]),
        Case("Unsqueeze", [real(3, 4)], {"axes": [0, -1]}, opset=11), Case("Flatten", [x], {"axis": -1}),
        Case("Slice", [x, whole(1, -3), whole(4, 2**62), whole(1, 3), whole(2, 1)]),
        Case("Slice", [x, whole(-1), whole(-(2**63)), whole(2), whole(-2)]),
        Case("Slice", [x], {"starts": [1], "ends": [-1], "axes": [3]}, opset=9),
        Case("Split", [x, whole(2, 4)], {"axis": 1}, outputs=2),
        Case("Split", [x], {"axis": 3, "num_outputs": 3}, outputs=3),
        Case("Gather", [x, np.array([[0, -1], [2, 1]])], {"axis": 1}), Case("Gather", [x, np.array(1)], {"axis": -1}),
        Case("Gather", [real(4), np.array(-1)]),
        Case("GatherElements", [real(3, 4), np.array([[0, -1, 2, 1]])], {"axis": 0}),
        Case("GatherND", [real(3, 4), np.array([[0, 1], [2, 3]])]), Case("Expand", [real(3, 1), whole(2, 1, 4)]),
        Case("Tile", [real(2, 3), whole(2, 2)]), Case("DepthToSpace", [real(1, 8, 2, 3)], {"blocksize": 2}),
        Case("DepthToSpace", [real(1, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}),
        Case("SpaceToDepth", [real(1, 2, 4, 6)], {"blocksize": 2}),
        Case("Pad", [x, whole(0, 0, 1, 2, 0, 0, 0, 3), np.float32(1.5)]),
        Case("Pad", [x, whole(1, 2, 3, 0), None, whole(2, 3)], {"mode": "reflect"}),
        Case("Pad", [x, whole(0, 0, 1, -2, 0, 0, 0, 1)], {"mode": "edge"}),
        Case("Pad", [x], {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "value": 0.5}, opset=10),
        Case("Shape", [x], {"start": 1, "end": -1}), Case("Range", [whole(2)[0], whole(9)[0], whole(3)[0]]),
        Case("ConstantOfShape", [whole(2, 3)], {"value": numpy_helper.from_array(np.array([2], np.int64))}),
        Case("Trilu", [real(4, 4), np.array(1)], {"upper": 1}), Case("Trilu", [real(4, 5)], {"upper": 0}),
        Case("OneHot", [whole(0, 2, -1), whole(3), real(2)]), Case("Concat", [x, x], {"axis": -2}, fed=2),
        Case("ScatterND", [real(4, 3), np.array([[1], [3]]), real(2, 3)]),
        Case("ScatterElements", [real(3, 3), np.array([[1, 0, 2]]), real(1, 3)]),
        Case("Conv", [image, real(6, 2, 3, 2), real(6)], {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1]}),
        Case("Conv", [image, real(6, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        Case("Conv", [image, real(6, 4, 2, 2)], {"auto_pad": "SAME_LOWER"}),
        Case("Conv", [real(1, 4, 9), real(3, 4, 3)], {"dilations": [2]}),
        Case("ConvTranspose", [image, real(4, 3, 3, 3), real(6)],
             {"group": 2, "strides": [2, 2], "pads": [1, 0, 0, 1], "output_padding": [1, 0]}),
        Case("Gemm", [real(3, 4), real(5, 4), real(5)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
        Case("Gemm", [real(4, 3), real(4, 5)], {"transA": 1}), Case("MatMul", [real(2, 3, 4), real(4, 5)]),
        Case("Einsum", [real(2, 3, 4), real(2, 5, 4)], {"equation": "bij,bkj->bik"}, fed=2),
        Case("MaxPool", [image], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
        Case("MaxPool", [image], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        Case("MaxPool", [image], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        Case("AveragePool", [image], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, opset=21),
        Case("AveragePool", [image], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "count_include_pad": 0}),
        Case("AveragePool", [image], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1}),
        Case("BatchNormalization", [image, real(4), real(4), real(4), positive(4)]),
        Case("LayerNormalization", [x, real(5, 7), real(5, 7)], {"axis": -2}),
        Case("InstanceNormalization", [image, real(4), real(4)]), Case("LRN", [image], {"size": 3}),
        Case("GroupNormalization", [image, real(4), real(4)], {"num_groups": 2}, opset=21),
        Case("Softmax", [x], {"axis": 1}), Case("Softmax", [x], {"axis": 2}, opset=11),
        Case("Resize", [image, None, np.array([1, 1, 2, 3], np.float32)], {"mode": "nearest"}),
        Case("Resize", [image, None, None, whole(2, 4, 5, 13)], {"mode": "linear"}),
        Case("Resize", [image, None, None, whole(2, 4, 18, 5)],
             {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
        Case("Resize", [image, None, np.array([1, 1, 1.5, 0.5], np.float32)],
             {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
        Case("ArgMax", [RNG.integers(0, 3, (4, 5)).astype(np.float32)], {"axis": 1}),
        Case("ArgMin", [RNG.integers(0, 3, (4, 5)).astype(np.float32)], {"axis": 0, "keepdims": 0}),
        Case("TopK", [real(3, 6), whole(2)], {"axis": 1}, outputs=2),
        Case("CumSum", [real(3, 4), np.array(1)]), Case("CumSum", [real(3, 4), np.array(0)], {"reverse": 1}),
        *recurrences(),
        Case("DynamicQuantizeLinear", [real(4, 5)], outputs=3),
        Case("BiasGelu", [real(3, 4), real(4)], domain="com.microsoft"),
        Case("FastGelu", [real(3, 4), real(4)], domain="com.microsoft"),
        Case("QuickGelu", [real(3, 4)], domain="com.microsoft"),
        Case("FusedMatMul", [real(2, 3, 4), real(2, 5, 4)], {"transB": 1, "alpha": 0.25}, domain="com.microsoft"),
        Case("SkipLayerNormalization", [real(2, 3, 4), real(2, 3, 4), real(4), real(4), real(4)],
             {"epsilon": 1e-5}, domain="com.microsoft"),
    ]  # fmt: skip


def recurrences() -> list[Case]:
    x, hidden, lengths = real(5, 2, 3), 4, np.array([5, 3], np.int32)
    found = []
    for op_type, gates, outputs in (("LSTM", 4, 3), ("GRU", 3, 2), ("RNN", 1, 2)):
        for directions, direction in ((1, "forward"), (1, "reverse"), (2, "bidirectional")):
            weights = [real(directions, gates * hidden, n) for n in (3, hidden)]
            bias = real(directions, 2 * gates * hidden)
            attributes = {"hidden_size": hidden, "direction": direction}
            found.append(Case(op_type, [x, *weights, bias, lengths], attributes, outputs=outputs))
    weights = [real(1, 3 * hidden, n) for n in (3, hidden)]
    found.append(Case("GRU", [x, *weights], {"hidden_size": hidden, "linear_before_reset": 1}, outputs=2))
    start = [real(1, 2, hidden) for _ in range(2)]
    lstm = [x, real(1, 16, 3), real(1, 16, 4), None, None, *start, real(1, 12)]
    return [*found, Case("LSTM", lstm, {"hidden_size": hidden}, outputs=3)]


def model_of(case: Case) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    names = ["" if array is None else f"in{i}" for i, array in enumerate(case.inputs)]
    arrays = {name: np.asarray(array) for name, array in zip(names, case.inputs, strict=True) if array is not None}
    fed = {f"in{i}": arrays[f"in{i}"] for i in range(case.fed)}
    node = helper.make_node(
        case.op_type, names, [f"out{i}" for i in range(case.outputs)], domain=case.domain, **case.attributes
    )
    graph = helper.make_graph(
        [node],
        "net",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in fed.items()],
        [helper.make_empty_tensor_value_info(name) for name in node.output],
        [numpy_helper.from_array(array, name) for name, array in arrays.items() if name not in fed],
    )
    opsets = [helper.make_opsetid("", case.opset)]
    if case.domain:
        opsets.append(helper.make_opsetid(case.domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=9), fed


CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{case.op_type}" for i, case in enumerate(CASES)])
def test_operator_is_that_of_the_runtime(case: Case) -> None:
    import torch

    from onnxq.qat.graph_module import GraphModule
    from onnxq.qat.parameters import as_tensor

    model, feed = model_of(case)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    wanted = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feed)
    module = GraphModule(plain_graph(io.load(model)))
    with torch.no_grad():
        got = module({name: as_tensor(array) for name, array in feed.items()})
    for one, other in zip(wanted, got.values(), strict=True):
        assert one.shape == tuple(other.shape)
        np.testing.assert_allclose(other.numpy(), one, rtol=2e-4, atol=2e-5)


def test_what_has_no_function_is_said() -> None:
    from onnxq.errors import ModelError
    from onnxq.qat.graph_module import GraphModule

    model, _ = model_of(Case("Hardmax", [real(2, 3)]))
    module = GraphModule(plain_graph(io.load(model)))
    assert [node.op_type for node in module.unsupported] == ["Hardmax"]
    with pytest.raises(ModelError, match="Hardmax 'Hardmax_0': has no torch function"):
        module({})


def test_what_fails_is_said() -> None:
    import torch

    from onnxq.qat.graph_module import GraphModule
    from onnxq.qat.torch_ops.call import NodeError

    model, _ = model_of(Case("MatMul", [real(2, 3), real(3, 4)]))
    module = GraphModule(plain_graph(io.load(model)))
    with pytest.raises(NodeError, match="MatMul 'MatMul_0': PyTorch cannot run it: mat1 and mat2 shapes") as caught:
        module({name: torch.zeros(2, 5) for name in module.graph.inputs})
    assert caught.value.node is module.graph.nodes[0]


def test_the_table_of_operators_is_covered() -> None:
    from onnxq.graph.reading.ops import OPS
    from onnxq.qat.torch_ops.registry import OPERATORS

    assert {("", name) for name in OPS} <= set(OPERATORS)
