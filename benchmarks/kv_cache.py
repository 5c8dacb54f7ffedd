"""Caches of decoders as integers: memory, time of a token, and what they cost in quality.

Run as ``python -m benchmarks.kv_cache``; ``--quick`` takes the shortest caches and a few windows of text. Times are
of a Llama shape with random weights (4 layers, 512 wide, 8 heads of 64 on 2 of keys and values): one token behind
caches of 512, 2048 and 8192, one thread, all forms in alternation, medians of processor seconds, so that other work on
the machine counts little. Quality is that of ``models/tiny_lm.onnx`` on its test text, read from its caches.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

import onnxq
from onnxq.core.dtypes import Array
from onnxq.verify.tokens import Tokens

ROOT = Path(__file__).resolve().parents[1]
FORMS = ("float", "int8", "int4")
PASTS = (512, 2048, 8192)
LAYERS, WIDTH, HEADS, KV_HEADS, SIZE, INNER, PIECES = 4, 512, 8, 2, 64, 1536, 1024
FLOAT, INT64, INT32 = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32
ROUNDS = 80


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.kv_cache", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the shortest caches and few windows")
    quick = parser.parse_args(arguments).quick
    with tempfile.TemporaryDirectory() as folder:
        print(speed_table(Path(folder), PASTS[:1] if quick else PASTS, 3 if quick else ROUNDS))
        print()
        print(quality_table(Path(folder), 8 if quick else 128))
    return 0


def speed_table(folder: Path, pasts: tuple[int, ...], rounds: int) -> str:
    """Memory of caches and time of a token, by the number of tokens that they hold."""
    source = folder / "llama.onnx"
    source.write_bytes(llama())
    rng = np.random.default_rng(0)
    prompts = [{"input_ids": rng.integers(0, PIECES, (1, 64))} for _ in range(6)]
    sessions = {form: session_of(quantized(source, folder, form, prompts, "float")) for form in FORMS}
    lines = ["| tokens in the caches | form | caches | a token | times faster |", "|---|---|---|---|---|"]
    for past in pasts:
        feeds = {form: step_feed(session, past) for form, session in sessions.items()}
        taken: dict[str, list[float]] = {form: [] for form in FORMS}
        for _ in range(rounds):
            for form, session in sessions.items():
                started = time.process_time()
                session.run(["logits"], feeds[form])
                taken[form].append(time.process_time() - started)
        base = np.array(taken["float"])
        for form in FORMS:
            held = sum(a.nbytes for name, a in feeds[form].items() if name != "input_ids")
            ratio = float(np.median(base / np.array(taken[form])))
            lines.append(
                f"| {past} | {form} | {held / 2**20:.1f} MiB | {1e3 * np.median(taken[form]):.2f} ms | {ratio:.2f} |"
            )
    return "\n".join(lines)


def quality_table(folder: Path, windows: int) -> str:
    """Perplexity of tiny_lm on its test text with each form of caches, rotated too."""
    model, data = ROOT / "models" / "tiny_lm.onnx", ROOT / "calibration_data" / "tiny_lm.npz"
    test = np.load(ROOT / "models" / "tiny_lm.test.npz")
    ids, labels = test["input_ids"][:windows], test["labels"][:windows]
    reference = logits_of(ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]), ids)
    lines = ["| caches | perplexity | loss | same most likely token | divergence |", "|---|---|---|---|---|"]
    for form in ("int8", "int4"):
        for rotate in (False, True):
            path = quantized(model, folder, form, data, "float", rotate=rotate)
            tokens = Tokens(labelled=True)
            tokens.add({"input_ids": ids}, labels, reference, logits_of(session_of(path), ids))
            found = tokens.perplexity
            assert found is not None
            lines.append(
                f"| {form}{', `--rotate`' if rotate else ''} | {found['quantized']:.3f} | "
                f"{found['quantized'] - found['float']:+.3f} | {100 * (tokens.agreement or 0):.1f} % | "
                f"{tokens.divergence:.5f} |"
            )
    return "\n".join(lines)


def quantized(source: Path, folder: Path, form: str, data: object, preset: str, *, rotate: bool = False) -> Path:
    """The model with caches of a form."""
    path = folder / f"{source.stem}.{form}{'.rotated' if rotate else ''}.onnx"
    onnxq.quantize(
        source, path, calibration=data, preset=preset, kv_cache=form, rotate=rotate or None, benchmark=False, threads=1
    )
    return path


def session_of(path: Path) -> ort.InferenceSession:
    """One thread, as times are taken."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def step_feed(session: ort.InferenceSession, past: int) -> dict[str, Array]:
    """One token behind full caches, of random contents."""
    rng = np.random.default_rng(1)
    feed: dict[str, Array] = {"input_ids": np.array([[7]], np.int64)}
    for spec in session.get_inputs()[1:]:
        shape = (1, spec.shape[1], past, spec.shape[3])
        if spec.type == "tensor(float)":
            feed[spec.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            feed[spec.name] = (
                rng.integers(0, 256, shape).astype(np.uint8).view(np.int8 if spec.type == "tensor(int8)" else np.uint8)
            )
    return feed


def logits_of(session: ort.InferenceSession, ids: Array) -> Array:
    """Of windows of text, from empty caches on where there are some."""
    kinds = {"tensor(float)": np.float32, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8}
    found = []
    for start in range(0, len(ids), 16):
        part = ids[start : start + 16]
        feed = {"input_ids": part}
        for spec in session.get_inputs()[1:]:
            feed[spec.name] = np.zeros((len(part), spec.shape[1], 0, spec.shape[3]), kinds[spec.type])
        found.append(session.run(["logits"], feed)[0])
    return np.concatenate(found)


def llama() -> bytes:
    """A decoder as onnxruntime-genai's builder writes it: rotary positions inside GroupQueryAttention, norms joined."""
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {}
    nodes: list[onnx.NodeProto] = []

    def weight(name: str, *shape: int) -> str:
        weights[name] = (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        return name

    def node(op_type: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> str:
        nodes.append(helper.make_node(op_type, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]

    weights |= {
        "one": np.array([1], np.int64), "two": np.array([2], np.int64), "minus": np.array([1], np.int32),
        "scalar": np.zeros(0, np.int64), "zero": np.array([0], np.int64), "gain": np.ones(WIDTH, np.float32),
    }  # fmt: skip
    angles = np.arange(16384)[:, None] / 10000.0 ** (np.arange(SIZE // 2) / (SIZE // 2))
    weights["cos"], weights["sin"] = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    x = node("Gather", [weight("table", PIECES, WIDTH), "input_ids"], ["x"])
    node("Shape", ["input_ids"], ["ids_shape"])
    node("Shape", ["past_key_values.0.key"], ["past_shape"])
    node("Gather", ["ids_shape", "one"], ["new"])
    node("Gather", ["ids_shape", "zero"], ["batch"])
    node("Gather", ["past_shape", "two"], ["past"])
    node("Add", ["new", "past"], ["all"])
    node("Cast", ["all"], ["all_32"], to=INT32)
    node("Reshape", ["all_32", "scalar"], ["total"])
    node("Sub", ["all_32", "minus"], ["last"])
    node("Expand", ["last", "batch"], ["lengths"])
    for layer in range(LAYERS):
        p = f"l{layer}."
        h = node("SimplifiedLayerNormalization", [x, "gain"], [f"{p}in"], axis=-1, epsilon=1e-5)
        q, k, v = (
            node("MatMul", [h, weight(f"{p}{part}_proj", WIDTH, heads * SIZE)], [f"{p}{part}"])
            for part, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
        )
        pasts = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        a = node(
            "GroupQueryAttention", [q, k, v, *pasts, "lengths", "total", "cos", "sin"],
            [f"{p}attention", f"present.{layer}.key", f"present.{layer}.value"], "com.microsoft",
            num_heads=HEADS, kv_num_heads=KV_HEADS, do_rotary=1,
        )  # fmt: skip
        x = node("Add", [x, node("MatMul", [a, weight(f"{p}o_proj", HEADS * SIZE, WIDTH)], [f"{p}o"])], [f"{p}mid"])
        h = node("SimplifiedLayerNormalization", [x, "gain"], [f"{p}mlp"], axis=-1, epsilon=1e-5)
        gate = node("MatMul", [h, weight(f"{p}gate_proj", WIDTH, INNER)], [f"{p}gate"])
        up = node("MatMul", [h, weight(f"{p}up_proj", WIDTH, INNER)], [f"{p}up"])
        silu = node("Mul", [gate, node("Sigmoid", [gate], [f"{p}sigmoid"])], [f"{p}silu"])
        inner = node("Mul", [silu, up], [f"{p}inner"])
        x = node("Add", [x, node("MatMul", [inner, weight(f"{p}down_proj", INNER, WIDTH)], [f"{p}down"])], [f"{p}out"])
    x = node("SimplifiedLayerNormalization", [x, "gain"], ["final"], axis=-1, epsilon=1e-5)
    node("MatMul", [x, weight("head", WIDTH, PIECES)], ["logits"])
    inputs = [helper.make_tensor_value_info("input_ids", INT64, ["batch", "length"])]
    outputs = [helper.make_tensor_value_info("logits", FLOAT, ["batch", "length", PIECES])]
    for layer in range(LAYERS):
        for part in ("key", "value"):
            shape: list[str | int | None] = ["batch", KV_HEADS, "past", SIZE]
            inputs.append(helper.make_tensor_value_info(f"past_key_values.{layer}.{part}", FLOAT, shape))
            shape = ["batch", KV_HEADS, "total", SIZE]
            outputs.append(helper.make_tensor_value_info(f"present.{layer}.{part}", FLOAT, shape))
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "llama", inputs, outputs, stored)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    content: bytes = helper.make_model(graph, opset_imports=imports, ir_version=9).SerializeToString()
    return content


if __name__ == "__main__":
    raise SystemExit(main())
