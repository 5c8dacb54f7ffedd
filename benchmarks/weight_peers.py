"""What else packs weights: onnxruntime's MatMulNBitsQuantizer, and onnx-neural-compressor's GPTQ and AWQ.

The second needs packages that do not get on with onnxq's, and HQQ of the first needs torch. Both run in a virtual
environment that `environment` makes once.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.feeds import Feed, read_feeds

# What onnx-neural-compressor imports without asking for it: prettytable, scipy. torch is for onnxruntime's HQQ.
PACKAGES = (
    "onnx-neural-compressor==1.0",
    "numpy<2",
    "onnx==1.23.2",
    "onnxruntime==1.32.0",
    "onnx-ir",
    "prettytable",
    "scipy",
    "torch==2.13.0",
)
IMPORTS = "from onnx_neural_compressor.quantization import config, matmul_nbits_quantizer; import torch"


@dataclass(frozen=True)
class WeightPeer:
    """One way to ask a peer.

    Attributes:
        by: ``onnxruntime`` or ``neural-compressor``.
        method: its name there.
        bits: of a weight.
        block_size: weights that share a scale.
        symmetric: without zero points.
    """

    by: str
    method: str
    bits: int = 4
    block_size: int = 32
    symmetric: bool = False

    @property
    def needs_environment(self) -> bool:
        """Whether it runs in the second environment, which has torch."""
        return self.by != "onnxruntime" or self.method in ("hqq", "gptq")


PEERS: dict[str, WeightPeer] = {
    "4 bits rtn symmetric": WeightPeer("onnxruntime", "rtn", symmetric=True),
    "4 bits rtn": WeightPeer("onnxruntime", "rtn"),
    "4 bits hqq": WeightPeer("onnxruntime", "hqq"),
    "4 bits k_quant": WeightPeer("onnxruntime", "k_quant"),
    "8 bits rtn symmetric": WeightPeer("onnxruntime", "rtn", 8, 128, symmetric=True),
    "2 bits rtn": WeightPeer("onnxruntime", "rtn", 2),
    "4 bits gptq, its own": WeightPeer("onnxruntime", "gptq", symmetric=True),
    "4 bits gptq": WeightPeer("neural-compressor", "gptq", symmetric=True),
    "4 bits awq": WeightPeer("neural-compressor", "awq", symmetric=True),
}
"""By the name that the tables show; all at accuracy level 4, the kernels that are fast."""

ACCURACY_LEVEL = 4


def environment(folder: Path) -> tuple[Path, str | None]:
    """The interpreter of the second environment, which is made where it is not there yet; and why it cannot be used.

    Args:
        folder: of the environment.
    """
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not _run(python, "-c", IMPORTS):
        return python, None
    print(f"making the peers' environment in {folder} ...", file=sys.stderr, flush=True)
    try:
        venv.create(folder, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as problem:
        return python, f"no environment for the peer: {problem}"
    problem_lines = _run(python, "-m", "pip", "install", "--quiet", *PACKAGES) or _run(python, "-c", IMPORTS)
    return python, f"no environment for the peer: {problem_lines}" if problem_lines else None


def _run(*command: Any) -> str:
    """The last line of what went wrong; empty where nothing did."""
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    except OSError as problem:
        return str(problem)
    if not done.returncode:
        return ""
    return next(iter(reversed(done.stderr.strip().splitlines())), f"status {done.returncode}")


def quantize_with_weight_peer(config: WeightPeer, model: Path, feeds: Path, output: Path) -> dict[str, float]:
    """Quantize the MatMul weights of a model as `config` says; see `quantize` of each peer for what it reads.

    Returns:
        ``seconds`` of wall time and of ``processor_seconds``, imports not counted.
    """
    process = _neural_compressor if config.by == "neural-compressor" else _onnxruntime
    quantizer = process(config, model, feeds)
    start, busy = time.perf_counter(), time.process_time()
    quantizer.process()
    found = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - busy}
    import onnx

    made = quantizer.model
    onnx.save(getattr(made, "model", made), output)
    return found


def _onnxruntime(config: WeightPeer, model: Path, feeds: Path) -> Any:
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    common = {"block_size": config.block_size, "is_symmetric": config.symmetric, "accuracy_level": ACCURACY_LEVEL}
    algorithm = None
    if config.method == "hqq":
        algorithm = nbits.HQQWeightOnlyQuantConfig(block_size=config.block_size, bits=config.bits)
    elif config.method == "k_quant":
        algorithm = nbits.KQuantWeightOnlyQuantConfig()
    elif config.method == "gptq":
        algorithm = nbits.GPTQWeightOnlyQuantConfig(_Reader(feeds))
    return nbits.MatMulNBitsQuantizer(onnx.load(model), bits=config.bits, algo_config=algorithm, **common)


class _Reader:
    """Feeds as onnxruntime's quantizer reads them: one after the other, as often as it likes."""

    def __init__(self, feeds: Path) -> None:
        self._feeds = feeds

    def __iter__(self) -> Iterator[Feed]:
        return read_feeds(self._feeds)


def _neural_compressor(config: WeightPeer, model: Path, feeds: Path) -> Any:
    import onnxruntime

    # The package is in the second environment alone.
    data_reader = importlib.import_module("onnx_neural_compressor.data_reader")
    nbits = importlib.import_module("onnx_neural_compressor.quantization.matmul_nbits_quantizer")

    # Its sessions take their options from nowhere: one thread, as for everything else measured.
    plain = onnxruntime.InferenceSession

    def session(*arguments: Any, **options: Any) -> Any:
        positional = list(arguments)
        chosen = (positional[1] if len(positional) > 1 else options.get("sess_options")) or onnxruntime.SessionOptions()
        chosen.intra_op_num_threads = 1
        if len(positional) > 1:
            positional[1] = chosen
        else:
            options["sess_options"] = chosen
        return plain(*positional, **options)

    onnxruntime.InferenceSession = session

    class Reader(data_reader.CalibrationDataReader):  # type: ignore[misc, name-defined]  # no types
        def __init__(self) -> None:
            self._feeds: Iterator[Feed] = read_feeds(feeds)

        def get_next(self) -> Feed | None:
            return next(self._feeds, None)

        def rewind(self) -> None:
            self._feeds = read_feeds(feeds)

    kind = nbits.GPTQWeightOnlyQuantConfig if config.method == "gptq" else nbits.AWQWeightOnlyQuantConfig
    return nbits.MatMulNBitsQuantizer(
        str(model),
        config.block_size,
        config.symmetric,
        ACCURACY_LEVEL,
        algo_config=kind(Reader()),
        n_bits=config.bits,
    )
