"""``create_calibrator``, and the calibraters that count elements in histograms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxq.compat.onnxruntime.calibrate.calibraters import CalibraterBase, MinMaxCalibrater, Place
from onnxq.compat.onnxruntime.calibrate.collectors import HistogramCollector
from onnxq.compat.onnxruntime.calibrate.tensor_data import TensorsData
from onnxq.compat.onnxruntime.quant_types import CalibrationMethod, as_member
from onnxq.core.dtypes import Array
from onnxq.graph.views.reduced import add_outputs


class HistogramCalibrater(CalibraterBase):
    """Ranges from histograms; see `HistogramCollector`."""

    _METHOD: CalibrationMethod | None = None

    def __init__(
        self,
        model_path: Place,
        op_types_to_calibrate: Sequence[str] | None = None,
        augmented_model_path: Place = "augmented_model.onnx",
        use_external_data_format: bool = False,
        method: str = "percentile",
        symmetric: bool = False,
        num_bins: int = 128,
        num_quantized_bins: int = 2048,
        percentile: float = 99.999,
        scenario: str = "same",
    ) -> None:
        """As `CalibraterBase` and `HistogramCollector`."""
        super().__init__(model_path, op_types_to_calibrate, augmented_model_path, symmetric, use_external_data_format)
        self.method = method
        self.num_bins = num_bins
        self.num_quantized_bins = num_quantized_bins
        self.percentile = percentile
        self.scenario = scenario
        self.collector: HistogramCollector | None = None

    def augment_graph(self) -> None:
        """Let the model give each value, and write it."""
        copy = self._select()
        add_outputs(copy, self.tensors_to_calibrate)
        self._write(copy)

    def collect_data(self, data_reader: Any) -> None:
        """Run the samples of a reader and count their elements; those of one call are in memory together.

        Raises:
            ValueError: there is not one sample.
        """
        names = self.tensors_to_calibrate
        arrays: dict[str, list[Array]] = {name: [] for name in names}
        count = 0
        for count, found in enumerate(self._runs(data_reader, names), 1):  # noqa: B007
            for name, array in zip(names, found, strict=True):
                arrays[name].append(array)
        if not count:
            raise ValueError("No data is collected.")
        if self.collector is None:
            self.collector = HistogramCollector(
                method=self.method,
                symmetric=self.symmetric,
                num_bins=self.num_bins,
                num_quantized_bins=self.num_quantized_bins,
                percentile=self.percentile,
                scenario=self.scenario,
            )
        self.collector.collect(arrays)

    def compute_data(self) -> TensorsData:
        """The ranges.

        Raises:
            ValueError: nothing was collected.
            TypeError: this is none of the three classes that have a method.
        """
        if self.collector is None:
            raise ValueError("No collector created and can't generate calibration data.")
        if self._METHOD is None:
            raise TypeError(f"Unknown calibrater {type(self)}. This method must be overwritten.")
        return TensorsData(self._METHOD, self.collector.compute_collection_result())


class EntropyCalibrater(HistogramCalibrater):
    """Ranges of least divergence."""

    _METHOD = CalibrationMethod.Entropy

    def __init__(
        self,
        model_path: Place,
        op_types_to_calibrate: Sequence[str] | None = None,
        augmented_model_path: Place = "augmented_model.onnx",
        use_external_data_format: bool = False,
        method: str = "entropy",
        symmetric: bool = False,
        num_bins: int = 128,
        num_quantized_bins: int = 128,
    ) -> None:
        """As `HistogramCalibrater`."""
        super().__init__(
            model_path,
            op_types_to_calibrate,
            augmented_model_path,
            use_external_data_format,
            method=method,
            symmetric=symmetric,
            num_bins=num_bins,
            num_quantized_bins=num_quantized_bins,
        )


class PercentileCalibrater(HistogramCalibrater):
    """Ranges that hold a share of the elements."""

    _METHOD = CalibrationMethod.Percentile

    def __init__(
        self,
        model_path: Place,
        op_types_to_calibrate: Sequence[str] | None = None,
        augmented_model_path: Place = "augmented_model.onnx",
        use_external_data_format: bool = False,
        method: str = "percentile",
        symmetric: bool = False,
        num_bins: int = 2048,
        percentile: float = 99.999,
    ) -> None:
        """As `HistogramCalibrater`."""
        super().__init__(
            model_path,
            op_types_to_calibrate,
            augmented_model_path,
            use_external_data_format,
            method=method,
            symmetric=symmetric,
            num_bins=num_bins,
            percentile=percentile,
        )


class DistributionCalibrater(HistogramCalibrater):
    """Mean and deviation of each value, for float8."""

    _METHOD = CalibrationMethod.Distribution

    def __init__(
        self,
        model_path: Place,
        op_types_to_calibrate: Sequence[str] | None = None,
        augmented_model_path: Place = "augmented_model.onnx",
        use_external_data_format: bool = False,
        method: str = "distribution",
        num_bins: int = 128,
        scenario: str = "same",
    ) -> None:
        """As `HistogramCalibrater`."""
        super().__init__(
            model_path,
            op_types_to_calibrate,
            augmented_model_path,
            use_external_data_format,
            method=method,
            num_bins=num_bins,
            scenario=scenario,
        )


_CLASSES: dict[CalibrationMethod, tuple[Any, dict[str, Any]]] = {
    CalibrationMethod.MinMax: (
        MinMaxCalibrater,
        {
            "symmetric": False,
            "moving_average": False,
            "averaging_constant": 0.01,
            "max_intermediate_outputs": None,
            "per_channel": False,
        },
    ),
    CalibrationMethod.Entropy: (
        EntropyCalibrater,
        {"symmetric": False, "num_bins": 128, "num_quantized_bins": 128},
    ),
    CalibrationMethod.Percentile: (
        PercentileCalibrater,
        {"symmetric": True, "num_bins": 2048, "percentile": 99.999},
    ),
    CalibrationMethod.Distribution: (DistributionCalibrater, {"num_bins": 2048, "scenario": "same"}),
}
"""By method: the class, and the options it takes with their defaults; onnxruntime ignores all others, too."""


def create_calibrator(
    model: Place,
    op_types_to_calibrate: Sequence[str] | None = None,
    augmented_model_path: Place = "augmented_model.onnx",
    calibrate_method: Any = CalibrationMethod.MinMax,
    use_external_data_format: bool = False,
    providers: Sequence[Any] | None = None,
    extra_options: Mapping[str, Any] | None = None,
) -> CalibraterBase:
    """A calibrater of a method, ready to run.

    Args:
        model: file of the float model.
        op_types_to_calibrate: values that operators of these types read or write; None for all.
        augmented_model_path: where the model with its further outputs is written.
        calibrate_method: MinMax, Entropy, Percentile or Distribution.
        use_external_data_format: weights of that model go into a file beside it.
        providers: what runs it.
        extra_options: arguments of the method's class that it takes here; others are ignored.

    Raises:
        ValueError: there is no such method, or an option makes no sense.
        OnnxqError: the model cannot be read, run or written.
    """
    kind, defaults = _CLASSES[as_member(CalibrationMethod, calibrate_method, "calibrate_method")]
    options = {key: (extra_options or {}).get(key, default) for key, default in defaults.items()}
    calibrater: CalibraterBase = kind(
        model,
        op_types_to_calibrate,
        augmented_model_path,
        use_external_data_format=use_external_data_format,
        **options,
    )
    calibrater.augment_graph()
    if providers:
        calibrater.execution_providers = providers
    calibrater.create_inference_session()
    return calibrater
