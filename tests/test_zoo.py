"""Trained models of the zoo: each quantizes, loads and runs, in both formats, with every range, and stays as good."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxq
from onnxq.recipe.recipe import FORMATS, RANGES
from onnxq.runtime.session import open_session
from onnxq.runtime.synthetic import runnable_feed

pytestmark = pytest.mark.zoo

TASKS = [
    "ad01_autoencoder", "keypoint_mlp", "kws_dscnn", "mnist_cnn", "resnet20_cifar10", "resnet8_cifar10",
    "rfb320_face", "silero_vad", "squeezenet_imagenet",
]  # fmt: skip
"""Those with a Conv or an MLP; charrnn_shakespeare is recurrent and minilm_stsb a transformer."""

CLASSIFIERS = ["keypoint_mlp", "kws_dscnn", "mnist_cnn", "resnet20_cifar10", "resnet8_cifar10"]
"""squeezenet_imagenet takes as long as all of these; `benchmarks.static` scores it."""

RUN_ONLY = ["dnsmos_model_v8", "slim-320", "st_mbv2_035_128", "yunet_n_320"]
SAMPLES = 3

Feed = dict[str, np.ndarray]


@cache
def model_of(zoo: ModuleType, name: str) -> tuple[Path, list[Feed]]:
    """A model and a few feeds, drawn where there is no data."""
    if name in TASKS:
        task = zoo.task_named(name)
        if name == "squeezenet_imagenet":
            pytest.importorskip("PIL", reason="zoo: squeezenet_imagenet needs Pillow, which is not installed")
        return task.model, zoo.calibration_feeds(task)[: SAMPLES + 1]
    path = zoo.HERE / "run_only" / f"{name}.onnx"
    made = runnable_feed(open_session(path, threads=1))
    generator = np.random.default_rng(0)
    return path, [
        {key: generator.normal(0, 1, array.shape).astype(array.dtype) for key, array in made.items()}
        for _ in range(SAMPLES + 1)
    ]


@pytest.fixture(scope="module")
def calibrated(zoo: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> object:
    """The statistics of a model, gathered once for all formats and ranges."""
    folder = tmp_path_factory.mktemp("zoo")

    @cache
    def statistics(name: str) -> onnxq.Statistics:
        path, feeds = model_of(zoo, name)
        result = onnxq.calibrate(path, folder / f"{name}.npz", calibration=feeds[:SAMPLES], threads=1)
        assert result.samples == SAMPLES
        return result.statistics

    return statistics


# Ranges are the same in both formats, so every model has all of them in one and takes turns in the other.
RUNS = [
    (name, form, method)
    for index, name in enumerate(TASKS + RUN_ONLY)
    for form in FORMATS
    for method in (RANGES if form == FORMATS[0] else [RANGES[index % len(RANGES)]])
]


@pytest.mark.parametrize(("name", "form", "method"), RUNS)
def test_every_model_quantizes_loads_and_runs(
    zoo: ModuleType, calibrated: object, tmp_path: Path, name: str, form: str, method: str
) -> None:
    path, feeds = model_of(zoo, name)
    before = path.read_bytes()
    output = tmp_path / "out.onnx"
    result = onnxq.quantize(
        path, output, calibration=feeds[-1:], statistics=calibrated(name), preset="w8a8", format=form, range=method,
        benchmark=False, threads=1,
    )  # fmt: skip
    assert result.plan.counts("integer") > 0 and result.format == form
    assert result.coverage["Gemm" if name in ("ad01_autoencoder", "keypoint_mlp") else "Conv"]["quantized"] > 0
    assert all(reason for _, _, reason in result.kept_float)
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = ort.InferenceSession(output, options, providers=["CPUExecutionProvider"])
    got = session.run(None, feeds[-1])
    assert all(np.isfinite(array).all() for array in got if array.dtype.kind == "f")
    given = onnx.load(path).graph
    assert [value.name for value in session.get_outputs()] == [value.name for value in given.output]
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_stay_within_a_point_of_float(zoo: ModuleType, tmp_path: Path, name: str) -> None:
    task = zoo.task_named(name)
    output = tmp_path / "out.onnx"
    result = onnxq.quantize(
        task.model, output, calibration=zoo.calibration_feeds(task), preset="w8a8", benchmark=False, threads=1
    )
    assert zoo.evaluate(task, output)[task.metric] >= task.fp32 - 0.01
    assert result.sqnr_db is not None and result.sqnr_db > 20
    assert name == "keypoint_mlp" or result.size_after < 0.6 * result.size_before


@pytest.mark.parametrize("name", ["ad01_autoencoder", "rfb320_face", "silero_vad"])
def test_the_others_stay_close(zoo: ModuleType, tmp_path: Path, name: str) -> None:
    task = zoo.task_named(name)
    output = tmp_path / "out.onnx"
    onnxq.quantize(
        task.model, output, calibration=zoo.calibration_feeds(task), preset="w8a8", benchmark=False, threads=1
    )
    allowed = {"ad01_autoencoder": 0.01, "rfb320_face": 0.05, "silero_vad": 0.05}[name]
    assert zoo.evaluate(task, output)[task.metric] >= task.fp32 - allowed


@pytest.mark.parametrize("name", TASKS + RUN_ONLY)
def test_in_float16_outputs_stay_equal_or_what_stays_float32_says_why(
    zoo: ModuleType, tmp_path: Path, name: str
) -> None:
    path, feeds = model_of(zoo, name)
    result = onnxq.quantize(path, tmp_path / "h.onnx", preset="fp16", calibration=feeds, benchmark=False, threads=1)
    assert result.float_type == "float16"
    assert result.size_after < 0.75 * result.size_before
    assert result.sqnr_db is not None
    said = any(line.startswith("float16:") for line in result.warnings)
    assert result.sqnr_db >= 45 or result.kept_float or said  # 50 on the samples that decided, of which this is none
    open_session(tmp_path / "h.onnx").run(feeds[-1])


def test_recurrences_run_on_integers_in_a_static_model_too(zoo: ModuleType, tmp_path: Path) -> None:
    task = zoo.task_named("charrnn_shakespeare")
    feeds = zoo.calibration_feeds(task)[:SAMPLES]
    result = onnxq.quantize(
        task.model, tmp_path / "out.onnx", calibration=feeds, preset="w8a8", benchmark=False, threads=1
    )
    assert result.size_after < 0.4 * result.size_before
    assert not {node for node, op_type, _ in result.kept_float if op_type == "LSTM"}
