"""``MatMulNBitsQuantizer`` of ``onnxruntime.quantization.matmul_nbits_quantizer``: weights alone, in blocks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxq import api
from onnxq.compat.onnxruntime.quant_types import QuantFormat, UnsupportedError, as_member
from onnxq.errors import RecipeError
from onnxq.graph import walk
from onnxq.graph.files import io, saving
from onnxq.graph.types import Proto
from onnxq.pipeline.float_model import Source
from onnxq.recipe.recipe import Recipe
from onnxq.report.results import QuantizeResult

_AXES = {"MatMul": 0, "Gather": 1}


class WeightOnlyQuantConfig:
    """How weights are rounded; the base of the algorithms' own configurations."""

    def __init__(
        self,
        algorithm: str,
        quant_format: Any,
        op_types_to_quantize: Sequence[str] | None = None,
        quant_axes: Sequence[tuple[str, int]] | None = None,
        customized_weight_config: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.algorithm = algorithm
        self.quant_format = as_member(QuantFormat, quant_format, "quant_format")
        self.op_types_to_quantize = set(op_types_to_quantize or ("MatMul",))
        self.quant_axes = dict(quant_axes or _AXES)
        self.customized_weight_config = dict(customized_weight_config or {})
        if any(self.quant_axes.get(kind, axis) != axis for kind, axis in _AXES.items()):
            raise UnsupportedError(
                f"quant_axes {self.quant_axes}: kernels take blocks along the inputs of a layer, {_AXES}; leave it out"
            )


class DefaultWeightOnlyQuantConfig(WeightOnlyQuantConfig):
    """Rounding to nearest, in blocks."""

    def __init__(
        self,
        block_size: int = 128,
        is_symmetric: bool = False,
        accuracy_level: int | None = None,
        quant_format: Any = QuantFormat.QOperator,
        op_types_to_quantize: Sequence[str] | None = None,
        quant_axes: Sequence[tuple[str, int]] | None = None,
        bits: int = 4,
        channel_wised_quantize: bool = False,
    ) -> None:
        super().__init__("DEFAULT", quant_format, op_types_to_quantize, quant_axes)
        if channel_wised_quantize and self.quant_format is QuantFormat.QOperator:
            raise NotImplementedError("channel_wised_quantize: QuantFormat.QOperator has blocks; pass QuantFormat.QDQ")
        self.block_size = 0 if channel_wised_quantize else block_size
        self.is_symmetric = is_symmetric
        self.accuracy_level = accuracy_level
        self.bits = bits


class _WithRatios(WeightOnlyQuantConfig):
    """What takes ``ratios`` of clipping in onnxruntime."""

    _algorithm: str

    def __init__(
        self,
        ratios: Mapping[str, Any] | None = None,
        quant_format: Any = QuantFormat.QOperator,
        op_types_to_quantize: Sequence[str] | None = None,
        customized_weight_config: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(self._algorithm, quant_format, op_types_to_quantize, None, customized_weight_config)
        if ratios:
            raise UnsupportedError(
                "ratios: clipping is found by error with KQuantWeightOnlyQuantConfig; leave them out"
            )


class RTNWeightOnlyQuantConfig(_WithRatios):
    """Rounding to nearest; ``ratios`` of clipping are not taken, k-quant finds its own."""

    _algorithm = "RTN"


class KQuantWeightOnlyQuantConfig(_WithRatios):
    """k-quant: scales and zero points searched for the least squared error."""

    _algorithm = "k_quant"


class GPTQWeightOnlyQuantConfig(WeightOnlyQuantConfig):
    """GPTQ; columns go in the order of their importance and clipping is by error, whatever is asked for."""

    def __init__(
        self,
        calibration_data_reader: Any = None,
        percdamp: float = 0.01,
        block_size: int = 128,
        actorder: bool = False,
        mse: bool = False,
        perchannel: bool = True,
        quant_format: Any = QuantFormat.QOperator,
        op_types_to_quantize: Sequence[str] | None = None,
    ) -> None:
        super().__init__("GPTQ", quant_format, op_types_to_quantize)
        self.calibration_data_reader = calibration_data_reader
        self.percdamp = percdamp
        self.block_size = block_size


class HQQWeightOnlyQuantConfig(WeightOnlyQuantConfig):
    """HQQ: zero points by half-quadratic optimization, without data."""

    def __init__(
        self,
        block_size: int = 128,
        bits: int = 4,
        axis: int = 1,
        quant_format: Any = QuantFormat.QOperator,
        op_types_to_quantize: Sequence[str] | None = None,
        quant_axes: Sequence[tuple[str, int]] | None = None,
    ) -> None:
        super().__init__("HQQ", quant_format, op_types_to_quantize, quant_axes)
        if axis != 1:
            raise UnsupportedError(f"axis {axis}: kernels take blocks along the inputs of a layer; pass 1")
        self.block_size = block_size
        self.bits = bits


_ALGORITHMS = {"DEFAULT": "rtn", "RTN": "rtn", "k_quant": "kquant", "GPTQ": "gptq", "HQQ": "hqq"}


@dataclass(frozen=True)
class _Asked:
    """What the quantizer is asked for beside its configuration, which wins where it says the same.

    Attributes:
        bits: of a weight, those of the configuration where it has some.
        block_size: elements that share a scale.
        symmetric: whether zero lies in the middle of a block's range.
        accuracy_level: of the kernel.
        include: names of the only nodes to quantize; empty for all.
        exclude: names of nodes that stay float.
    """

    bits: int = 4
    block_size: int = 128
    symmetric: bool = False
    accuracy_level: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


def _checked_bits(config: WeightOnlyQuantConfig, otherwise: int) -> int:
    bits: int = getattr(config, "bits", otherwise)
    if bits not in (2, 4, 8):
        raise UnsupportedError(f"bits {bits}: only 2, 4 and 8 bits are packed; pass one of these")
    return bits


class QuantizedModel:
    """What a quantizer holds: the model, and a way to write it."""

    def __init__(self, model: Proto) -> None:
        self.model = model

    def opset_import(self) -> Sequence[Any]:
        """The operator sets of the model."""
        found: Sequence[Any] = self.model.opset_import
        return found

    def graph(self) -> Any:
        """The graph of the model."""
        return self.model.graph

    def save_model_to_file(self, output_path: str | os.PathLike[str], use_external_data_format: bool = False) -> None:
        """Write the model, its weights beside it if asked for or above 2 GB."""
        saving.save(io.load(self.model), output_path, threshold=0 if use_external_data_format else io.PROTOBUF_LIMIT)


class MatMulNBitsQuantizer:
    """Pack the weights of MatMul, and of Gather if named, in blocks of 2, 4 or 8 bits.

    Attributes:
        model: the float model, and after `process` the quantized one.
        result: after `process`, what `onnxq.quantize` returns.
    """

    def __init__(
        self,
        model: Source,
        bits: int = 4,
        block_size: int = 128,
        is_symmetric: bool = False,
        accuracy_level: int | None = None,
        nodes_to_exclude: Sequence[str] | None = None,
        nodes_to_include: Sequence[str] | None = None,
        quant_format: Any = QuantFormat.QOperator,
        op_types_to_quantize: Sequence[str] | None = None,
        quant_axes: Sequence[tuple[str, int]] | None = None,
        channel_wised_quantize: bool = False,
        algo_config: WeightOnlyQuantConfig | None = None,
    ) -> None:
        if algo_config is None:
            algo_config = DefaultWeightOnlyQuantConfig(
                block_size,
                is_symmetric,
                accuracy_level,
                quant_format,
                op_types_to_quantize,
                quant_axes,
                bits,
                channel_wised_quantize,
            )
        self.algo_config = algo_config
        self.bits, self.block_size = bits, block_size
        self.is_symmetric, self.accuracy_level = is_symmetric, accuracy_level
        self.nodes_to_exclude, self.nodes_to_include = list(nodes_to_exclude or ()), list(nodes_to_include or ())
        self._asked = _Asked(
            _checked_bits(algo_config, bits),
            block_size,
            is_symmetric,
            accuracy_level,
            tuple(self.nodes_to_include),
            tuple(self.nodes_to_exclude),
        )
        self.model = QuantizedModel(io.to_proto(io.load(model)))
        self.result: QuantizeResult | None = None

    def process(self) -> None:
        """Quantize; `model` holds the result.

        Raises:
            OnnxqError: as `onnxq.quantize`.
        """
        self.result = _packed(self.model.model, None, self.algo_config, self._asked)
        assert self.result.model is not None
        self.model = QuantizedModel(self.result.model)


def quantize_weights(model: Source, output: str | os.PathLike[str], config: WeightOnlyQuantConfig) -> QuantizeResult:
    """Pack the weights of a model by a configuration, and write it.

    Raises:
        OnnxqError: as `onnxq.quantize`.
    """
    return _packed(model, Path(output), config, _Asked(_checked_bits(config, _Asked.bits)))


def _packed(model: Source, output: Path | None, config: WeightOnlyQuantConfig, asked: _Asked) -> QuantizeResult:
    nodes = list(walk.all_nodes(io.load(model).graph))
    kinds = sorted(config.op_types_to_quantize & {node.op_type for node in nodes})
    if not kinds:
        raise RecipeError(f"op_types_to_quantize: the model has none of {sorted(config.op_types_to_quantize)}")
    rules = [
        {"match": name, **{key: wish[key] for key in ("bits", "block_size") if key in wish}}
        for name, wish in config.customized_weight_config.items()
        if any(node.name == name for node in nodes)
    ]
    return api.quantize(
        model,
        output,
        calibration=getattr(config, "calibration_data_reader", None),
        recipe=Recipe.from_mapping(
            {
                "preset": {2: "w2", 4: "w4", 8: "w8"}[asked.bits],
                "bits": asked.bits,
                "block_size": getattr(config, "block_size", asked.block_size),
                "symmetric": getattr(config, "is_symmetric", asked.symmetric),
                "accuracy_level": getattr(config, "accuracy_level", asked.accuracy_level),
                "algorithm": _ALGORITHMS[config.algorithm],
                "format": "qoperator" if config.quant_format is QuantFormat.QOperator else "qdq",
                "op_types": kinds,
                "include": [name for name in asked.include if any(node.name == name for node in nodes)],
                "exclude": [name for name in asked.exclude if any(node.name == name for node in nodes)],
                "rules": rules,
            }
        ),
        benchmark=False,
    )
