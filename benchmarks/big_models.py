"""Large language models with random weights, written layer by layer, and what it takes to quantize them.

``python -m benchmarks.big_models --gb 1 2 4`` writes a decoder of the Llama shape of each size, runs ``onnxq quantize``
on it in a process of its own, and prints seconds, the largest memory and megabytes of float weights a second.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper

_GB = 1e9
_CHUNK = 1 << 22
"""Random numbers that are made once; all weights are pieces of them."""


class _Weights:
    """Initializers in one file beside the model, written one after the other."""

    def __init__(self, file: BinaryIO, location: str) -> None:
        self._file, self._location = file, location
        self._noise = np.random.default_rng(0).standard_normal(_CHUNK).astype(np.float32)
        self._random = np.random.default_rng(1)
        self.tensors: list[onnx.TensorProto] = []

    def add(self, name: str, *shape: int) -> str:
        """A matrix of normal numbers, with a deviation of 1 / sqrt(inputs)."""
        count = int(np.prod(shape))
        tensor = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": self._location, "offset": str(self._file.tell()), "length": str(4 * count)}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
        left = count
        while left:
            start = int(self._random.integers(_CHUNK // 2))
            part = self._noise[start : start + left] / np.float32(np.sqrt(shape[0]))
            self._file.write(part.tobytes())
            left -= part.size
        self.tensors.append(tensor)
        return name

    def small(self, name: str, array: Any) -> str:
        """A constant inside the model."""
        self.tensors.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        return name


def write_llama(path: Path, layers: int, width: int, inner: int, words: int) -> int:
    """A decoder of Llama's operators: RMS norms, attention of 128 wide heads without a mask, a gated MLP.

    Args:
        path: the model; its weights go beside it.
        layers: how many.
        width: of the residual stream, a multiple of 128.
        inner: width of the MLP.
        words: in the vocabulary.

    Returns:
        Bytes of its weights.
    """
    nodes: list[onnx.NodeProto] = []
    heads = width // 128
    data = path.with_name(path.name + ".data")
    with data.open("wb") as file:
        weights = _Weights(file, data.name)

        def node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> str:
            nodes.append(helper.make_node(op_type, inputs, [output], name=f"n_{output}", **attributes))
            return output

        def norm(value: str, name: str) -> str:
            square = node("Mul", [value, value], f"{name}.square")
            mean = node("ReduceMean", [square, "last"], f"{name}.mean")
            root = node("Sqrt", [node("Add", [mean, "epsilon"], f"{name}.sum")], f"{name}.root")
            gain = weights.small(f"{name}.weight", np.ones(width, np.float32))
            return node("Mul", [node("Div", [value, root], f"{name}.normed"), gain], f"{name}.out")

        def linear(value: str, name: str, inputs: int, outputs: int) -> str:
            return node("MatMul", [value, weights.add(f"{name}.weight", inputs, outputs)], f"{name}.out")

        weights.small("last", np.array([-1], np.int64))
        weights.small("epsilon", np.float32(1e-5))
        weights.small("root_head", np.float32(128**-0.5))
        weights.small("split", np.array([0, 0, heads, 128], np.int64))
        weights.small("joined", np.array([0, 0, width], np.int64))
        hidden = node("Gather", [weights.add("embed.weight", words, width), "input_ids"], "embed.out")
        for layer in range(layers):
            name = f"layers.{layer}"
            normed = norm(hidden, f"{name}.norm1")
            turned = {}
            for part, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
                flat = linear(normed, f"{name}.{part}", width, width)
                apart = node("Reshape", [flat, "split"], f"{name}.{part}.apart")
                turned[part] = node("Transpose", [apart], f"{name}.{part}.turned", perm=perm)
            product = node("MatMul", [turned["q"], turned["k"]], f"{name}.scores")
            scores = node("Mul", [product, "root_head"], f"{name}.scaled")
            seen = node("MatMul", [node("Softmax", [scores], f"{name}.soft", axis=-1), turned["v"]], f"{name}.seen")
            back = node("Transpose", [seen], f"{name}.back", perm=[0, 2, 1, 3])
            attended = linear(node("Reshape", [back, "joined"], f"{name}.joined"), f"{name}.o", width, width)
            hidden = node("Add", [hidden, attended], f"{name}.add1")
            normed = norm(hidden, f"{name}.norm2")
            gate = linear(normed, f"{name}.gate", width, inner)
            silu = node("Mul", [gate, node("Sigmoid", [gate], f"{name}.sigmoid")], f"{name}.silu")
            gated = node("Mul", [silu, linear(normed, f"{name}.up", width, inner)], f"{name}.gated")
            hidden = node("Add", [hidden, linear(gated, f"{name}.down", inner, width)], f"{name}.add2")
        linear(norm(hidden, "norm"), "head", width, words)
    tokens = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    logits = helper.make_tensor_value_info("head.out", TensorProto.FLOAT, ["batch", "length", words])
    graph = helper.make_graph(nodes, "llama", [tokens], [logits], weights.tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return data.stat().st_size


def shape_of(gigabytes: float) -> tuple[int, int, int, int]:
    """(layers, width, inner, words) of a decoder of about so many gigabytes; 28 is Llama 2 with 7 billion."""
    width, inner, words = (4096, 11008, 32000) if gigabytes >= 16 else (2048, 5504, 32000)
    layer = 4 * (4 * width * width + 3 * width * inner)
    return max(1, round((gigabytes * _GB - 8 * width * words) / layer)), width, inner, words


def quantize(model: Path, output: Path, options: list[str]) -> dict[str, float]:
    """Run ``onnxq quantize`` in a process of its own; seconds, processor seconds and the largest memory."""
    command = [sys.executable, "-m", "onnxq.cli", "quantize", str(model), "-o", str(output), *options]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=sys.stderr)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    del before
    written = sum(file.stat().st_size for file in output.parent.glob(f"{output.name}*"))
    return {
        "exit": float(process.returncode),
        "seconds": time.monotonic() - started,
        "processor": used.ru_utime + used.ru_stime,
        "peak_gb": used.ru_maxrss * 1024 / _GB,
        "written_gb": written / _GB,
    }


def main() -> None:
    """Print a line of JSON for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, nargs="+", default=[1.0, 2.0, 4.0], help="float32 weights, in 10^9 bytes")
    parser.add_argument("--folder", type=Path, default=None, help="where the models are written, and removed again")
    parser.add_argument("options", nargs="*", default=["-p", "w4"], help="of onnxq quantize, after --")
    given = parser.parse_args()
    for gigabytes in given.gb:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            model = Path(folder) / "llama.onnx"
            layers, width, inner, words = shape_of(gigabytes)
            size = write_llama(model, layers, width, inner, words)
            figures = quantize(model, Path(folder) / "out.onnx", given.options)
            largest = 4 * max(words * width, width * inner)
            row = {"float_gb": size / _GB, "layers": layers, "largest_gb": largest / _GB, **figures}
            row["mb_per_second"] = size / 1e6 / figures["seconds"]
            print(json.dumps({key: round(value, 3) for key, value in row.items()}), flush=True)


if __name__ == "__main__":
    main()
