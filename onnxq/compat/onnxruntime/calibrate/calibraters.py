"""A model that gives what is to be measured, run over a reader's samples; and the extrema that come out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.compat.onnxruntime.calibrate.tensor_data import TensorsData
from onnxq.compat.onnxruntime.quant_types import CalibrationMethod
from onnxq.core.dtypes import Array
from onnxq.graph.files import io, saving
from onnxq.graph.types import Model
from onnxq.graph.views.reduced import add_extrema, float_values
from onnxq.runtime.session import Session, provider_named, providers_from, session_of

Place = str | os.PathLike[str]


class CalibraterBase:
    """A model that is to be measured; see `create_calibrator`."""

    def __init__(
        self,
        model_path: Place,
        op_types_to_calibrate: Sequence[str] | None = None,
        augmented_model_path: Place = "augmented_model.onnx",
        symmetric: bool = False,
        use_external_data_format: bool = False,
        per_channel: bool = False,
    ) -> None:
        """Read the model.

        Args:
            model_path: file of the float model.
            op_types_to_calibrate: values that operators of these types read or write; None for all.
            augmented_model_path: where the model with its further outputs is written.
            symmetric: zero in the middle of each range.
            use_external_data_format: weights of that model go into a file beside it.
            per_channel: a range for each index of axis 1.

        Raises:
            ValueError: ``model_path`` is no path.
            ModelError: the model cannot be read.
        """
        if not isinstance(model_path, str | os.PathLike):
            raise ValueError(f"model_path: is a {type(model_path).__name__}; it should be model path.")
        self._source = io.load(model_path)
        self._augmented: Model = self._source
        self.op_types_to_calibrate = op_types_to_calibrate
        self.augmented_model_path = augmented_model_path
        self.symmetric = symmetric
        self.use_external_data_format = use_external_data_format
        self.per_channel = per_channel
        self.infer_session: Session | None = None
        self.execution_providers: Sequence[Any] = ["CPUExecutionProvider"]
        self.tensors_to_calibrate: list[str] = []

    def set_execution_providers(self, execution_providers: Sequence[Any] = ("CPUExecutionProvider",)) -> None:
        """Run on other providers from here on."""
        self.execution_providers = execution_providers
        self.create_inference_session()

    def create_inference_session(self) -> None:
        """Open the model with its further outputs, without optimizations."""
        first = next(iter(self.execution_providers), "CPUExecutionProvider")
        named = provider_named(str(first[0] if isinstance(first, tuple) else first))
        self.infer_session = session_of(self._augmented, optimize=False, providers=providers_from(named))

    def get_augment_model(self) -> Any:
        """The model with its further outputs, an ``onnx.ModelProto``."""
        return io.to_proto(self._augmented)

    def augment_graph(self) -> None:
        """Add outputs to the model and write it."""
        raise NotImplementedError

    def collect_data(self, data_reader: Any) -> None:
        """Run the samples of a reader; may be called several times."""
        raise NotImplementedError

    def compute_data(self) -> TensorsData:
        """The ranges of what has been collected."""
        raise NotImplementedError

    def _select(self) -> Model:
        """A copy of the model; the names of what is measured are noted."""
        copy, self.tensors_to_calibrate = float_values(self._source, tuple(self.op_types_to_calibrate or ()))
        return copy

    def _write(self, model: Model) -> None:
        self._augmented = model
        threshold = 0 if self.use_external_data_format else io.PROTOBUF_LIMIT
        saving.save(model, Path(self.augmented_model_path), threshold=threshold)

    def _runs(self, data_reader: Any, outputs: Sequence[str]) -> Iterator[list[Any]]:
        """What the outputs are for each sample of a reader."""
        if self.infer_session is None:
            self.create_inference_session()
        assert self.infer_session is not None
        while feed := data_reader.get_next():
            yield self.infer_session.run({name: np.asarray(array) for name, array in feed.items()}, list(outputs))


class MinMaxCalibrater(CalibraterBase):
    """Extrema, or means of the samples' extrema."""

    def __init__(
        self,
        model_path: Place,
        op_types_to_calibrate: Sequence[str] | None = None,
        augmented_model_path: Place = "augmented_model.onnx",
        symmetric: bool = False,
        use_external_data_format: bool = False,
        moving_average: bool = False,
        averaging_constant: float = 0.01,
        max_intermediate_outputs: int | None = None,
        per_channel: bool = False,
    ) -> None:
        """As `CalibraterBase`.

        Args:
            model_path: see there, and likewise what is not said here.
            op_types_to_calibrate: see there.
            augmented_model_path: see there.
            symmetric: see there.
            use_external_data_format: see there.
            moving_average: the mean of the extrema of a call's samples, and from one call of `collect_data` to the
                next ``old + averaging_constant · (new − old)``.
            averaging_constant: 0…1.
            max_intermediate_outputs: without effect; memory does not grow with the samples.
            per_channel: see there.

        Raises:
            ValueError: the constant is not in 0…1, or ``model_path`` no path.
        """
        super().__init__(
            model_path, op_types_to_calibrate, augmented_model_path, symmetric, use_external_data_format, per_channel
        )
        if moving_average and not 0 <= averaging_constant <= 1:
            raise ValueError("Invalid averaging constant, which should not be < 0 or > 1.")
        self.moving_average = moving_average
        self.averaging_constant = averaging_constant
        self.max_intermediate_outputs = max_intermediate_outputs
        self.calibrate_tensors_range: TensorsData | None = None
        self._pairs: dict[str, tuple[str, str]] = {}

    def augment_graph(self) -> None:
        """Add a ReduceMin and a ReduceMax for each value, and write the model."""
        copy = self._select()
        self._pairs = add_extrema(copy, self.tensors_to_calibrate, per_channel=self.per_channel)
        self._write(copy)

    def collect_data(self, data_reader: Any) -> None:
        """Run the samples of a reader and bring their extrema into the ranges.

        Raises:
            ValueError: there is not one sample.
        """
        outputs = [output for pair in self._pairs.values() for output in pair]
        ends = [_Fold(mean=self.moving_average, largest=bool(index % 2)) for index in range(len(outputs))]
        count = 0
        for count, arrays in enumerate(self._runs(data_reader, outputs), 1):  # noqa: B007
            for end, array in zip(ends, arrays, strict=True):
                end.add(array)
        if count == 0 and self.calibrate_tensors_range is None:
            raise ValueError("No data is collected.")
        if count:
            found = {name: (ends[2 * i].result(), ends[2 * i + 1].result()) for i, name in enumerate(self._pairs)}
            self._merge({name: self._centred(*pair) for name, pair in found.items()})

    def _centred(self, low: Array, high: Array) -> tuple[Array, Array]:
        if not self.symmetric:
            return low, high
        size = np.fmax(np.abs(low), np.abs(high))
        return -size, size

    def _merge(self, new: dict[str, tuple[Array, Array]]) -> None:
        old = self.calibrate_tensors_range
        if old is not None:
            new = {name: self._joined(old[name].range_value, pair) for name, pair in new.items()}
        self.calibrate_tensors_range = TensorsData(CalibrationMethod.MinMax, new)

    def _joined(self, old: tuple[Array, Array], new: tuple[Array, Array]) -> tuple[Array, Array]:
        if not self.moving_average:
            return np.minimum(old[0], new[0]), np.maximum(old[1], new[1])
        share = old[0].dtype.type(self.averaging_constant)
        return old[0] + share * (new[0] - old[0]), old[1] + share * (new[1] - old[1])

    def compute_data(self) -> TensorsData:
        """The ranges.

        Raises:
            ValueError: nothing was collected.
        """
        if self.calibrate_tensors_range is None:
            raise ValueError("No data is collected.")
        return self.calibrate_tensors_range


class _Fold:
    """Smallest, largest or mean of arrays that come one by one, NaN left out."""

    def __init__(self, *, mean: bool, largest: bool) -> None:
        self._mean, self._largest = mean, largest
        self._kept: Any = None
        self._seen: Any = 0
        self._kind: Any = np.float32

    def add(self, array: Array) -> None:
        self._kind = array.dtype
        if self._mean:
            self._kept = np.nan_to_num(array.astype(np.float64)) + (0.0 if self._kept is None else self._kept)
            self._seen = self._seen + ~np.isnan(array)
        elif self._kept is None:
            self._kept = array
        else:
            self._kept = (np.fmax if self._largest else np.fmin)(self._kept, array)

    def result(self) -> Array:
        found: Array = np.asarray(self._kept / np.maximum(self._seen, 1) if self._mean else self._kept)
        return found.astype(self._kind)
