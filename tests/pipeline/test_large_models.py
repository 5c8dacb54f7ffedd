"""Models that do not fit in memory: a layer at a time, the same result as otherwise, and nothing left behind."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import onnxq
from benchmarks.big_models import write_llama
from onnxq.algorithms import rounding_error
from onnxq.algorithms.rtn import rtn
from onnxq.core.dtypes import QType
from onnxq.core.mapped import Spill, expect, forget, map_of
from onnxq.core.spec import PerBlock, TensorSpec
from onnxq.errors import OnnxqError, VerificationError
from onnxq.graph.files import external, io, saving, whole_file
from onnxq.pipeline.large import layer_by_layer, pieces
from tests.runtime_version import TWO_BITS

TINY = 1e-6
"""GiB that are too few for any model."""


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A decoder of 13 MB with its weights beside it."""
    path = tmp_path / "in" / "llama.onnx"
    path.parent.mkdir()
    write_llama(path, layers=2, width=256, inner=512, words=1024)
    return path


def weights_of(path: Path) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


@pytest.mark.parametrize(
    "preset", ["w4", "w8", pytest.param("w2", marks=TWO_BITS), "nf4", "w8a8-dynamic", "w8a8-token"]
)
def test_a_layer_at_a_time_gives_the_same_model(llama: Path, tmp_path: Path, preset: str) -> None:
    whole, part = tmp_path / "whole.onnx", tmp_path / "part.onnx"
    first = onnxq.quantize(llama, whole, preset=preset, benchmark=False)
    result = onnxq.quantize(llama, part, preset=preset, benchmark=False, max_memory=TINY)
    assert onnx.load(whole) == onnx.load(part)
    errors = [{layer["node"]: layer["error_db"] for layer in each.weights} for each in (result, first)]
    assert errors[0] == errors[1] and (errors[0] or preset.startswith("w8a8"))
    assert any("layers were compared with it one by one" in line for line in result.warnings)
    assert any("the finished model was run once" in line for line in result.warnings)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "part.onnx", "whole.onnx"]


def test_memory_is_that_of_the_largest_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "llama.onnx"
    size = write_llama(path, layers=6, width=512, inner=1536, words=2048)
    assert size > 64e6
    monkeypatch.setattr(external, "READ_UP_TO", 0)  # as files above 512 MB, it is mapped
    monkeypatch.setattr("onnxq.pipeline.float_model.READ_UP_TO", 0)
    tracemalloc.start()
    try:
        onnxq.quantize(path, tmp_path / "out.onnx", preset="w4", max_memory=TINY)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.35 * size  # what numpy holds at a time: slabs and one packed layer, and modules loaded meanwhile


def test_float_models_are_not_run_as_a_whole(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a whole model was made bytes, or compared")

    monkeypatch.setattr(io, "to_bytes", refuse)
    monkeypatch.setattr("onnxq.pipeline.gate.compare_all", refuse)
    monkeypatch.setattr("onnxq.pipeline.confirm.session_of", refuse)
    monkeypatch.setattr("onnxq.pipeline.float_model.READ_UP_TO", 0)
    result = onnxq.quantize(llama, tmp_path / "out.onnx", preset="w4", max_memory=TINY)
    assert result.sqnr_db is None and result.latency_ratio is None
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    assert np.isfinite(session.run(None, {"input_ids": np.arange(8)[None]})[0]).all()


def test_what_was_packed_is_not_read_again_for_its_error(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a weight was compared once more after it was forgotten")

    monkeypatch.setattr("onnxq.plan.weights.weight_errors.weight_error_db", refuse)
    for preset in ("w4", "w8", "w8a8-dynamic"):
        onnxq.quantize(llama, tmp_path / "out.onnx", preset=preset, max_memory=TINY, force=True)


def test_a_layer_that_is_noise_is_not_written(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_by_layer, "sqnr_db", lambda real, rounded: -1.0)
    with pytest.raises(VerificationError, match="nothing but noise"):
        onnxq.quantize(llama, tmp_path / "out.onnx", preset="w4", max_memory=TINY)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_a_full_disk_is_one_line(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Spill, array: np.ndarray) -> np.ndarray:
        raise self._failed(OSError(28, "No space left on device"))

    monkeypatch.setattr(Spill, "keep", full)
    with pytest.raises(OnnxqError, match="No space left on device; nothing was written; free space"):
        onnxq.quantize(llama, tmp_path / "out.onnx", preset="w4", max_memory=TINY)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_samples_and_limits_need_the_whole(llama: Path, tmp_path: Path) -> None:
    feeds = [{"input_ids": np.arange(8)[None]}, {"input_ids": np.arange(8, 16)[None]}]
    result = onnxq.quantize(llama, tmp_path / "out.onnx", preset="w4", calibration=feeds, benchmark=False,
                            max_memory=TINY, algorithm="rtn")  # fmt: skip
    assert result.sqnr_db is not None


@pytest.mark.parametrize("algorithm", ["gptq", None])
def test_samples_go_through_a_large_model_part_by_part(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str | None
) -> None:
    random = np.random.default_rng(0)
    feeds = [{"input_ids": random.integers(1024, size=(1, 64))} for _ in range(12)]
    options = {"preset": "w4", "algorithm": algorithm, "sequential": True, "calibration": feeds, "benchmark": False}
    # where a sample may show that a kernel must not round its input, levels are chosen; a large model is not run for it
    first = onnxq.quantize(llama, tmp_path / "whole.onnx", accuracy_level=4, **options)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the whole float model was run")

    monkeypatch.setattr(io, "to_bytes", small_only(io.to_bytes))
    monkeypatch.setattr("onnxq.pipeline.job.probe", refuse)
    monkeypatch.setattr("onnxq.pipeline.gate.compare_all", refuse)
    monkeypatch.setattr("onnxq.pipeline.float_model.READ_UP_TO", 0)
    result = onnxq.quantize(llama, tmp_path / "part.onnx", max_memory=TINY, **options)
    assert onnx.load(tmp_path / "whole.onnx") == onnx.load(tmp_path / "part.onnx")
    assert {row["algorithm"] for row in result.weights} == {row["algorithm"] for row in first.weights} >= {"gptq"}
    assert any("layers were compared with it one by one" in line for line in result.warnings)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "part.onnx", "whole.onnx"]


@pytest.mark.parametrize(("preset", "samples"), [("w4", True), ("w8", False)])
def test_a_model_with_no_room_is_taken_in_parts_unasked(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str, samples: bool
) -> None:
    random = np.random.default_rng(0)
    feeds = [{"input_ids": random.integers(1024, size=(1, 64))} for _ in range(6)]
    monkeypatch.setattr("onnxq.pipeline.large.too_large.free_memory", lambda: 1 << 20)
    monkeypatch.setattr("onnxq.pipeline.gate.compare_all", None)
    monkeypatch.setattr("onnxq.pipeline.float_model.READ_UP_TO", 0)
    part = tmp_path / "part.onnx"
    result = onnxq.quantize(llama, part, preset=preset, calibration=feeds, benchmark=False, max_memory=TINY)
    said = next(line for line in result.warnings if "of memory" in line)
    assert said.endswith("layers are taken in order (--sequential)" if samples else "the samples were not run")
    assert ("gptq" in {row["algorithm"] for row in result.weights}) is samples
    assert any("layers were compared with it one by one" in line for line in result.warnings)


def test_a_model_with_room_is_run_whole_and_said_to_be_large(llama: Path, tmp_path: Path) -> None:
    feeds = [{"input_ids": np.arange(8 * n, 8 * n + 8)[None]} for n in range(4)]
    result = onnxq.quantize(
        llama, tmp_path / "o.onnx", preset="w4", calibration=feeds, benchmark=False, max_memory=TINY
    )
    assert result.sqnr_db is not None
    assert any("--sequential needs no more than --max-memory" in line for line in result.warnings)


def small_only(plain):
    def checked(model):
        assert io.weights_bytes(model) < 4e6, "more than a layer was made bytes"
        return plain(model)

    return checked


def test_a_spill_file_gives_arrays_back(tmp_path: Path) -> None:
    spill = Spill(tmp_path, smallest=16)
    arrays = [
        np.arange(1000, dtype=np.float32).reshape(10, 100),
        np.arange(7, dtype=np.int8),
        np.ones((3, 40), np.uint8),
    ]
    kept = [spill.keep(array) for array in arrays]
    spill.close()
    for array, again in zip(arrays, kept, strict=True):
        forget(again)
        np.testing.assert_array_equal(again, array)
        assert again.dtype == array.dtype
    assert map_of(kept[1]) is None and spill.place_of(kept[1]) is None  # too small
    assert spill.place_of(kept[0]) == 0 and spill.place_of(kept[2]) not in (0, None)
    assert spill.keep(kept[0]) is kept[0]
    forget(arrays[0])  # in memory: nothing happens
    np.testing.assert_array_equal(arrays[0].reshape(-1), np.arange(1000))
    with pytest.raises(ValueError, match="read-only"):
        kept[0][0, 0] = 1


def test_forgetting_a_view_leaves_its_neighbours(tmp_path: Path) -> None:
    spill = Spill(tmp_path, smallest=0)
    whole = spill.keep(np.arange(1 << 16, dtype=np.int32).reshape(256, 256))
    spill.close()
    expect(whole[10:20].T)
    forget(whole[10:20].T)
    np.testing.assert_array_equal(whole.reshape(-1), np.arange(1 << 16))


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OnnxqError, match="weights cannot be kept there"):
        Spill(tmp_path / "no" / "folder")


def test_a_model_written_weight_by_weight_is_the_same(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = io.load(llama)
    saving.save(model, tmp_path / "at_once.onnx")
    monkeypatch.setattr(saving, "_AT_ONCE", 0)
    saving.save(model, tmp_path / "in_turn.onnx")
    once, turn = onnx.load(tmp_path / "at_once.onnx"), onnx.load(tmp_path / "in_turn.onnx")
    order = {t.name: i for i, t in enumerate(once.graph.initializer)}
    tensors = sorted(turn.graph.initializer, key=lambda t: order[t.name])
    for one, other in zip(once.graph.initializer, tensors, strict=True):
        assert one.dims == other.dims and one.data_type == other.data_type
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(one), onnx.numpy_helper.to_array(other))
    del once.graph.initializer[:], turn.graph.initializer[:]
    assert once == turn
    onnx.checker.check_model(tmp_path / "in_turn.onnx")


def test_what_exceeds_protobuf_is_refused(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "PROTOBUF_LIMIT", 1000)
    with pytest.raises(OnnxqError, match="exceeds protobuf"), (tmp_path / "x").open("wb") as file:
        whole_file.write_whole(io.load(llama), file)


def test_pieces_of_a_model_give_what_the_whole_gives(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = io.load(llama)
    feed = {"input_ids": np.arange(6).reshape(1, 6)}
    expected = onnxruntime.InferenceSession(str(llama)).run(None, feed)[0]
    monkeypatch.setattr(pieces, "_PIECE", 1 << 20)
    cut = pieces.in_pieces(model, optimize=False, threads=1)
    assert cut is not None and cut.count > 4
    np.testing.assert_allclose(cut.run(feed)[0], expected, atol=1e-4)


def test_a_model_with_a_body_is_not_cut() -> None:
    body = onnx.parser.parse_graph("b () => (float[2] y) { y = Identity (x) }")
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> g (bool c, float[2] x) => (float[2] z) { z = Identity (x) }'
    )
    node = onnx.helper.make_node("If", ["c"], ["w"], "if", then_branch=body, else_branch=body)
    model.graph.node.insert(0, node)
    model.graph.node[1].input[0] = "w"
    assert pieces.in_pieces(io.load(model), optimize=False, threads=1) is None


def test_the_error_of_a_large_weight_is_that_of_some_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(0).standard_normal((512, 256), np.float32)
    tensor = rtn(weight, TensorSpec(QType.UINT4, PerBlock(1, 32)))
    whole = rounding_error.weight_error_db(weight, tensor)
    monkeypatch.setattr(rounding_error, "_LARGE", 1 << 14)
    monkeypatch.setattr(rounding_error, "_TOGETHER", 16)
    some = rounding_error.weight_error_db(weight, tensor)
    assert whole is not None and some is not None
    assert some != whole
    assert abs(some - whole) < 0.3
