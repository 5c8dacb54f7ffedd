"""The words of ``onnxruntime.quantization``: types, formats, range methods, readers and configurations."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from onnxq.errors import RecipeError


class UnsupportedError(RecipeError, ValueError):
    """A wish of ``onnxruntime.quantization`` that has no equal here; a ValueError too, as scripts expect."""


class QuantType(Enum):
    """Element types. Activations and weights of 8 bits get the signedness that the target's kernels want."""

    QInt8 = 0
    QUInt8 = 1
    QFLOAT8E4M3FN = 2
    QInt16 = 3
    QUInt16 = 4
    QInt4 = 5
    QUInt4 = 6

    def __str__(self) -> str:
        return self.name

    @staticmethod
    def from_string(t: str) -> QuantType:
        """The type of a name, as command lines use it.

        Raises:
            ValueError: there is no such type.
        """
        found: QuantType = _named(QuantType, t)
        return found

    @property
    def tensor_type(self) -> int:
        """The number of the type in ``onnx.TensorProto``."""
        return {"INT8": 3, "UINT8": 2, "FLOAT8E4M3FN": 17, "INT16": 5, "UINT16": 4, "INT4": 22, "UINT4": 21}[
            self.name[1:].upper()
        ]


class QuantFormat(Enum):
    """What is written: integer operators, or QuantizeLinear and DequantizeLinear around float ones."""

    QOperator = 0
    QDQ = 1

    def __str__(self) -> str:
        return self.name

    @staticmethod
    def from_string(format: str) -> QuantFormat:
        """The format of a name.

        Raises:
            ValueError: there is no such format.
        """
        found: QuantFormat = _named(QuantFormat, format)
        return found


class CalibrationMethod(Enum):
    """How ranges are found."""

    MinMax = 0
    Entropy = 1
    Percentile = 2
    Distribution = 3


def _named(kind: Any, name: str) -> Any:
    try:
        return kind[name]
    except KeyError:
        there_are = ", ".join(member.name for member in kind)
        raise UnsupportedError(f"{kind.__name__} {name!r}: there is no such name; there are {there_are}") from None


def as_member(kind: Any, given: object, argument: str) -> Any:
    """A member of an enumeration: of one here or in ``onnxruntime.quantization``, or by name or tensor type.

    Raises:
        UnsupportedError: it is none.
    """
    if kind is QuantType and isinstance(given, int):  # a number of onnx.TensorProto, as older scripts have it
        given = next((member for member in QuantType if member.tensor_type == given), given)
    if isinstance(given, str) and given in kind.__members__:
        return kind[given]
    name = getattr(given, "name", None)
    if isinstance(given, Enum) and name in kind.__members__:
        return kind[name]
    raise UnsupportedError(
        f"{argument}: is {given!r}, not a {kind.__name__}; pass a member, as {kind.__name__}.{next(iter(kind)).name}"
    )


class CalibrationDataReader(metaclass=abc.ABCMeta):
    """Gives samples one by one; anything with ``get_next()`` counts as one."""

    @classmethod
    def __subclasshook__(cls, subclass: type) -> bool:
        return callable(getattr(subclass, "get_next", None)) or NotImplemented

    @abc.abstractmethod
    def get_next(self) -> Mapping[str, Any] | None:
        """The next sample, arrays by input name; None at the end."""

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return self

    def __next__(self) -> Mapping[str, Any]:
        sample = self.get_next()
        if sample is None:
            raise StopIteration
        return sample

    def __len__(self) -> int:
        raise NotImplementedError

    def set_range(self, start_index: int, end_index: int) -> None:
        """Read a part only; not needed here, since memory does not grow with the number of samples."""
        raise NotImplementedError


class QuantConfig:
    """What `StaticQuantConfig` and `DynamicQuantConfig` have in common."""

    def __init__(
        self,
        activation_type: QuantType = QuantType.QUInt8,
        weight_type: QuantType = QuantType.QInt8,
        op_types_to_quantize: Sequence[str] | None = None,
        nodes_to_quantize: Sequence[str] | None = None,
        nodes_to_exclude: Sequence[str] | None = None,
        per_channel: bool = False,
        reduce_range: bool = False,
        use_external_data_format: bool = False,
    ) -> None:
        self.op_types_to_quantize = list(op_types_to_quantize or [])
        self.per_channel = per_channel
        self.reduce_range = reduce_range
        self.weight_type = weight_type
        self.activation_type = activation_type
        self.nodes_to_quantize = list(nodes_to_quantize or [])
        self.nodes_to_exclude = list(nodes_to_exclude or [])
        self.use_external_data_format = use_external_data_format


class StaticQuantConfig(QuantConfig):
    """Arguments of ``quantize_static`` as one object; see there."""

    def __init__(
        self,
        calibration_data_reader: Any,
        calibrate_method: CalibrationMethod = CalibrationMethod.MinMax,
        quant_format: QuantFormat = QuantFormat.QDQ,
        activation_type: QuantType = QuantType.QInt8,
        weight_type: QuantType = QuantType.QInt8,
        op_types_to_quantize: Sequence[str] | None = None,
        nodes_to_quantize: Sequence[str] | None = None,
        nodes_to_exclude: Sequence[str] | None = None,
        per_channel: bool = False,
        reduce_range: bool = False,
        use_external_data_format: bool = False,
        calibration_providers: Sequence[Any] | None = None,
        extra_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            activation_type,
            weight_type,
            op_types_to_quantize,
            nodes_to_quantize,
            nodes_to_exclude,
            per_channel,
            reduce_range,
            use_external_data_format,
        )
        self.calibration_data_reader = calibration_data_reader
        self.calibrate_method = calibrate_method
        self.quant_format = quant_format
        self.calibration_providers = calibration_providers
        self.extra_options = dict(extra_options or {})


class DynamicQuantConfig(QuantConfig):
    """Arguments of ``quantize_dynamic`` as one object; see there."""

    def __init__(
        self,
        weight_type: QuantType = QuantType.QInt8,
        op_types_to_quantize: Sequence[str] | None = None,
        nodes_to_quantize: Sequence[str] | None = None,
        nodes_to_exclude: Sequence[str] | None = None,
        per_channel: bool = False,
        reduce_range: bool = False,
        use_external_data_format: bool = False,
        extra_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            QuantType.QUInt8,
            weight_type,
            op_types_to_quantize,
            nodes_to_quantize,
            nodes_to_exclude,
            per_channel,
            reduce_range,
            use_external_data_format,
        )
        self.extra_options = dict(extra_options or {})
