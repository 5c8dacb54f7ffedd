"""Scripts for ``onnxruntime.quantization`` run after changing the import."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxruntime.quantization as theirs
import pytest

import onnxq
from onnxq.compat import onnxruntime as ours
from onnxq.compat.onnxruntime import matmul_nbits_quantizer as nbits
from onnxq.compat.onnxruntime.wishes import MEANINGS, wishes_of
from onnxq.errors import RecipeError, VerificationError
from tests.graph.build import build
from tests.runtime_version import needs_runtime


class Digits(ours.CalibrationDataReader):
    """A reader as scripts write it: read once, and that is all."""

    def __init__(self, root: Path, count: int = 40) -> None:
        with np.load(root / "calibration_data" / "digits_dsconv.npz") as data:
            self._samples: Iterator[Any] = iter([{"image": image[None]} for image in data["image"][:count]])

    def get_next(self) -> Any:
        return next(self._samples, None)


def operators(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def agree(one: Path, other: Path, root: Path) -> float:
    sessions = [onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in (one, other)]
    reader = Digits(root)
    pairs = [[session.run(None, sample)[0].argmax() for session in sessions] for sample in reader]
    return float(np.mean([first == second for first, second in pairs]))


@pytest.mark.parametrize(
    ("name", "known"),
    [
        pytest.param(
            "quantize_static", True, marks=needs_runtime("1.28", "asks for a reader of samples that may be None")
        ),
        ("quantize_dynamic", True),
        ("quantize", True),
        ("quant_pre_process", True),
    ],
)
def test_signatures_are_those_of_onnxruntime(name: str, known: bool) -> None:
    here, there = (inspect.signature(getattr(module, name)).parameters for module in (ours, theirs))
    missing = set(there) - set(here)
    assert missing == set()
    for key, parameter in there.items():
        assert str(here[key].default) == str(parameter.default), key
    if len(here) == len(there):  # older releases lack the newest argument
        assert list(here) == list(there)


@pytest.mark.parametrize("name", ["QuantType", "QuantFormat", "CalibrationMethod"])
def test_enumerations_have_the_same_members(name: str) -> None:
    here, there = getattr(ours, name), getattr(theirs, name)
    assert {member.name: member.value for member in here} == {member.name: member.value for member in there}
    if name == "QuantType":
        assert [here[member.name].tensor_type for member in there] == [member.tensor_type for member in there]


@pytest.mark.parametrize("module", [ours, theirs], ids=["own words", "onnxruntime's words"])
@pytest.mark.parametrize("format", ["QDQ", "QOperator"])
def test_static(root: Path, tmp_path: Path, format: str, module: Any) -> None:
    model, output = root / "models" / "digits_dsconv.onnx", tmp_path / "out.onnx"
    ours.quantize_static(
        str(model),
        str(output),
        Digits(root),
        quant_format=module.QuantFormat[format],
        activation_type=module.QuantType.QUInt8,
        weight_type=module.QuantType.QInt8,
        calibrate_method=module.CalibrationMethod.Percentile,
        extra_options={"CalibPercentile": 99.9, "ActivationSymmetric": True},
    )
    assert agree(model, output, root) > 0.95
    assert ("QLinearConv" in operators(output)) == (format == "QOperator")
    weights = [t for t in onnx.load(output).graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims)]
    assert weights
    zeros = [onnx.numpy_helper.to_array(t) for t in onnx.load(output).graph.initializer if t.data_type == 2]
    assert {int(zero) for zero in zeros if zero.ndim == 0} <= {0, 128}, "symmetric: the middle, or 0 above zero"


def test_per_tensor_is_the_default_as_there(root: Path, tmp_path: Path) -> None:
    def scales(per_channel: bool) -> int:
        output = tmp_path / "out.onnx"
        ours.quantize_static(root / "models" / "digits_dsconv.onnx", output, Digits(root), per_channel=per_channel)
        return sum(
            len(t.dims) == 1 and t.data_type == 1 and "scale" in t.name for t in onnx.load(output).graph.initializer
        )

    assert scales(False) < scales(True)


def test_patterns_types_and_names(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, output = root / "models" / "digits_dsconv.onnx", tmp_path / "out.onnx"
    convolutions = [node.name for node in onnx.load(model).graph.node if node.op_type == "Conv"]
    with caplog.at_level(logging.WARNING):
        result = ours.quantize_static(
            model,
            output,
            Digits(root),
            op_types_to_quantize=["Conv", "LSTM"],
            nodes_to_exclude=[convolutions[0], "nobody"],
        )
    kept = {name for name, _, _ in result.kept_float}
    assert convolutions[0] in kept
    assert convolutions[1] not in kept
    assert "the model has no node 'nobody'" in caplog.text
    with pytest.raises(RecipeError, match="op_types_to_quantize: the model has none of these; it has nodes of"):
        ours.quantize_static(model, output, Digits(root), op_types_to_quantize=["LSTM"])


def test_what_pays_nowhere_is_quantized_all_the_same(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [1, 8])],
        [onnx.helper.make_tensor_value_info("y", 1, [1, 8])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    samples = [{"x": np.random.default_rng(i).standard_normal((1, 8)).astype(np.float32)} for i in range(8)]
    result = ours.quantize_static(model, tmp_path / "out.onnx", samples)
    assert result.kept_float == []


def test_the_cache_is_written_and_used_again(root: Path, tmp_path: Path) -> None:
    model, cache = root / "models" / "digits_dsconv.onnx", tmp_path / "ranges.npz"
    ours.quantize_static(model, tmp_path / "a.onnx", Digits(root), calibration_cache_path=cache)
    assert cache.is_file()
    ours.quantize_static(model, tmp_path / "b.onnx", None, calibration_cache_path=cache)
    assert agree(model, tmp_path / "b.onnx", root) > 0.95
    with pytest.raises(ValueError, match="Either calibration_data_reader or an existing calibration_cache_path"):
        ours.quantize_static(model, tmp_path / "c.onnx", None, calibration_cache_path=tmp_path / "none.npz")
    assert not (tmp_path / "c.onnx").exists()


def test_dynamic_and_configurations(root: Path, tmp_path: Path) -> None:
    model, output = root / "models" / "text_encoder.onnx", tmp_path / "out.onnx"
    ours.quantize(model, output, ours.DynamicQuantConfig(per_channel=True, extra_options={"MatMulConstBOnly": True}))
    assert operators(output) & {"DynamicQuantizeLinear", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
    digits = root / "models" / "digits_dsconv.onnx"
    ours.quantize(digits, output, ours.StaticQuantConfig(Digits(root), quant_format=ours.QuantFormat.QOperator))
    assert "QLinearConv" in operators(output)
    output.unlink()
    ours.quantize(digits, output, theirs.StaticQuantConfig(Digits(root), quant_format=theirs.QuantFormat.QOperator))
    assert "QLinearConv" in operators(output)
    ours.quantize(root / "models" / "tiny_lm.onnx", output, nbits.HQQWeightOnlyQuantConfig(block_size=32))
    assert "MatMulNBits" in operators(output)
    with pytest.raises(TypeError, match="quant_config: is a dict"):
        ours.quantize(model, output, {})


@pytest.mark.parametrize(
    "config",
    [
        nbits.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, accuracy_level=4),
        nbits.DefaultWeightOnlyQuantConfig(block_size=32, quant_format=ours.QuantFormat.QDQ),
        nbits.RTNWeightOnlyQuantConfig(),
        nbits.KQuantWeightOnlyQuantConfig(),
        nbits.HQQWeightOnlyQuantConfig(block_size=64),
        None,
    ],
    ids=["default", "qdq", "rtn", "k_quant", "hqq", "none"],
)
def test_weights_in_blocks(root: Path, tmp_path: Path, config: Any) -> None:
    quantizer = ours.MatMulNBitsQuantizer(str(root / "models" / "tiny_lm.onnx"), block_size=32, algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(tmp_path / "out.onnx"), True)
    found = operators(tmp_path / "out.onnx")
    assert ("DequantizeLinear" if config is not None and config.quant_format.name == "QDQ" else "MatMulNBits") in found
    onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    assert len(list(tmp_path.glob("out.onnx.*.data"))) == 1


def test_weights_stand_beside_the_model_where_asked(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    ours.quantize_dynamic(root / "models" / "text_encoder.onnx", output, use_external_data_format=True)
    assert len(list(tmp_path.glob("out.onnx.*.data"))) == 1
    onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])


def test_pre_processing_gives_the_same_numbers(root: Path, tmp_path: Path) -> None:
    model, output = root / "models" / "digits_dsconv.onnx", tmp_path / "prepared.onnx"
    ours.quant_pre_process(str(model), str(output))
    assert "BatchNormalization" not in operators(output)
    assert agree(model, output, root) == 1
    with pytest.raises(ValueError, match="output_model_path is missing"):
        ours.quant_pre_process(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"WeightSymetric": True}, "there is no such option; did you mean 'WeightSymmetric'"),
        ({"AddQDQPairToWeight": True}, "has no equal here; weights are stored as integers"),
        ({"TensorQuantOverrides": {"x": [{"scale": 1.0}]}}, "'x': Must provide both 'scale' and 'zero_point'"),
        ({"SmoothQuant": True, "SmoothQuantAlpha": "half"}, "could not convert string to float: 'half'; pass a number"),
    ],
)
def test_wishes_without_an_equal_say_what_to_use(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ours.UnsupportedError, match=message) as caught:
        wishes_of(options)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


def test_the_documentation_has_every_option(root: Path) -> None:
    page = (root / "docs" / "from-onnxruntime.md").read_text(encoding="utf-8")
    assert [
        f"| `{name}` | {words} |" for name, (_, words) in MEANINGS.items() if f"| `{name}` | {words} |" not in page
    ] == []


def test_every_option_with_its_default_is_taken() -> None:
    defaults = {"WeightSymmetric": True, "QuantizeBias": True, "SmoothQuantFolding": True, "MinimumRealRange": None}
    assert wishes_of({"QuantizeBias": False, "UseQDQContribOps": True}) == {
        "recipe_keys": {"float_bias": True, "own_pairs": True}
    }
    empty = {"OpTypesToExcludeOutputQuantization": [], "QDQOpTypePerChannelSupportToAxis": {}, "BlockSize": 0}
    special = {**defaults, **empty, "TensorQuantOverrides": {}, "SmoothQuantAlpha": 0.5, "CalibPercentile": 99.9}
    assert wishes_of({name: special.get(name, False) for name in MEANINGS}) == {"percentile": 99.9}


def test_grids_of_single_tensors(root: Path, tmp_path: Path) -> None:
    overrides = {"image": [{"rmin": np.float32(-1), "rmax": np.float32(1)}], "logits": [{"symmetric": True}]}
    model, output = root / "models" / "digits_dsconv.onnx", tmp_path / "out.onnx"
    wishes = {"TensorQuantOverrides": overrides, "MinimumRealRange": 1e-4}
    ours.quantize_static(model, output, Digits(root), op_types_to_quantize=["Conv", "Relu"], extra_options=wishes)
    written = onnx.load(output)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in written.graph.initializer}
    quantized = {node.input[0]: node.input[1] for node in written.graph.node if node.op_type == "QuantizeLinear"}
    scale = constants[quantized["image"]]
    assert scale == pytest.approx(2 / 255)
    signed = {"x": [{"quant_type": theirs.QuantType.QInt8, "scale": 0.5, "zero_point": np.int8(-128)}]}
    assert wishes_of({"TensorQuantOverrides": signed}) == {"values": [{"match": "x", "scale": 0.5, "zero_point": 0}]}


def test_types_without_kernels_and_wrong_words(root: Path, tmp_path: Path) -> None:
    model, output = root / "models" / "digits_dsconv.onnx", tmp_path / "out.onnx"
    float8, int4, int16 = ours.QuantType.QFLOAT8E4M3FN, ours.QuantType.QInt4, ours.QuantType.QInt16
    with pytest.raises(ValueError, match="weight_type QInt8: .* QFLOAT8E4M3FN with itself"):
        ours.quantize_static(model, output, Digits(root), activation_type=float8)
    with pytest.raises(ValueError, match="quant_format QOperator: no engine has such operators for float8"):
        eight = {"activation_type": float8, "weight_type": float8}
        ours.quantize_static(model, output, Digits(root), quant_format=ours.QuantFormat.QOperator, **eight)
    with pytest.raises(ValueError, match="weight_type QInt4: .* weights of 4 or 16 bits with 16"):
        ours.quantize_static(model, output, Digits(root), weight_type=int4)
    with pytest.raises(ValueError, match="reduce_range: is for processors, and these types are for qnn"):
        ours.quantize_static(model, output, Digits(root), activation_type=int16, weight_type=int4, reduce_range=True)
    with pytest.raises(ValueError, match="weight_type QFLOAT8E4M3FN"):
        ours.quantize_dynamic(model, output, weight_type=float8)
    with pytest.raises(ValueError, match=r"quant_format: is 'qdq', not a QuantFormat; pass a member"):
        ours.quantize_static(model, output, Digits(root), quant_format="qdq")
    assert not output.exists()
    assert issubclass(VerificationError, Exception)


def test_anything_with_get_next_is_a_reader() -> None:
    class Reader:
        def get_next(self) -> None:
            return None

    assert isinstance(Reader(), ours.CalibrationDataReader)
    assert not isinstance(object(), ours.CalibrationDataReader)


def test_sixteen_bits_of_activations(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, output = root / "models" / "digits_dsconv.onnx", tmp_path / "out.onnx"
    with caplog.at_level(logging.WARNING):
        ours.quantize_static(model, output, Digits(root), activation_type=ours.QuantType.QUInt16)
    assert "cpu has no kernels for 16-bit activations" in caplog.text
    constants = {tensor.name: tensor.data_type for tensor in onnx.load(output).graph.initializer}
    nodes = onnx.load(output).graph.node
    zeros = {constants[node.input[2]] for node in nodes if node.op_type == "QuantizeLinear"}
    assert zeros == {onnx.TensorProto.UINT16}
    with pytest.raises(ValueError, match="weight_type QInt16: weights of 8 bits .* weights of 4 or 16 bits with 16"):
        ours.quantize_static(model, output, Digits(root), weight_type=ours.QuantType.QInt16)


def four_layers(path: Path) -> ours.CalibrationDataReader:
    """A model of Conv and Gemm with fixed shapes, and samples."""
    rng = np.random.default_rng(5)
    shapes = {"w": (8, 4, 3, 3), "v": (8, 8, 3, 3), "u": (8, 8, 3, 3), "t": (512, 10)}
    weights = [
        onnx.numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    graph = onnx.parser.parse_graph(
        """g (float[1,4,8,8] x) => (float[1,10] y, float[1,8,8,8] z) {
        [one] a = Conv <pads = [1,1,1,1]> (x, w) [act] r = Relu (a) [two] b = Conv <pads = [1,1,1,1]> (r, v)
        [three] z = Conv <pads = [1,1,1,1]> (r, u) [flat] f = Flatten (b) [last] y = Gemm (f, t) }"""
    )
    graph.initializer.extend(weights)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), path)
    samples = [{"x": rng.normal(size=(1, 4, 8, 8)).astype(np.float32)} for _ in range(8)]

    class Samples(ours.CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(samples)

        def get_next(self) -> Any:
            return next(self._left, None)

    return Samples()


def test_types_for_other_engines(tmp_path: Path) -> None:
    model, output = tmp_path / "model.onnx", tmp_path / "out.onnx"
    types = ours.QuantType
    wide = {"activation_type": types.QUInt16}
    for options, integers in (
        ({**wide, "weight_type": types.QInt4}, {"w": "INT4", "v": "INT4", "t": "INT4"}),
        (
            {**wide, "extra_options": {"TensorQuantOverrides": {"v": [{"quant_type": types.QInt4}]}}},
            {"w": "INT8", "v": "INT4", "t": "INT8"},
        ),
        (
            {
                "activation_type": types.QFLOAT8E4M3FN,
                "weight_type": types.QFLOAT8E4M3FN,
                "calibrate_method": ours.CalibrationMethod.Distribution,
            },
            {"w": "FLOAT8E4M3FN", "t": "FLOAT8E4M3FN"},
        ),
    ):
        ours.quantize_static(model, output, four_layers(model), **options)
        kinds = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in onnx.load(output).graph.initializer}
        assert {name: kinds[f"{name}_quantized"] for name in integers} == integers


def test_float8_is_compared_and_undone_as_it_is_written(tmp_path: Path) -> None:
    model, output = tmp_path / "model.onnx", tmp_path / "out.onnx"
    eight = {"activation_type": ours.QuantType.QFLOAT8E4M3FN, "weight_type": ours.QuantType.QFLOAT8E4M3FN}
    ours.quantize_static(model, output, four_layers(model), **eight)
    samples = [{"x": np.random.default_rng(i).normal(size=(1, 4, 8, 8)).astype(np.float32)} for i in range(4)]
    found = onnxq.compare(model, output, data=samples)
    assert found.sqnr_db is not None and 20 < found.sqnr_db < 60
    assert any(line.startswith("float8: compared with the optimizations") for line in found.warnings)
    undone = onnxq.dequantize(output, tmp_path / "float.onnx")
    assert undone.sqnr_db is not None and undone.sqnr_db > 15
    assert not any("does not run here" in line for line in undone.warnings)


def test_readers_of_another_width(tmp_path: Path) -> None:
    model, output = tmp_path / "model.onnx", tmp_path / "out.onnx"
    types = ours.QuantType
    overrides = {"r": [{"quant_type": types.QUInt8, "convert": {"quant_type": types.QUInt16, "recv_nodes": {"three"}}}]}
    ours.quantize_static(
        model,
        output,
        four_layers(model),
        activation_type=types.QUInt8,
        extra_options={"TensorQuantOverrides": overrides},
    )
    read = ours.tensor_quant_overrides(output, model)
    assert read["r"][0]["quant_type"] is types.QUInt8
    assert read["r"][0]["convert"] == {"quant_type": types.QUInt16, "recv_nodes": {"three"}}
    assert not any("convert" in entry for name, entries in read.items() if name != "r" for entry in entries)


def test_types_by_number_and_words_by_name(root: Path, tmp_path: Path) -> None:
    model, output = root / "models" / "digits_dsconv.onnx", tmp_path / "out.onnx"
    ours.quantize_static(
        model,
        output,
        Digits(root),
        quant_format="QOperator",
        activation_type=onnx.TensorProto.UINT8,
        weight_type=onnx.TensorProto.INT8,
    )
    assert "QLinearConv" in operators(output)


def test_a_weight_may_have_a_scale_a_channel(root: Path, tmp_path: Path) -> None:
    model, output = root / "models" / "digits_dsconv.onnx", tmp_path / "out.onnx"
    source = onnx.load(model).graph
    weights = {tensor.name for tensor in source.initializer}
    first = next(node for node in source.node if node.op_type == "Conv" and node.input[1] in weights)

    def long_scales(**options: Any) -> set[str]:
        ours.quantize_static(model, output, Digits(root), op_types_to_quantize=["Conv"], extra_options=options)
        written = onnx.load(output).graph
        return {t.name for t in written.initializer if t.name.endswith("_scale") and len(t.dims) == 1 and t.dims[0] > 1}

    overrides = {first.input[1]: [{"quant_type": ours.QuantType.QInt8, "axis": 0}, {"symmetric": True}]}
    assert len(long_scales(TensorQuantOverrides=overrides) - long_scales()) >= 1
    for wrong, said in (
        ({"nothing": [{"symmetric": True}]}, "tensor 'nothing' is not present in the model"),
        ({first.input[1]: [{"rmax": 1.0}]}, "rmin and rmax belong together"),
        ({first.input[1]: [{"axis": 0, "rmin": -1.0, "rmax": 1.0}, {"symmetric": True}]}, "say the same of each"),
        ({first.input[1]: [{"quant_type": ours.QuantType.QInt4}]}, "4 bits go with activations of 16; pass activation"),
        ({first.input[1]: [{"quant_type": ours.QuantType.QInt16}]}, "quant_type has no equal here"),
        ({"image": [{"convert": {"recv_nodes": {"a"}}}]}, "pass a mapping with quant_type and recv_nodes"),
        (
            {"image": [{"convert": {"quant_type": ours.QuantType.QUInt8}}]},
            "converts 8 bits to QUInt8; pass a type of 16",
        ),
        ({"image": [{"convert": {"quant_type": ours.QuantType.QUInt16, "scale": 1.0}}]}, "scale of convert: its range"),
    ):
        with pytest.raises(ours.UnsupportedError, match=said):
            long_scales(TensorQuantOverrides=wrong)


def test_a_moving_average_is_the_mean_of_the_samples_extrema(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    weight = onnx.numpy_helper.from_array(rng.normal(0, 0.1, (64, 64)).astype(np.float32), "w")
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [8, 64]) for name in "xy")
    product = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    graph = onnx.helper.make_graph([product], "g", [x], [y], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    samples = [{"x": rng.uniform(-1 - i % 3, 2 + i % 3, (8, 64)).astype(np.float32)} for i in range(48)]

    class Samples(ours.CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(samples)

        def get_next(self) -> Any:
            return next(self._left, None)

    def scale_of(made: Any, options: dict[str, Any]) -> float:
        output = tmp_path / "out.onnx"
        types = {"activation_type": made.QuantType.QUInt8, "extra_options": options}
        made.quantize_static(str(tmp_path / "model.onnx"), str(output), Samples(), **types)
        graph = onnx.load(output).graph
        first = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "x")
        found = next(onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name == first.input[1])
        return float(found.reshape(()))

    options = {"CalibMovingAverage": True, "CalibMovingAverageConstant": 0.05}
    ends = np.mean([[sample["x"].min(), sample["x"].max()] for sample in samples], axis=0)
    assert scale_of(theirs, options) == pytest.approx((ends[1] - ends[0]) / 255, rel=1e-5)
    assert scale_of(ours, options) == pytest.approx((ends[1] - ends[0]) / 255, rel=0.05)  # some samples are held out
    assert scale_of(ours, {"CalibMovingAverage": False}) > 1.2 * scale_of(ours, options)
    with pytest.raises(ours.UnsupportedError, match="averaging constant"):
        wishes_of({**options, "CalibMovingAverageConstant": 3})


def test_a_weight_may_have_a_grid_of_its_own(root: Path, tmp_path: Path) -> None:
    model, output = root / "models" / "digits_dsconv.onnx", tmp_path / "out.onnx"
    source = onnx.load(model).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in source.initializer}
    name = next(node.input[1] for node in source.node if node.op_type == "Conv" and node.input[1] in arrays)
    weight = arrays[name]
    channels = weight.shape[0]

    def grid(overrides: Any = None, **options: Any) -> tuple[Any, Any]:
        options |= {"TensorQuantOverrides": {name: overrides}} if overrides else {}
        ours.quantize_static(
            model, output, Digits(root), op_types_to_quantize=["Conv"], extra_options={"QuantizeBias": False, **options}
        )
        graph = onnx.load(output).graph
        written = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        node = next(node for node in graph.node if node.input[0] == f"{name}_quantized")
        return written[node.input[1]].reshape(-1), written[node.input[2]].reshape(-1)

    scale, zero = grid([{"rmin": np.float32(-2), "rmax": np.float32(3)}])
    assert (scale.tolist(), zero.tolist()) == ([pytest.approx(5 / 255)], [-26])
    scale, zero = grid(
        [{"quant_type": theirs.QuantType.QUInt8, "scale": np.float32(0.03), "zero_point": np.uint8(130)}]
    )
    assert (scale.tolist(), zero.tolist()) == ([pytest.approx(0.03)], [2])
    scales = [0.02 + 0.001 * i for i in range(channels)]
    scale, zero = grid([{"axis": 0, "scale": s, "zero_point": np.float32(0)} for s in scales])
    assert scale.tolist() == pytest.approx(scales) and not zero.any()
    scale, zero = grid([{"axis": 0, "rmin": -1 - i, "rmax": 1 + i} for i in range(channels)])
    assert scale.tolist() == pytest.approx([(1 + i) / 127 for i in range(channels)]) and not zero.any()
    scale, zero = grid(WeightSymmetric=False)
    assert scale.size == 1 and zero.any()
    assert scale[0] == pytest.approx((max(weight.max(), 0) - min(weight.min(), 0)) / 255, rel=1e-4)


def test_grids_have_the_type_and_the_name_that_were_asked_for(root: Path, tmp_path: Path) -> None:
    model, output = root / "models" / "digits_dsconv.onnx", tmp_path / "out.onnx"
    source = onnx.load(model).graph
    name = next(n.input[1] for n in source.node if n.op_type == "Conv")

    def grids(weight: list[dict[str, Any]]) -> dict[str, Any]:
        given = {"image": [{"scale": np.float32(0.1), "zero_point": np.uint8(127)}], name: weight}
        ours.quantize_static(
            model,
            output,
            Digits(root),
            activation_type=theirs.QuantType.QUInt8,
            weight_type=theirs.QuantType.QUInt8,
            op_types_to_quantize=["Conv"],
            extra_options={"TensorQuantOverrides": given, "QuantizeBias": False},
        )
        return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(output).graph.initializer}

    found = grids([{"symmetric": True}])
    assert found["image_zero_point"] == 127 and found["image_scale"] == np.float32(0.1)
    assert found[f"{name}_zero_point"] == 128 and found[f"{name}_zero_point"].dtype == np.uint8
    found = grids([{"rmin": np.float32(-1), "rmax": np.float32(3)}])
    assert found[f"{name}_zero_point"] == 64 and found[f"{name}_scale"] == pytest.approx(4 / 255)
    found = grids([{"scale": np.float32(0.5), "zero_point": np.float32(4)}])
    assert (found[f"{name}_zero_point"], found[f"{name}_scale"]) == (4, 0.5)


def test_an_unknown_option_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert wishes_of({"dual_feed": True}) == {}
    assert "extra_options['dual_feed']: there is no such option, so that it has no effect" in caplog.text


def test_what_can_be_quantized_is_where_one_insists(root: Path, tmp_path: Path) -> None:
    model, output = root / "models" / "digits_dsconv.onnx", tmp_path / "out.onnx"
    found = [
        ours.quantize_static(model, output, Digits(root), extra_options={"ForceQuantizeNoInputCheck": force}).plan
        for force in (False, True)
    ]
    assert found[1].counts("integer") > found[0].counts("integer")


def test_a_distribution_of_integers_is_minmax_around_zero(root: Path, tmp_path: Path) -> None:
    model, output = root / "models" / "digits_dsconv.onnx", tmp_path / "out.onnx"
    method = ours.CalibrationMethod.Distribution
    ours.quantize_static(model, output, Digits(root), calibrate_method=method)
    graph = onnx.load(output).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    zeros = {int(arrays[node.input[2]].reshape(())) for node in graph.node if node.op_type == "QuantizeLinear"}
    assert zeros <= {0, 128}


def test_a_model_without_an_integer_form_is_written_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build("g (float[1, 8] x) => (float[1, 8] y) { h = Exp (x) y = Sin (h) }")
    samples = [{"x": np.full((1, 8), i, np.float32)} for i in range(3)]
    for name, call in {
        "static": lambda path: ours.quantize_static(model, path, ours_reader(samples)),
        "dynamic": lambda path: ours.quantize_dynamic(model, path),
    }.items():
        result = call(tmp_path / f"{name}.onnx")
        assert "the float model was written as it is" in caplog.text
        assert {node.op_type for node in onnx.load(tmp_path / f"{name}.onnx").graph.node} == {"Exp", "Sin"}
        assert (result.preset, result.plan.values) == ("float", {})
        assert "as it is" in result.summary()
    with pytest.raises(RecipeError, match="nothing in this model would be quantized"):
        ours.quantize_dynamic(model, tmp_path / "named.onnx", op_types_to_quantize=["Exp"])
    assert not (tmp_path / "named.onnx").exists()


def ours_reader(samples: list[dict[str, np.ndarray]]) -> Any:
    class Reader(ours.CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._left, None)

    return Reader()


@needs_runtime("1.32", "reads no operator set as new as the converter of onnx writes")
def test_preprocessing_raises_old_operator_sets_whatever_is_skipped(tmp_path: Path) -> None:
    scales = onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1, 3, side, side]) for name, side in (("x", 4), ("y", 8))]
    node = onnx.helper.make_node("Upsample", ["x", "scales"], ["y"], name="up", mode="nearest")
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], initializer=[scales])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 10)]), tmp_path / "m.onnx")
    ours.quant_pre_process(tmp_path / "m.onnx", tmp_path / "out.onnx", skip_optimization=True)
    assert operators(tmp_path / "out.onnx") - {"Constant"} == {"Resize"}
    assert onnx.load(tmp_path / "out.onnx").opset_import[0].version >= 11
    x = np.arange(48, dtype=np.float32).reshape(1, 3, 4, 4)
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x.repeat(2, axis=2).repeat(2, axis=3))


@pytest.mark.parametrize("least", [None, 1e-4])
def test_named_layers_that_saw_zeros_alone(
    tmp_path: Path, least: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    model = build(
        "g (float[1,2,4,4] x) => (float[1,1,3,3] y) { y = Conv (x, w) }", w=np.zeros((1, 2, 2, 2), np.float32)
    )
    kinds = {"activation_type": ours.QuantType.QUInt8, "weight_type": ours.QuantType.QUInt8}
    with caplog.at_level(logging.WARNING):
        ours.quantize_static(
            model,
            tmp_path / "out.onnx",
            [{"x": np.zeros((1, 2, 4, 4), np.float32)}],
            op_types_to_quantize=["Conv"],
            extra_options={"MinimumRealRange": least},
            **kinds,
        )
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    for name in ("x", "w", "y"):  # as onnxruntime has it
        assert constants[f"{name}_scale"] == np.float32(1 if least is None else least / 255)
        assert constants[f"{name}_zero_point"] == 0
    assert ("values that were zero in all of calibration have steps of 1" in caplog.text) == (least is None)


def test_unsigned_weights_have_the_range_of_their_elements(tmp_path: Path) -> None:
    weight = np.float32([[[-1, -2], [1, 2]], [[-0.5, -1], [0.5, 6]]])
    model = build("g (float[1,2,8] x) => (float[1,2,7] y) { [conv] y = Conv (x, w) }", w=weight)
    samples = [{"x": np.random.default_rng(i).standard_normal((1, 2, 8)).astype(np.float32)} for i in range(4)]

    def written(**options: Any) -> tuple[Any, Any]:
        kinds = {"activation_type": ours.QuantType.QUInt8, "weight_type": ours.QuantType.QUInt8}
        ours.quantize_static(model, tmp_path / "out.onnx", samples, op_types_to_quantize=["Conv"], **kinds, **options)
        made = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
        assert made["w_quantized"].dtype == np.uint8
        return made["w_scale"], made["w_zero_point"]

    scale, zero = written()
    assert (scale, zero) == (np.float32(8 / 255), 64)
    scale, zero = written(extra_options={"WeightSymmetric": True})
    assert (scale, zero) == (np.float32(6 / 127), 128)
    scale, zero = written(per_channel=True)
    assert zero.tolist() == [128, 128] and scale == pytest.approx([2 / 127, 6 / 127])
    scale, zero = written(reduce_range=True)
    assert (scale, zero) == (np.float32(6 / 63), 64)


EIGHT, SIXTEEN = ("QInt8", "QUInt8"), ("QInt16", "QUInt16")


@pytest.mark.parametrize(
    ("activations", "weights", "elsewhere"),
    [(kind, weight, other) for kind in EIGHT for weight in EIGHT for other in (False, True)]
    + [(kind, weight, False) for kind in SIXTEEN for weight in (*EIGHT, *SIXTEEN)],
)
def test_given_grids_mean_the_same_reals_in_every_type(
    tmp_path: Path, activations: str, weights: str, elsewhere: bool
) -> None:
    text = "g (float[1,4] x) => (float[1,4] z) { [p] y = MatMul (x, w) [a] r = Relu (y) [s] z = Add (r, c) }"
    rng = np.random.default_rng(0)
    w, c = rng.standard_normal((4, 4)).astype(np.float32), rng.standard_normal((1, 4)).astype(np.float32)
    model = build(text, w=w, c=c)
    kind = ours.QuantType[activations]
    of_weights = ours.QuantType[weights]
    middle = {"QInt8": 0, "QUInt8": 128, "QInt16": 0, "QUInt16": 1 << 15}
    step = 8 / (1 << (16 if activations.endswith("16") else 8))
    asked = {
        "x": (kind, step, middle[activations] + 3),
        "c": (kind, step, middle[activations] - 5),
        "w": (of_weights, 8 / (1 << (16 if weights in SIXTEEN else 8)), middle[weights] + 7),
        "z": (ours.QuantType.QUInt8, 1 / 16, 99),  # of another width than the others, where those have 16 bits
    }
    overrides = {name: [{"quant_type": k, "scale": s, "zero_point": z}] for name, (k, s, z) in asked.items()}
    if elsewhere:
        wide = {"quant_type": ours.QuantType.QUInt16, "recv_nodes": {"s"}}
        overrides["r"] = [{"quant_type": kind, "convert": wide}]
    ours.quantize_static(
        model,
        tmp_path / "out.onnx",
        [{"x": rng.standard_normal((1, 4)).astype(np.float32)} for _ in range(8)],
        activation_type=kind,
        weight_type=of_weights,
        op_types_to_quantize=["MatMul", "Relu", "Add"],
        extra_options={"TensorQuantOverrides": overrides},
    )
    made = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    for name, (k, scale, zero) in asked.items():
        found = made[f"{name}_zero_point"]
        assert made[f"{name}_scale"] == np.float32(scale), name
        assert int(found) - np.iinfo(found.dtype).min == zero - np.iinfo(k.name[1:].lower()).min, name
        assert found.dtype.itemsize == np.dtype(k.name[1:].lower()).itemsize, name
        if k.name in SIXTEEN:
            assert found.dtype == k.name[1:].lower(), name


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", SIXTEEN)
def test_weights_and_activations_of_16_bits(tmp_path: Path, kind: str, bias: bool, per_channel: bool) -> None:
    rng = np.random.default_rng(0)
    constants = {"w": rng.normal(0, 0.1, (6, 4, 3, 3)).astype(np.float32), "b": rng.normal(size=6).astype(np.float32)}
    inputs = "x, w, b" if bias else "x, w"
    text = f"g (float[1,4,8,8] x) => (float[1,6,6,6] y) {{ [one] h = Conv ({inputs}) [r] y = Relu (h) }}"
    model = build(text, **(constants if bias else {"w": constants["w"]}))
    samples = [{"x": rng.standard_normal((1, 4, 8, 8)).astype(np.float32)} for _ in range(8)]
    made = ours.QuantType[kind]
    result = ours.quantize_static(
        model, tmp_path / "out.onnx", samples, activation_type=made, weight_type=made, per_channel=per_channel
    )
    kinds = {t.name: onnx.numpy_helper.to_array(t).dtype for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    for name in ("x_zero_point", "y_zero_point", "w_quantized", "w_zero_point"):
        assert kinds[name] == kind[1:].lower()
    assert result.sqnr_db is not None and result.sqnr_db > 75
    with pytest.raises(ours.UnsupportedError, match="weight_type QInt16: qnn takes weights of 8 and 4 bits"):
        convert = {"convert": {"quant_type": ours.QuantType.QUInt8, "recv_nodes": {"one"}}}
        ours.quantize_static(
            model,
            tmp_path / "out.onnx",
            samples,
            activation_type=ours.QuantType.QUInt16,
            weight_type=ours.QuantType.QInt16,
            extra_options={"TensorQuantOverrides": {"x": [convert]}},
        )


@pytest.mark.parametrize("opset", [19, 21])
def test_pairs_of_16_bits_have_one_domain(tmp_path: Path, opset: int) -> None:
    rng = np.random.default_rng(0)
    text = "g (float[1,2,8,8] x) => (float[1,4,6,6] y) { [act] s = Sigmoid (x) [conv] y = Conv (s, w) }"
    model = build(text, opset=opset, w=rng.standard_normal((4, 2, 3, 3)).astype(np.float32))
    ours.quantize_static(
        model,
        tmp_path / "out.onnx",
        [{"x": rng.standard_normal((1, 2, 8, 8)).astype(np.float32)} for _ in range(4)],
        activation_type=ours.QuantType.QUInt8,
        op_types_to_quantize=["Conv", "Sigmoid"],
        extra_options={"TensorQuantOverrides": {"s": [{"quant_type": ours.QuantType.QUInt16}]}},
    )
    made = onnx.load(tmp_path / "out.onnx")
    assert {entry.domain: entry.version for entry in made.opset_import}[""] == opset
    domains = {node.domain for node in made.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    assert domains == ({"com.microsoft"} if opset < 21 else {""})


@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_that_are_integers_already_keep_their_grid(tmp_path: Path, per_channel: bool) -> None:
    rng = np.random.default_rng(0)
    scale = np.float32([0.02, 0.03]) if per_channel else np.float32(0.02)
    integers = rng.integers(-100, 100, (2, 2, 5, 5)).astype(np.int8)
    model = build(
        """g (float[1,2,20,20] x) => (float[1,2,16,16] y) {
        w = DequantizeLinear <axis = 0> (wq, ws, wz) [conv] y = Conv (x, w) }""",
        opset=21,
        wq=integers,
        ws=scale,
        wz=np.zeros(scale.shape, np.int8),
    )
    samples = [{"x": rng.standard_normal((1, 2, 20, 20)).astype(np.float32)} for _ in range(4)]
    ours.quantize_static(model, tmp_path / "out.onnx", samples, op_types_to_quantize=["Conv"])
    graph = onnx.load(tmp_path / "out.onnx").graph
    made = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    layer = next(node for node in graph.node if node.op_type == "Conv")
    weight = next(node for node in graph.node if node.output[0] == layer.input[1])
    np.testing.assert_array_equal(made[weight.input[0]], integers)
    np.testing.assert_array_equal(made[weight.input[1]], scale)
    assert {"x_scale", "y_scale"} <= made.keys()


@pytest.mark.parametrize("kind", ["float", "float16"])
def test_a_second_grid_has_the_name_of_its_value(tmp_path: Path, kind: str) -> None:
    text = f"g ({kind}[1,2,3] x) => ({kind}[1,3,2] y) {{ [t] h = Transpose <perm = [0,2,1]> (x) [c] y = Cos (h) }}"
    types = ours.QuantType
    overrides = {
        "h": [{"quant_type": types.QUInt8, "convert": {"quant_type": types.QUInt16, "recv_nodes": {"c"}}}],
        "y": [{"quant_type": types.QUInt16}],
    }
    dtype = np.float32 if kind == "float" else np.float16
    ours.quantize_static(
        build(text),
        tmp_path / "out.onnx",
        [{"x": np.random.default_rng(i).uniform(-1, 1, (1, 2, 3)).astype(dtype)} for i in range(4)],
        activation_type=types.QUInt8,
        op_types_to_quantize=["Transpose", "Cos"],
        extra_options={"TensorQuantOverrides": overrides, "ForceQuantizeNoInputCheck": True},
    )
    made = {t.name: onnx.numpy_helper.to_array(t).dtype for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    zeros = {name: kind for name, kind in made.items() if "zero_point" in name}
    assert zeros == {"x_zero_point": np.uint8, "h_zero_point_convert": np.uint16, "y_zero_point": np.uint16}


def test_every_sample_makes_the_ranges(tmp_path: Path) -> None:
    model = build("g (float[1, 4] x) => (float[1, 2] y) { y = Slice (x, a, b, c) }",
                  a=np.array([0]), b=np.array([2]), c=np.array([1]))  # fmt: skip
    samples = [{"x": np.float32([[1, 2, 3, 4]])}, {"x": np.float32([[-4, -3, -2, -1]])}]
    ours.quantize_static(model, tmp_path / "out.onnx", samples, extra_options={"ForceQuantizeNoInputCheck": True})
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert constants["x_scale"] == pytest.approx(8 / 255)
