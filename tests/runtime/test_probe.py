from __future__ import annotations

import numpy as np
import pytest

from onnxq.errors import ModelError
from onnxq.graph.files import io
from onnxq.runtime.probe import ValueInfo, probe

FLOAT = np.dtype(np.float32)


def test_every_value_has_type_and_shape(make):
    model = make("chain")
    before = io.to_bytes(model)
    found = probe(model, {"x": np.ones((3, 4), np.float32)})
    info = ValueInfo(FLOAT, (3, 4))
    assert found == {"x": info, "r": info, "e": info, "n": ValueInfo(np.dtype(np.int64), (2,)), "y": info}
    assert io.to_bytes(model) == before


def test_wrong_shapes_in_the_file_do_not_matter(make):
    model = make("chain")
    value = next(iter(model.graph)).outputs[0]
    import onnx_ir as ir

    value.shape, value.type = ir.Shape([7, 7, 7]), ir.TensorType(ir.DataType.INT8)
    assert probe(model, {"x": np.ones((3, 4), np.float32)})["r"] == ValueInfo(FLOAT, (3, 4))


def test_sequences_and_bodies_that_did_not_run_are_left_out(make):
    found = probe(make("sequence"), {"x": np.ones((1, 4), np.float32)})
    assert set(found) == {"x", "r", "i", "y"}
    found = probe(make("branch"), {"x": np.ones((1, 4), np.float32), "flag": np.array(True)})
    assert set(found) == {"x", "flag", "r", "y", "p"}


def test_values_that_cannot_be_outputs_are_dropped(make, monkeypatch):
    import onnxq.runtime.probe as room

    def fails_on_q(model, names, feed, threads):
        if "q" in names:
            raise ModelError("model: q cannot be an output")
        return dict.fromkeys(names)

    monkeypatch.setattr(room, "_run", fails_on_q)
    assert set(room.probe(make("sequence"), {"x": np.ones((1, 4), np.float32)})) == {"x", "r", "i", "y"}


def test_a_model_that_does_not_run_is_an_error(make):
    with pytest.raises(ModelError, match=r"dimension mismatch"):
        probe(make("square"), {"x": np.ones((2, 3), np.float32)})
