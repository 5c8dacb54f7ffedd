"""Each candidate that ``auto`` shows as unbeaten is had by the command beside it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from click.testing import Result

import onnxq
from tests.graph.build import build, weights


def two_branches() -> onnx.ModelProto:
    """One branch that 8 bits are enough for, and one whose channels differ by far."""
    text = """g (float[N,16,12,12] x) => (float[N,?] y) {
        a = Conv <pads = [1,1,1,1]> (x, w1)
        r = Relu (a)
        b = Mul (r, far)
        c = Conv <pads = [1,1,1,1]> (b, w2)
        p = GlobalAveragePool (c)
        f = Flatten (p)
        y = MatMul (f, w3)
    }"""
    far = np.geomspace(0.01, 10, 48).astype(np.float32).reshape(48, 1, 1)
    return build(text, w1=weights(48, 16, 3, 3), far=far, w2=weights(64, 48, 3, 3, seed=1) / far, w3=weights(64, 40))


def samples(count: int = 12) -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).normal(size=(count, 16, 12, 12)).astype(np.float32)


def test_the_command_of_each_unbeaten_candidate_gives_that_model(tmp_path: Path, run: Callable[..., Result]) -> None:
    onnx.save(two_branches(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=samples())
    start = [str(tmp_path / "m.onnx"), "-c", str(tmp_path / "d.npz"), "--threads", "1", "--no-cache"]
    result = onnxq.quantize(tmp_path / "m.onnx", calibration=tmp_path / "d.npz", threads=1, cache=False)
    found = [entry for entry in result.to_dict()["candidates"] if entry["frontier"] and entry["options"]]
    assert found
    for entry in found:
        options = shlex.split(entry["options"])
        if entry["recipe"] is not None:
            (tmp_path / "r.yaml").write_text(entry["recipe"])
            options[options.index("FILE")] = str(tmp_path / "r.yaml")
        output = tmp_path / "o.onnx"
        done = run("quantize", *start, *options, "--no-benchmark", "--force", "-o", output)
        assert done.exit_code == 0, (entry["name"], done.stderr)
        assert output.stat().st_size == entry["size_bytes"], entry["name"]
        against = onnxq.compare(two_branches(), output, data=tmp_path / "d.npz").sqnr_db
        assert against is not None and entry["sqnr_db"] is not None
        assert min(against, 90.0) > min(entry["sqnr_db"], 90.0) - 3.0, entry["name"]
