"""Every example runs and comes to what it says."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import onnxq
from tests.language_models import genai_folder, tokenizer, write

# What the libraries that examples use warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_sentence_search(tmp_path: Path) -> None:
    figures = importlib.import_module("examples.sentence_search").main(tmp_path)
    assert figures["same"] > 0.9 and figures["shared"] > 0.9


def test_speech_activity(tmp_path: Path) -> None:
    figures = importlib.import_module("examples.speech_activity").main(tmp_path)
    assert figures["float"] > 0.95 and figures["same"] > 0.98


@pytest.mark.torch
@pytest.mark.exporters
def test_torch_export(tmp_path: Path) -> None:
    result = importlib.import_module("examples.torch_export").main(tmp_path / "small.onnx")
    assert (tmp_path / "small.onnx").is_file()
    assert result.comparison is not None and result.comparison.accuracy is not None
    assert result.comparison.accuracy["float"] > 0.8
    assert result.comparison.accuracy["quantized"] > result.comparison.accuracy["float"] - 0.06


@pytest.mark.torch
@pytest.mark.exporters
def test_trained_quantized(tmp_path: Path) -> None:
    found = importlib.import_module("examples.trained_quantized").main(tmp_path)
    plain = found["float"][0]
    assert plain > 0.9
    for name in ("w8a8", "w4a8"):
        accuracy, result = found[name]
        assert result is not None and result.output is not None and result.output.is_file()
        assert accuracy > plain - 0.015
        assert result.comparison is not None and result.comparison.accuracy is not None
        shares = result.comparison.accuracy  # of the last of them, the module's and the model's
        assert shares["quantized"] == pytest.approx(shares["float"], abs=0.02)
        assert result.size_after < 0.35 * result.size_before


@pytest.mark.exporters
def test_scikit_learn(tmp_path: Path) -> None:
    result = importlib.import_module("examples.scikit_learn").main(tmp_path / "digits.onnx")
    assert result.size_after < 0.5 * result.size_before
    assert result.top1_agreement is not None and result.top1_agreement > 0.95


@pytest.mark.torch
@pytest.mark.exporters
@pytest.mark.images
def test_detector(tmp_path: Path) -> None:
    figures = importlib.import_module("examples.detector").main(tmp_path / "boxes.png", tmp_path)
    assert figures["found"] > 50
    assert figures["matched"] > 0.9 * figures["found"]
    assert (tmp_path / "boxes.png").stat().st_size > 1000


@pytest.mark.genai
@pytest.mark.text
def test_language_model(tmp_path: Path) -> None:
    folder, prompts = genai_folder(tmp_path / "model"), tmp_path / "prompts.txt"
    tokenizer(folder)
    write(folder, {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 256}})
    prompts.write_text("\n".join(f"the {word} is here and there" for word in ("cat", "dog", "house", "river")))
    texts = importlib.import_module("examples.language_model").main(folder, prompts, "the cat", tmp_path / "out")
    assert texts["float"] and texts["quantized"]
    assert (tmp_path / "out" / "genai_config.json").is_file()
    size = [sum(file.stat().st_size for file in place.iterdir()) for place in (tmp_path / "out", folder)]
    assert size[0] < 0.6 * size[1]


@pytest.fixture(scope="module")
def deployed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("deployed") / "model.onnx"
    data = root / "calibration_data" / "digits_resnet.npz"
    onnxq.quantize(root / "models" / "digits_resnet.onnx", model, calibration=data, preset="w8a8", benchmark=False)
    return model


def answer(command: list[str], folder: Path) -> int:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


def expected(deployed: Path) -> int:
    import onnxruntime

    session = onnxruntime.InferenceSession(deployed, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": np.full((1, 1, 16, 16), 0.5, np.float32)})
    return int(logits.argmax())


def test_deployment_in_python(root: Path, deployed: Path) -> None:
    command = [sys.executable, str(root / "examples" / "deploy" / "run.py"), str(deployed)]
    assert answer(command, deployed.parent) == expected(deployed)


@pytest.mark.web
def test_deployment_in_node(root: Path, deployed: Path) -> None:
    node = shutil.which("node")
    assert node is not None, "Node is not on the PATH"
    modules = Path(os.environ["ONNXQ_NODE_MODULES"]).resolve()
    home = modules.parent if modules.name == "node_modules" else modules
    assert answer([node, str(root / "examples" / "deploy" / "run.mjs"), str(deployed)], home) == expected(deployed)


@pytest.mark.cpp
def test_deployment_in_cpp(root: Path, deployed: Path, tmp_path: Path) -> None:
    """Headers of any release since 1.17 go with the library of the Python package, whose C API only grows."""
    import onnxruntime

    compiler = shutil.which("g++")
    assert compiler is not None, "g++ is not on the PATH"
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / name).symlink_to(library)
    source, program = root / "examples" / "deploy" / "run.cpp", tmp_path / "run"
    folders = [f"-I{os.environ['ONNXRUNTIME_INCLUDE']}", f"-L{tmp_path}", f"-Wl,-rpath,{tmp_path}"]
    strict = ["-std=c++17", "-Wall", "-Wextra", "-Werror"]
    done = subprocess.run(
        [compiler, *strict, str(source), *folders, "-lonnxruntime", "-o", str(program)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert answer([str(program), str(deployed)], tmp_path) == expected(deployed)
    for arguments, code, said in (([], 2, "usage"), ([str(tmp_path / "none.onnx")], 1, "none.onnx")):
        wrong = subprocess.run([str(program), *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert wrong.returncode == code and said in wrong.stderr
