"""Affine quantization against ONNX Runtime at zero tolerance, the issue's worked examples, and its own laws."""

from __future__ import annotations

import functools
from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from onnxq.core.affine import (
    dequantize,
    dynamic_params,
    expand_blocks,
    fake_quantize,
    params_for,
    params_from_range,
    quantize,
    quantize_tensor,
    reduce_range,
    scale_shape,
)
from onnxq.core.dtypes import QType
from onnxq.core.spec import PerAxis, PerBlock, PerTensor, PerToken, QParams, TensorSpec
from onnxq.errors import CalibrationError, RecipeError

TINY = float(np.finfo(np.float32).tiny)
ORT_TYPES = [QType.INT4, QType.UINT4, QType.INT8, QType.UINT8, QType.INT16, QType.UINT16]
GRANULARITIES = [
    PerTensor(),
    PerAxis(0),
    PerAxis(-1),
    PerAxis(1),
    PerBlock(0, 2),
    PerBlock(1, 4),
    PerBlock(-1, 3),
    PerToken(),
]

any_float = st.floats(allow_nan=False, allow_infinity=False, width=32)
magnitudes = st.sampled_from([1e-38, 1e-20, 1e-3, 1.0, 300.0, 1e20, 3e38])
finite = st.floats(-1.0, 1.0, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5])


@st.composite
def tensors(draw, rank=3):
    shape = draw(st.tuples(*[st.integers(1, 7)] * rank))
    x = draw(hnp.arrays(np.float32, shape, elements=finite))
    return x * np.float32(draw(magnitudes))


@st.composite
def specs(draw, types=tuple(QType)[:8], granularities=tuple(GRANULARITIES)):
    dtype = draw(st.sampled_from(types))
    bits = draw(st.none() | st.integers(2, dtype.bits))
    return TensorSpec(dtype, draw(st.sampled_from(granularities)), draw(st.booleans()), draw(st.booleans()), bits)


@functools.cache
def node_session(op, dtype, axis, block, rank, scale_rank):
    """A session of one (De)QuantizeLinear whose scale and zero point are inputs."""
    attributes = {} if axis is None else {"axis": axis}
    if block:
        attributes["block_size"] = block
    integer = getattr(TensorProto, dtype.value.upper())
    kinds = (TensorProto.FLOAT, integer) if op == "QuantizeLinear" else (integer, TensorProto.FLOAT)
    shape, scales = [None] * rank, [None] * scale_rank
    # 4-bit tensors do not cross numpy: they are cast where they come in and go out
    nodes, ends = [], [kinds[0], kinds[1], integer]
    names = ["x", "y", "zero_point"]
    if dtype.bits < 8:
        wide = TensorProto.INT8 if dtype.signed else TensorProto.UINT8
        for place, name in enumerate(names):
            if ends[place] != integer:
                continue
            ends[place] = wide
            names[place] = f"{name}_4"
            if name == "y":
                nodes.append(helper.make_node("Cast", ["y_4"], ["y"], to=wide))
            else:
                nodes.insert(0, helper.make_node("Cast", [name], [f"{name}_4"], to=integer))
    middle = helper.make_node(op, [names[0], "scale", names[2]], [names[1]], **attributes)
    casts_in = [node for node in nodes if node.output[0] != "y"]
    casts_out = [node for node in nodes if node.output[0] == "y"]
    graph = helper.make_graph(
        [*casts_in, middle, *casts_out],
        "g",
        [
            helper.make_tensor_value_info("x", ends[0], shape),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, scales),
            helper.make_tensor_value_info("zero_point", ends[2], scales),
        ],
        [helper.make_tensor_value_info("y", ends[1], shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def wide(array, dtype):
    if dtype.bits >= 8:
        return array
    return array.astype(np.int8 if dtype.signed else np.uint8)


def ort_run(op, x, params):
    granularity, dtype = params.spec.granularity, params.spec.dtype
    scale, zero_point, axis, block = params.scale, params.zero_point, None, None
    match granularity:
        case PerAxis(axis):
            scale, zero_point = scale.ravel(), zero_point.ravel()
        case PerBlock(axis, block):
            pass
        case _:
            scale, zero_point = scale.reshape(()), zero_point.reshape(())
    session = node_session(op, dtype, axis, block, x.ndim, scale.ndim)
    feed = {
        "x": wide(x, dtype) if op == "DequantizeLinear" else x,
        "scale": scale,
        "zero_point": wide(zero_point, dtype),
    }
    return session.run(None, feed)[0]


ort_specs = st.builds(
    TensorSpec,
    st.sampled_from(ORT_TYPES),
    st.sampled_from([granularity for granularity in GRANULARITIES if granularity != PerToken()]),
    st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(tensors(), ort_specs, st.sampled_from([1.0, 0.25, 1e-4]))
def test_quantize_and_dequantize_are_onnxruntimes_bit_for_bit(x, spec, shrink):
    params = params_for(x * np.float32(shrink), spec)  # shrunken ranges make elements saturate
    q = quantize(x, params)
    assert q.dtype == spec.dtype.numpy
    np.testing.assert_array_equal(wide(q, spec.dtype), ort_run("QuantizeLinear", x, params))
    with np.errstate(over="ignore"):
        back = dequantize(q, params)
    theirs = ort_run("DequantizeLinear", q, params)
    np.testing.assert_array_equal(back.view(np.int32), theirs.view(np.int32))


@pytest.mark.parametrize("dtype", ORT_TYPES)
def test_ties_infinities_and_signed_zeros_as_onnxruntime(dtype):
    scale = np.float32(0.25)
    ties = (np.arange(-70000, 70000, 1, dtype=np.float32) + np.float32(0.5)) * scale
    around = np.nextafter(ties, np.float32(np.inf))
    x = np.concatenate([ties, around, [np.inf, -np.inf, 0.0, -0.0, 3e38, -3e38, 1e-45]]).astype(np.float32)
    for zero_point in (dtype.qmin, dtype.qmin + 3, dtype.qmax):
        params = QParams(TensorSpec(dtype), np.array([scale]), np.array([zero_point]).astype(dtype.numpy))
        np.testing.assert_array_equal(wide(quantize(x, params), dtype), ort_run("QuantizeLinear", x, params))


def test_a_slab_boundary_changes_nothing():
    x = np.random.default_rng(0).standard_normal((700, 512), dtype=np.float32)
    for granularity in (PerTensor(), PerAxis(0), PerAxis(1), PerBlock(0, 128), PerBlock(1, 100)):
        params = params_for(x, TensorSpec(QType.INT8, granularity))
        np.testing.assert_array_equal(quantize(x, params), ort_run("QuantizeLinear", x, params))


def dynamic_session():
    graph = helper.make_graph(
        [helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "scale", "zero_point"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [
            helper.make_tensor_value_info("y", TensorProto.UINT8, [None]),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("zero_point", TensorProto.UINT8, []),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


DYNAMIC = dynamic_session()


@settings(max_examples=150, deadline=None)
@given(tensors(rank=1), st.booleans())
def test_dynamic_params_are_onnxruntimes_bit_for_bit(x, positive):
    x = np.abs(x) if positive else x
    if 0 < np.float64(x.max()) - x.min() < 3.1e-36 or 0 < np.abs(x).max() < 3.1e-36:
        return  # where ONNX Runtime's scale is subnormal, ours is not: tested below
    if np.float64(max(x.max(), 0)) - np.float64(min(x.min(), 0)) > 3.4e38:
        return  # the width overflows in ONNX Runtime
    y, scale, zero_point = DYNAMIC.run(None, {"x": x})
    params = dynamic_params(x)
    assert params.scale.item() == scale.item()
    assert params.zero_point.item() == zero_point.item()
    np.testing.assert_array_equal(quantize(x, params), y)


def test_dynamic_params_never_have_a_subnormal_scale():
    assert dynamic_params(np.array([1e-40, 0], np.float32)).scale.item() == TINY
    assert np.isfinite(dynamic_params(np.array([3e38, -3e38], np.float32)).scale).all()
    assert dynamic_params(np.zeros((0, 2), np.float32)).scale.shape == (1, 1)
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        dynamic_params(np.array([np.nan], np.float32))


# --- worked examples of the issue ---------------------------------------------------------------------------------


def test_example_zero_to_thousand():
    params = params_from_range(0, 1000, TensorSpec(QType.UINT8))
    assert params.scale == pytest.approx(3.92, abs=0.002)
    assert params.zero_point == 0
    assert quantize(np.array(250.0), params) == 64


def test_example_minus_twenty_to_thousand():
    params = params_from_range(-20, 1000, TensorSpec(QType.UINT8))
    assert (params.scale.item(), params.zero_point.item()) == (4.0, 5)


def test_example_dynamic_quantize_linear():
    params = dynamic_params(np.array([0, 2, -3, -2.5, 1.34, 0.5], np.float32))
    assert params.scale.item() == np.float32(0.0196078438)
    assert params.zero_point.item() == 153


def test_example_per_axis_of_the_operator_page():
    x = np.array(
        [
            [
                [[-162, 10], [-100, 232], [-20, -50]],
                [[-76, 0], [0, 252], [32, -44]],
                [[245, -485], [-960, -270], [-375, -470]],
            ]
        ],
        np.float32,
    )
    params = QParams(
        TensorSpec(QType.UINT8, PerAxis(1)),
        np.array([2, 4, 5], np.float32).reshape(1, 3, 1, 1),
        np.array([84, 24, 196], np.uint8).reshape(1, 3, 1, 1),
    )
    expected = [[[[3, 89], [34, 200], [74, 59]], [[5, 24], [24, 87], [32, 13]], [[245, 99], [4, 142], [121, 102]]]]
    np.testing.assert_array_equal(quantize(x, params), expected)


# --- parameters ---------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(any_float, any_float, specs(granularities=(PerTensor(),)))
def test_scales_are_always_normal_numbers_and_zero_is_exact(low, high, spec):
    params = params_from_range(min(low, high), max(low, high), spec)
    assert params.scale.dtype == np.float32
    assert TINY <= params.scale.item() <= float(np.finfo(np.float32).max)
    assert spec.qmin <= int(params.zero_point) <= spec.qmax
    assert fake_quantize(np.float32(0), params).item() == 0.0
    if spec.symmetric:
        assert int(params.zero_point) == (0 if spec.dtype.signed else 1 << (spec.bits - 1))


@pytest.mark.parametrize("width", [0.0, 1e-45, 1e-40, 1e-36])
def test_ranges_too_narrow_to_divide_by(width):
    scale = params_from_range([0.0, -width], [width, 0.0], TensorSpec(QType.INT8)).scale
    assert scale.shape == (2,)
    assert (scale == (1.0 if width == 0 else max(TINY, np.float32(width / 255)))).all()


def test_ranges_beyond_float32_are_cut_to_it():
    assert np.isfinite(
        params_from_range(-1e300, 1e300, TensorSpec(QType.INT2, symmetric=True, narrow_range=True)).scale
    )


@pytest.mark.parametrize("end", [np.nan, np.inf])
def test_ranges_without_finite_ends_are_refused(end):
    with pytest.raises(CalibrationError, match="NaN or infinite end"):
        params_from_range(0.0, end, TensorSpec(QType.INT8))


def test_ranges_are_widened_to_zero():
    assert params_from_range(2.0, 255.0, TensorSpec(QType.UINT8)).scale == 1.0
    assert params_from_range(-255.0, -2.0, TensorSpec(QType.UINT8)).zero_point == 255


@settings(max_examples=100, deadline=None)
@given(tensors(), specs())
def test_error_is_half_a_step_inside_the_range(x, spec):
    assume(np.abs(x).max() < 1.7e38)  # beyond, the outermost level of a coarse grid is no float32
    params = params_for(x, spec)
    scale = expand_blocks(params.scale, x.shape, getattr(spec.granularity, "size", None)).astype(np.float64)
    error = np.abs(fake_quantize(x, params).astype(np.float64) - x)
    slack = 2e-7 * (np.abs(x) + scale * (spec.qmax - spec.qmin))  # scale and products are rounded to float32
    assert (error <= scale / 2 + slack).all()


@settings(max_examples=100, deadline=None)
@given(specs(granularities=(PerTensor(),)), st.integers(-20, 20), st.integers(0, 2**16))
def test_round_trip_is_exact_on_the_grid(spec, exponent, seed):
    grid = np.random.default_rng(seed).integers(spec.qmin, spec.qmax, 50, endpoint=True)
    zero_point = np.array(spec.midpoint if spec.symmetric else grid[0]).astype(spec.dtype.numpy)
    params = QParams(spec, np.array(np.float32(1.1) * np.float32(2.0) ** exponent), zero_point)
    q = grid.astype(spec.dtype.numpy)
    np.testing.assert_array_equal(quantize(dequantize(q, params), params), q)


@settings(max_examples=60, deadline=None)
@given(tensors(), specs())
def test_fake_quantize_is_the_trip_and_repeats_itself(x, spec):
    params = params_for(x, spec)
    once = fake_quantize(x, params)
    np.testing.assert_array_equal(once, dequantize(quantize(x, params), params))
    np.testing.assert_array_equal(fake_quantize(once, params), once)


@settings(max_examples=60, deadline=None)
@given(tensors(), st.sampled_from(GRANULARITIES))
def test_reduce_range_against_slow_groups(x, granularity):
    low, high = reduce_range(x, granularity)
    shape = scale_shape(x.shape, granularity)
    assert low.shape == high.shape == shape
    owner = expand_blocks(np.arange(low.size).reshape(shape), x.shape, getattr(granularity, "size", None))
    for group in range(low.size):
        assert low.ravel()[group] == x[owner == group].min()
        assert high.ravel()[group] == x[owner == group].max()


def test_reduce_range_ignores_what_is_not_finite():
    x = np.array([[1, np.nan, 3], [np.inf, -2, -np.inf], [np.nan, np.inf, np.nan]], np.float32)
    low, high = reduce_range(x, PerAxis(0))
    assert low.ravel().tolist() == [1, -2, 0]
    assert high.ravel().tolist() == [3, -2, 0]
    assert quantize_tensor(np.full((2, 2), np.nan, np.float32), TensorSpec(QType.INT8)).params.scale == 1.0


def test_nan_becomes_the_lowest_integer_without_a_warning():
    params = params_from_range(-1, 1, TensorSpec(QType.INT8))
    assert quantize(np.array([np.nan, np.inf, -np.inf]), params).tolist() == [-128, 127, -128]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
@pytest.mark.parametrize("granularity", [PerTensor(), PerToken()])
def test_scalars_and_empty_tensors(shape, granularity):
    tensor = quantize_tensor(np.full(shape, -2.0, np.float32), TensorSpec(QType.INT4, granularity))
    assert tensor.values.shape == shape
    assert tensor.params.scale.ndim == len(shape)
    np.testing.assert_allclose(dequantize(tensor.values, tensor.params), np.full(shape, -2.0), rtol=1e-6)


def test_scale_of_rank_zero_fits_any_rank():
    params = params_from_range(0.0, 255.0, TensorSpec(QType.UINT8))
    assert quantize(np.ones((2, 3, 4), np.float32), params).shape == (2, 3, 4)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_are_worked_on_as_float32(dtype):
    x = np.random.default_rng(0).standard_normal((8, 8)).astype(dtype)
    params = params_for(x, TensorSpec(QType.INT8, PerAxis(0)))
    np.testing.assert_array_equal(quantize(x, params), quantize(x.astype(np.float32), params))


def test_int32_keeps_more_than_a_float32_mantissa():
    spec = TensorSpec(QType.INT32, symmetric=True)
    params = QParams(spec, np.array([1.0], np.float32), np.array([0], np.int32))
    assert quantize(np.array([16777217.0, 3e9, -3e9]), params).tolist() == [16777217, 2**31 - 1, -(2**31)]
    assert dequantize(np.array([2**31 - 1], np.int32), params).item() == np.float32(2**31)


def test_grid_bits_and_narrow_range_bound_the_integers():
    x = np.linspace(-1, 1, 99, dtype=np.float32)
    q = quantize_tensor(x, TensorSpec(QType.INT8, symmetric=True, narrow_range=True, grid_bits=7)).values
    assert (q.min(), q.max()) == (-63, 63)
    q = quantize_tensor(x, TensorSpec(QType.UINT8, symmetric=True)).values
    assert q[49] == 128  # the midpoint


def test_small_types_are_stored_canonically():
    q = quantize_tensor(np.array([-8, 7], np.float32), TensorSpec(QType.INT4, symmetric=True)).values
    assert q.tobytes() == np.array([-8, 7], np.int8).astype(ml_dtypes.int4).tobytes()


@pytest.mark.parametrize("granularity", [PerAxis(2), PerBlock(-3, 4)])
def test_an_axis_outside_the_tensor_is_named(granularity):
    with pytest.raises(RecipeError, match=r"axis -?[0-9] is outside a tensor of rank 2; use -2 to 1"):
        quantize_tensor(np.zeros((2, 2), np.float32), TensorSpec(QType.INT8, granularity))


def test_a_scale_that_does_not_fit_is_refused():
    params = QParams(TensorSpec(QType.INT8, PerBlock(1, 4)), np.ones((1, 3), np.float32), np.zeros((1, 3), np.int8))
    with pytest.raises(RecipeError, match="does not fit a tensor of shape"):
        quantize(np.zeros((1, 8), np.float32), params)
    with pytest.raises(RecipeError, match="which blocks of 4 do not give"):
        expand_blocks(params.scale, (1, 8), 4)
    with pytest.raises(RecipeError, match="does not fit"):
        expand_blocks(params.scale, (8,))


def test_large_weights_are_not_copied_into_floating_point():
    import tracemalloc

    x = np.ones((1024, 2048), np.float32)
    params = params_for(x, TensorSpec(QType.INT8, PerBlock(0, 32), symmetric=True))
    tracemalloc.start()
    q = quantize(x, params)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < q.nbytes + x.nbytes / 2


@pytest.mark.parametrize("dtype", [QType.UINT2, QType.INT4, QType.UINT4])
def test_a_mirrored_grid_is_no_coarser_and_nothing_is_off_by_more_than_half_a_step(dtype):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(400, 16)) * rng.uniform(0.5, 4, (400, 1)) + rng.normal(size=(400, 1))).astype(np.float32)
    spec = TensorSpec(dtype, PerBlock(1, 16), symmetric=True)
    plain, mirrored = params_for(x, spec), params_for(x, replace(spec, mirrored=True))
    assert (mirrored.scale < 0).any() and (mirrored.scale > 0).any()
    assert (np.abs(mirrored.scale) <= plain.scale).all()
    found = dequantize(quantize(x, mirrored), mirrored)
    assert (np.abs(found - x) <= 0.50001 * np.abs(mirrored.scale)).all()
    assert np.mean((found - x) ** 2) < 0.95 * np.mean((fake_quantize(x, plain) - x) ** 2)
    zero = params_for(np.zeros((2, 16), np.float32), replace(spec, mirrored=True))
    assert (zero.scale == 1).all()


def test_float8_is_what_the_standard_says() -> None:
    x = np.concatenate([np.linspace(-600, 600, 4001), 2.0 ** np.arange(-12, 10), [0.0, np.nan]]).astype(np.float32)
    params = params_from_range(-3.0, 7.0, TensorSpec(QType.FLOAT8, symmetric=True))
    assert params.scale == np.float32(7.0 / 448)
    x *= params.scale
    type_ = TensorProto.FLOAT8E4M3FN
    zero = helper.make_tensor("z", type_, [], b"\0", raw=True)
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
        [zero, onnx.numpy_helper.from_array(np.float32(params.scale).reshape(()), "s")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    found = dequantize(quantize(x, params), params)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(fake_quantize(x, params), expected)
    assert quantize(x, params).dtype == ml_dtypes.float8_e4m3fn


def test_float8_has_no_zero_point() -> None:
    with pytest.raises(RecipeError, match="float8e4m3fn has no zero point; make it symmetric"):
        TensorSpec(QType.FLOAT8)
