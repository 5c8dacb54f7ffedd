"""``quantize_static``, ``quantize_dynamic``, ``quantize`` and ``quant_pre_process`` of ``onnxruntime.quantization``."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxq import api
from onnxq.compat.onnxruntime.asked_types import (
    TARGETS,
    asks_unsigned,
    form_of,
    preset_of,
    ranges_of,
    target_of,
    weight_keys,
    wide_keys,
)
from onnxq.compat.onnxruntime.integer_constants import floats_of
from onnxq.compat.onnxruntime.quant_types import (
    CalibrationMethod,
    QuantConfig,
    QuantFormat,
    QuantType,
    UnsupportedError,
    as_member,
)
from onnxq.compat.onnxruntime.script_calls import nodes_of, provider_of, quantized, samples_of, settled, threshold
from onnxq.compat.onnxruntime.tensors import asks_other_engine, narrow_weights, weights_apart
from onnxq.compat.onnxruntime.wishes import wishes_of
from onnxq.graph import walk
from onnxq.graph.files import io, saving
from onnxq.graph.prepare.whole.opset import raise_to
from onnxq.pipeline.clock import Clock
from onnxq.pipeline.float_model import Source, load_and_prepare
from onnxq.report.results import QuantizeResult
from onnxq.targets import target_named

logger = logging.getLogger("onnxq.compat.onnxruntime")

_OLDEST = 11
"""The operator set that onnxruntime's quantizer, and its pre-processing with it, raises older models to."""


_WIDE_SINCE = 21
"""The operator set whose QuantizeLinear knows 16 bits."""


def quantize_static(
    model_input: Source,
    model_output: str | os.PathLike[str],
    calibration_data_reader: Any = None,
    quant_format: Any = QuantFormat.QDQ,
    op_types_to_quantize: Sequence[str] | None = None,
    per_channel: bool = False,
    reduce_range: bool = False,
    activation_type: Any = QuantType.QInt8,
    weight_type: Any = QuantType.QInt8,
    nodes_to_quantize: Sequence[str] | None = None,
    nodes_to_exclude: Sequence[str] | None = None,
    use_external_data_format: bool = False,
    calibrate_method: Any = CalibrationMethod.MinMax,
    calibration_providers: Sequence[Any] | None = None,
    extra_options: Mapping[str, Any] | None = None,
    calibration_cache_path: str | os.PathLike[str] | None = None,
) -> QuantizeResult:
    """Quantize weights and activations with ranges from samples, as the preset ``w8a8`` does.

    Args:
        model_input: path or ``onnx.ModelProto``; pre-processing is not needed.
        model_output: file to write.
        calibration_data_reader: gives samples by ``get_next()``; any form that `onnxq.quantize` takes will do.
        quant_format: QDQ or QOperator.
        op_types_to_quantize: operators to quantize, faster or not; None takes what pays, and all where nothing does.
        per_channel: scales of weights by output channel.
        reduce_range: weights of 7 bits, for processors without VNNI (target ``cpu-avx2``).
        activation_type: 8 bits; written with the signedness of the target's kernels, on the same 256 steps. Or 16, for
            NPUs; a CPU has no kernels for those. Or float8, with weights of float8, for TensorRT.
        weight_type: 8 bits. Or 4, with activations of 16, for QNN: symmetric int4. Or 16 with 16.
        nodes_to_quantize: only these nodes, faster or not.
        nodes_to_exclude: nodes that stay float.
        use_external_data_format: weights go into a file beside the model, whatever its size.
        calibrate_method: MinMax, Entropy, Percentile, or Distribution, which of integers is MinMax around zero.
        calibration_providers: execution provider that runs the float model; the first one counts.
        extra_options: see the documentation for what each becomes.
        calibration_cache_path: file of statistics (``.npz``), written if it is not there, and then used again.

    Returns:
        What `onnxq.quantize` returns; onnxruntime's own function returns nothing.

    Raises:
        UnsupportedError: a wish that has no equal here; a ValueError.
        OnnxqError: as `onnxq.quantize`; nothing was written.
    """
    preset = preset_of(activation_type, weight_type)
    method = as_member(CalibrationMethod, calibrate_method, "calibrate_method")
    cache = None if calibration_cache_path is None else Path(calibration_cache_path)
    if calibration_data_reader is None and (cache is None or not cache.is_file()):
        raise UnsupportedError(
            "Either calibration_data_reader or an existing calibration_cache_path must be provided; pass a reader"
        )
    kinds = (as_member(QuantType, activation_type, "activation_type"), as_member(QuantType, weight_type, "weight_type"))
    model_input, given = floats_of(model_input)
    processor = preset not in TARGETS and not asks_other_engine(extra_options)
    unsigned = processor and asks_unsigned(preset, kinds[1])
    extra_options, rules, values = weights_apart(model_input, extra_options, preset, kinds, processor)
    wishes = {"preset": preset, "rules": rules, **wishes_of(extra_options)}
    wishes["values"] = [*given, *wishes.get("values", []), *values]
    wishes |= form_of(preset, as_member(QuantFormat, quant_format, "quant_format"))
    wishes |= ranges_of(preset, method, average=wishes.pop("average", False))
    wishes["target"] = target_of(wishes, reduce_range)
    symmetric = extra_options.get("WeightSymmetric")  # unsaid, what is signed is symmetric, and what has channels
    # Of 7 bits, the half step that the rounding of a zero point takes from one end is 0.8 % of all large weights there.
    even = not unsigned or per_channel or reduce_range if symmetric is None else bool(symmetric)
    wishes["values"] = [*narrow_weights(model_input, wishes["values"], even), *wishes["values"]]
    keys = {"own_grids": True, **weight_keys(unsigned, even=even), **wide_keys(*kinds, wishes["target"])}
    if _is_wide(wishes) and walk.opset(io.load(model_input)) < _WIDE_SINCE:
        keys["own_pairs"] = True  # those of 16 bits have to be, and so all are of one domain, as there
    wishes["recipe_keys"] = {**keys, **wishes.get("recipe_keys", {})}
    samples = None if calibration_data_reader is None else samples_of(model_input, calibration_data_reader)
    if cache is not None:
        if not cache.is_file():
            provider = provider_of(calibration_providers)
            api.calibrate(model_input, cache, calibration=samples, target=wishes["target"], provider=provider)
        wishes["statistics"] = cache
    wishes |= nodes_of(model_input, op_types_to_quantize, nodes_to_quantize, nodes_to_exclude, wishes)
    wishes["external_data"] = use_external_data_format
    if preset != "fp8":  # whose weights have one scale
        wishes["per_channel"] = per_channel
    return settled(quantized(model_input, model_output, wishes, calibration=samples))


def quantize_dynamic(
    model_input: Source,
    model_output: str | os.PathLike[str],
    op_types_to_quantize: Sequence[str] | None = None,
    per_channel: bool = False,
    reduce_range: bool = False,
    weight_type: Any = QuantType.QInt8,
    nodes_to_quantize: Sequence[str] | None = None,
    nodes_to_exclude: Sequence[str] | None = None,
    use_external_data_format: bool = False,
    extra_options: Mapping[str, Any] | None = None,
) -> QuantizeResult:
    """Quantize weights, and activations at inference, as the preset ``w8a8-dynamic`` does.

    Args:
        model_input: path or ``onnx.ModelProto``.
        model_output: file to write.
        op_types_to_quantize: as for `quantize_static`.
        per_channel: as for `quantize_static`.
        reduce_range: as for `quantize_static`.
        weight_type: 8 bits; written as symmetric int8.
        nodes_to_quantize: as for `quantize_static`.
        nodes_to_exclude: as for `quantize_static`.
        use_external_data_format: as for `quantize_static`.
        extra_options: as for `quantize_static`.

    Raises:
        UnsupportedError: a wish that has no equal here; a ValueError.
        OnnxqError: as `onnxq.quantize`; nothing was written.
    """
    if preset_of(QuantType.QUInt8, weight_type) != "w8a8":
        raise UnsupportedError(f"weight_type {weight_type}: activations of 8 bits at inference; pass QInt8 or QUInt8")
    wishes = {**wishes_of(extra_options), "preset": "w8a8-dynamic"}
    for static in (
        "average",
        "insist",
        "symmetric",
        "smooth",
        "percentile",
        "constant_products",
        "values",
        "recipe_keys",
        "float_outputs_of",
    ):
        wishes.pop(static, None)  # activations have no ranges here, and products of two activations stay float
    wishes["target"] = "cpu-avx2" if reduce_range else "cpu"
    wishes |= nodes_of(model_input, op_types_to_quantize, nodes_to_quantize, nodes_to_exclude, wishes)
    wishes["external_data"] = use_external_data_format
    return settled(quantized(model_input, model_output, wishes, per_channel=per_channel))


def quantize(model_input: Source, model_output: str | os.PathLike[str], quant_config: Any) -> QuantizeResult:
    """Quantize by a configuration: a `StaticQuantConfig`, a `DynamicQuantConfig` or one of weights alone.

    Raises:
        TypeError: it is none of these.
        OnnxqError: as for the function that it stands for.
    """
    from onnxq.compat.onnxruntime.matmul_nbits_quantizer import WeightOnlyQuantConfig, quantize_weights

    if isinstance(quant_config, WeightOnlyQuantConfig):
        return quantize_weights(model_input, model_output, quant_config)
    kinds = {kind.__name__ for kind in type(quant_config).__mro__}  # onnxruntime's own, too
    given = dict(getattr(quant_config, "__dict__", {}))
    if "StaticQuantConfig" in kinds:
        return quantize_static(model_input, model_output, **given)
    if "DynamicQuantConfig" in kinds:
        given.pop("activation_type")
        return quantize_dynamic(model_input, model_output, **given)
    what = "bare QuantConfig" if isinstance(quant_config, QuantConfig) else type(quant_config).__name__
    raise TypeError(
        f"quant_config: is a {what}; pass a StaticQuantConfig, a DynamicQuantConfig or a WeightOnlyQuantConfig"
    )


def quant_pre_process(
    input_model: Source | None = None,
    output_model_path: str | os.PathLike[str] | None = None,
    skip_optimization: bool = False,
    skip_onnx_shape: bool = False,
    skip_symbolic_shape: bool = False,
    auto_merge: bool = False,
    int_max: int = 2**31 - 1,
    guess_output_rank: bool = False,
    verbose: int = 0,
    save_as_external_data: bool = False,
    all_tensors_to_one_file: bool = False,
    external_data_location: str | None = None,
    external_data_size_threshold: int = 1024,
    **deprecated_kwargs: Any,
) -> None:
    """Write the float model as onnxq cleans it up before it quantizes; the same numbers, often faster already.

    Quantizing does this by itself, so that a script may leave the call out.

    Args:
        input_model: path or ``onnx.ModelProto``.
        output_model_path: file to write.
        skip_optimization: write the model as it is, but for operator sets before 11, which are raised.
        skip_onnx_shape: without effect; shapes come from a run.
        skip_symbolic_shape: without effect.
        auto_merge: without effect.
        int_max: without effect.
        guess_output_rank: without effect.
        verbose: without effect.
        save_as_external_data: weights go into a file beside the model, whatever its size.
        all_tensors_to_one_file: without effect; they always do.
        external_data_location: not supported; the name depends on the weights, so that no reader sees a mixture.
        external_data_size_threshold: without effect.
        deprecated_kwargs: ``input_model_path``, an older name of ``input_model``.

    Raises:
        UnsupportedError: no model, no output, or a place for weights.
        OnnxqError: the model cannot be used.
    """
    source = deprecated_kwargs.pop("input_model_path", None) if input_model is None else input_model
    if source is None or output_model_path is None:
        missing = "input_model" if source is None else "output_model_path"
        raise UnsupportedError(f"quant_pre_process: {missing} is missing; pass a path")
    if external_data_location is not None:
        raise UnsupportedError("external_data_location: the weights' file is named by its content; leave it out")
    path = Path(output_model_path)
    saving.check_destination(path, (source,))
    model = io.load(source)
    notes: list[str] = []
    if not skip_optimization:
        model = load_and_prepare(source, target_named("cpu"), Clock(None)).model
    elif raise_to(model, _OLDEST, notes):
        logger.info("quant_pre_process: raised to operator set %d", _OLDEST)
    for line in notes:
        logger.warning("quant_pre_process: %s", line)
    place = source if isinstance(source, str | os.PathLike) else None
    saving.save(model, path, source=place, **threshold(save_as_external_data))


def _is_wide(wishes: Mapping[str, Any]) -> bool:
    """Whether some value has 16 bits."""
    return wishes["preset"] in ("w8a16", "w4a16") or any(
        16 in (rule.get("bits"), rule.get("convert")) for rule in wishes["values"]
    )
