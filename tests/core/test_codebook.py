"""Tables of reals and scales of scales."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from onnxq.core.codebook import (
    FP4,
    NF4,
    CodebookTensor,
    decode,
)
from onnxq.core.spec import PerAxis, PerBlock, PerTensor
from onnxq.errors import RecipeError


@pytest.mark.parametrize(("table", "quant_type"), [(FP4, 0), (NF4, 1)], ids=["fp4", "nf4"])
def test_the_tables_are_those_that_onnxruntime_reads(table: np.ndarray, quant_type: int) -> None:
    codes = np.arange(16, dtype=np.uint8)
    packed = codes[0::2] << 4 | codes[1::2]
    node = helper.make_node(
        "MatMulBnb4", ["x", "b", "s"], ["y"], domain="com.microsoft", K=16, N=1, block_size=16, quant_type=quant_type
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [16, 1])],
        [helper.make_tensor("b", TensorProto.UINT8, [8], packed), helper.make_tensor("s", TensorProto.FLOAT, [1], [1])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (column,) = session.run(None, {"x": np.eye(16, dtype=np.float32)})
    np.testing.assert_array_equal(column[:, 0], table)


def test_the_tables_are_the_published_ones() -> None:
    assert NF4.size == FP4.size == 16
    assert (np.diff(NF4) > 0).all()
    assert NF4[[0, 7, 15]].tolist() == [-1, 0, 1]
    assert sorted(set(np.abs(FP4 * 12).round(4).tolist())) == [0, 0.0625, 2, 3, 4, 6, 8, 12]
    with pytest.raises(ValueError, match="read-only"):
        NF4[0] = 0


def test_decoding_with_one_table_and_with_a_table_for_each_group() -> None:
    indices = np.array([[0, 1, 2, 1, 0], [2, 2, 1, 0, 1]], np.uint8)
    table = np.array([-1.0, 0.5, 2.0], np.float32)
    scale = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    shared = CodebookTensor(indices, table, scale, PerBlock(1, 2), 4)
    assert decode(shared).tolist() == [[-1, 0.5, 4, 1, -3], [8, 8, 2.5, -5, 3]]
    tables = np.stack([table, table * 10])
    rows = CodebookTensor(indices, tables, np.ones((2, 1), np.float32), PerAxis(0), 4)
    assert decode(rows).tolist() == [[-1, 0.5, 2, 0.5, -1], [20, 20, 5, -10, 5]]
    blocks = CodebookTensor(indices, np.arange(18, dtype=np.float32).reshape(6, 3), scale * 0 + 1, PerBlock(1, 2), 4)
    assert decode(blocks).tolist() == [[0, 1, 5, 4, 6], [11, 11, 13, 12, 16]]


def test_what_does_not_fit_is_said() -> None:
    indices, one = np.zeros((2, 4), np.uint8), np.ones((1, 1), np.float32)
    with pytest.raises(RecipeError, match=r"the scale's must be \(2, 2\)"):
        decode(CodebookTensor(indices, NF4, one, PerBlock(1, 2), 4))
    with pytest.raises(RecipeError, match="3 tables for 1 groups"):
        decode(CodebookTensor(indices, np.ones((3, 16), np.float32), one, PerTensor(), 4))
