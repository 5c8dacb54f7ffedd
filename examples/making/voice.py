"""A streaming model of speech activity, and recordings for it: made in a second, without a training library.

Each call takes 32 ms of sound and the state of the call before. A bank of filters turns sound into the logarithm of its
energies, an LSTM with random weights remembers, and the last layer is fitted by least squares.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

RATE, CHUNK, BANDS, STATE = 16_000, 512, 32, 96


def recording(seed: int, chunks: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Sound (chunks, CHUNK) of noise with hums of changing pitch in it, and where these are (chunks,)."""
    rng = np.random.default_rng(seed)
    active = np.repeat(rng.random(chunks // 10 + 1) < 0.5, 10)[:chunks]
    pitch = np.repeat(rng.uniform(90, 280, chunks // 10 + 1), 10 * CHUNK)[: chunks * CHUNK]
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    voice = sum(np.sin(phase * k) / k for k in range(1, 12)) * np.repeat(active, CHUNK)
    sound = 0.15 * voice + 0.05 * rng.standard_normal(chunks * CHUNK)
    return sound.reshape(chunks, CHUNK).astype(np.float32), active


def _model(readout: np.ndarray) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    times = np.arange(256) / RATE
    tones = 2 * np.pi * np.geomspace(60, 6000, BANDS)[:, None] * times
    filters = np.concatenate([np.cos(tones), np.sin(tones)])[:, None] * np.hanning(256) / 16
    constants = {
        "filters": filters,
        "floor": np.array(1e-4),
        "W": rng.standard_normal((1, 4 * STATE, BANDS)) * 0.15,
        "R": rng.standard_normal((1, 4 * STATE, STATE)) * 0.06,
        "readout": readout,
    }
    nodes = [
        helper.make_node("Unsqueeze", ["sound", "one"], ["wave"], "wave"),
        helper.make_node("Conv", ["wave", "filters"], ["bands"], "filterbank", strides=[64]),
        helper.make_node("Mul", ["bands", "bands"], ["power"], "power"),
        helper.make_node("ReduceMean", ["power", "two"], ["energies"], "energies", keepdims=0),
        helper.make_node("Split", ["energies"], ["real", "imaginary"], "split", axis=1, num_outputs=2),
        helper.make_node("Add", ["real", "imaginary"], ["band_energy"], "band_energy"),
        helper.make_node("Add", ["band_energy", "floor"], ["positive"], "positive"),
        helper.make_node("Log", ["positive"], ["log"], "log"),
        helper.make_node("Unsqueeze", ["log", "zero"], ["step"], "step"),
        helper.make_node("LSTM", ["step", "W", "R", "", "", "h", "c"], ["", "hn", "cn"], "lstm", hidden_size=STATE),
        helper.make_node("Squeeze", ["hn", "zero"], ["memory"], "memory"),
        helper.make_node("Gemm", ["memory", "readout"], ["score"], "readout", transB=1),
        helper.make_node("Sigmoid", ["score"], ["speech"], "probability"),
    ]
    state = [1, 1, STATE]
    inputs = [("sound", [1, CHUNK]), ("h", state), ("c", state)]
    outputs = [("speech", [1, 1]), ("hn", state), ("cn", state)]
    graph = helper.make_graph(
        nodes,
        "voice",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in constants.items()]
        + [numpy_helper.from_array(np.array([k]), name) for k, name in enumerate(("zero", "one", "two"))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def listen(model: bytes | str | Path, sound: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the model says of each chunk (chunks,), and its memory then (chunks, STATE)."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    h = c = np.zeros((1, 1, STATE), np.float32)
    said, memories = [], []
    for chunk in sound:
        speech, h, c = session.run(["speech", "hn", "cn"], {"sound": chunk[None], "h": h, "c": c})
        said.append(float(speech[0, 0]))
        memories.append(h[0, 0])
    return np.array(said), np.array(memories)


def save(file: Path) -> None:
    """Fit the last layer on four recordings and write the model."""
    untrained = _model(np.zeros((1, STATE))).SerializeToString()
    sounds = [recording(seed) for seed in (1, 2, 3, 4)]
    memory = np.concatenate([listen(untrained, sound)[1] for sound, _ in sounds])
    wanted = np.where(np.concatenate([active for _, active in sounds]), 3.0, -3.0)
    readout = np.linalg.solve(memory.T @ memory + 0.01 * np.eye(STATE), memory.T @ wanted)
    onnx.save(_model(readout[None]), file)
