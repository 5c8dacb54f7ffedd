"""Small language models as exporters write them: decoders with a cache, encoder–decoders, and folders around them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, WIDTH, HEADS, LAYERS = 300, 64, 4, 2
HEAD = WIDTH // HEADS
OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
value = helper.make_tensor_value_info


class Graph:
    """Nodes and weights under construction."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._generator = np.random.default_rng(seed)

    def add(self, op: str, inputs: list[str], output: str | list[str], domain: str = "", **attributes: Any) -> str:
        outputs = [output] if isinstance(output, str) else output
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"/{outputs[0]}", domain=domain, **attributes))
        return outputs[0]

    def weight(self, name: str, *shape: int, scale: float = 1.0) -> str:
        array = self._generator.normal(size=shape, scale=scale / np.sqrt(shape[0])).astype(np.float32)
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def constant(self, name: str, array: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def linear(self, source: str, output: str, into: int, out: int) -> str:
        return self.add("MatMul", [source, self.weight(f"{output}.weight", into, out)], output)

    def model(self, inputs: list[Any], outputs: list[Any]) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "language", inputs, outputs, self.weights)
        return helper.make_model(graph, opset_imports=OPSETS, ir_version=8)


def caches(name: str, tokens: str, head: int | str = HEAD, kinds: tuple[str, ...] = ("key", "value")) -> list[Any]:
    return [
        value(name % (layer, kind), FLOAT, ["batch_size", HEADS, tokens, head])
        for layer in range(LAYERS)
        for kind in kinds
    ]


def genai_decoder(past: str = "past_key_values.%d.%s", *, head: int | str = "kv_cache_dim") -> onnx.ModelProto:
    """A decoder with GroupQueryAttention, its rotary embedding inside, as onnxruntime-genai's builder writes it."""
    g = Graph()
    angles = np.outer(np.arange(512), 1.0 / 10000 ** (np.arange(HEAD // 2) / (HEAD // 2)))
    g.constant("cos", np.cos(angles).astype(np.float32)), g.constant("sin", np.sin(angles).astype(np.float32))
    one = g.constant("one", np.array([1], np.int64))
    g.add("ReduceSum", ["attention_mask", one], "summed", keepdims=0)
    g.add("Cast", [g.add("Sub", ["summed", one], "last")], "seqlens", to=TensorProto.INT32)
    g.add("Gather", [g.add("Shape", ["attention_mask"], "shape"), g.constant("axis", np.int64(1))], "total64")
    g.add("Cast", ["total64"], "total", to=TensorProto.INT32)
    stream = g.add("Gather", [g.weight("embedding", VOCABULARY, WIDTH, scale=8.0), "input_ids"], "embedded")
    for layer in range(LAYERS):
        q, k, v = (g.linear(stream, f"layer{layer}.{name}", WIDTH, WIDTH) for name in "qkv")
        cached = [past % (layer, kind) for kind in ("key", "value")]
        given = [f"present.{layer}.{kind}" for kind in ("key", "value")]
        attended = g.add(
            "GroupQueryAttention", [q, k, v, *cached, "seqlens", "total", "cos", "sin"], [f"layer{layer}.gqa", *given],
            domain="com.microsoft", num_heads=HEADS, kv_num_heads=HEADS, do_rotary=1,
        )  # fmt: skip
        stream = g.add("Add", [stream, g.linear(attended, f"layer{layer}.o", WIDTH, WIDTH)], f"layer{layer}.sum")
    g.linear(stream, "logits", WIDTH, VOCABULARY)
    inputs = [
        value("input_ids", INT64, ["batch_size", "sequence_length"]),
        value("attention_mask", INT64, ["batch_size", "total_sequence_length"]),
        *caches(past, "past_sequence_length", head),
    ]
    logits = value("logits", FLOAT, ["batch_size", "sequence_length", VOCABULARY])
    return g.model(inputs, [logits, *caches("present.%d.%s", "total_sequence_length", head)])


def decoder(*, past: bool, encoded: bool = False) -> onnx.ModelProto:
    """A decoder of plain operators, with or without a cache, behind an encoder or alone, as optimum writes it.

    One that takes the encoder's caches does not give them anew. There is no causal mask: a prompt of one token needs
    none.
    """
    g = Graph()
    cross = encoded
    ids = "input_ids"
    stream = g.add("Gather", [g.weight("embedding", VOCABULARY, WIDTH, scale=8.0), ids], "embedded")
    split, merged = g.constant("split", np.array([0, -1, HEADS, HEAD])), g.constant("merged", np.array([0, -1, WIDTH]))
    inputs, outputs = [value(ids, INT64, ["batch_size", "sequence_length"])], []

    def heads(source: str, output: str) -> str:
        return g.add("Transpose", [g.add("Reshape", [source, split], f"{output}.split")], output, perm=[0, 2, 1, 3])

    def attend(name: str, q: str, k: str, v: str) -> str:
        turned = g.add("Transpose", [k], f"{name}.turned", perm=[0, 1, 3, 2])
        chances = g.add("Softmax", [g.add("MatMul", [q, turned], f"{name}.scores")], f"{name}.chances", axis=-1)
        back = g.add("Transpose", [g.add("MatMul", [chances, v], f"{name}.mixed")], f"{name}.back", perm=[0, 2, 1, 3])
        return g.linear(g.add("Reshape", [back, merged], f"{name}.joined"), f"{name}.o", WIDTH, WIDTH)

    for layer in range(LAYERS):
        own = "decoder." if encoded else ""
        kept = {}
        for kind in ("key", "value"):
            new = heads(g.linear(stream, f"l{layer}.{kind}", WIDTH, WIDTH), f"l{layer}.{kind}.heads")
            name, present = f"past_key_values.{layer}.{own}{kind}", f"present.{layer}.{own}{kind}"
            kept[kind] = g.add(
                *(("Concat", [name, new], present) if past else ("Identity", [new], present)),
                **({"axis": 2} if past else {}),
            )
            outputs.append(value(present, FLOAT, ["batch_size", HEADS, "all_tokens", HEAD]))
            if past:
                inputs.append(value(name, FLOAT, ["batch_size", HEADS, "past_tokens", HEAD]))
        q = heads(g.linear(stream, f"l{layer}.q", WIDTH, WIDTH), f"l{layer}.q.heads")
        stream = g.add("Add", [stream, attend(f"l{layer}.self", q, kept["key"], kept["value"])], f"l{layer}.sum")
        if cross:
            for kind in ("key", "value"):
                cached = f"past_key_values.{layer}.encoder.{kind}"
                if past:
                    kept[kind] = cached
                    inputs.append(value(cached, FLOAT, ["batch_size", HEADS, "encoder_tokens", HEAD]))
                else:
                    seen = g.linear("encoder_hidden_states", f"l{layer}.cross.{kind}", WIDTH, WIDTH)
                    present = f"present.{layer}.encoder.{kind}"
                    kept[kind] = g.add("Identity", [heads(seen, f"l{layer}.cross.{kind}.heads")], present)
                    outputs.append(value(present, FLOAT, ["batch_size", HEADS, "encoder_tokens", HEAD]))
            q = heads(g.linear(stream, f"l{layer}.cross.q", WIDTH, WIDTH), f"l{layer}.cross.q.heads")
            stream = g.add("Add", [stream, attend(f"l{layer}.cross", q, kept["key"], kept["value"])], f"l{layer}.out")
    g.linear(stream, "logits", WIDTH, VOCABULARY)
    if encoded and not past:
        inputs.append(value("encoder_hidden_states", FLOAT, ["batch_size", "encoder_tokens", WIDTH]))
    logits = value("logits", FLOAT, ["batch_size", "sequence_length", VOCABULARY])
    return g.model(inputs, [logits, *outputs])


def encoder(*, pooled: bool = False) -> onnx.ModelProto:
    """An encoder: of an encoder–decoder, or a classifier of the mean of its tokens."""
    g = Graph(1)
    stream = g.add("Gather", [g.weight("embedding", VOCABULARY, WIDTH, scale=8.0), "input_ids"], "embedded")
    stream = g.add("Relu", [g.linear(stream, "fc1", WIDTH, 4 * WIDTH)], "active")
    inputs = [value(name, INT64, ["batch_size", "tokens"]) for name in ("input_ids", "attention_mask")]
    mask = g.add("Cast", ["attention_mask"], "mask", to=FLOAT)
    kept = g.add("Unsqueeze", [mask, g.constant("last", np.array([-1]))], "column")
    hidden = g.add("Mul", [g.linear(stream, "fc2", 4 * WIDTH, WIDTH), kept], "last_hidden_state")
    if not pooled:
        return g.model(inputs, [value(hidden, FLOAT, ["batch_size", "tokens", WIDTH])])
    g.linear(g.add("ReduceMean", [hidden], "mean", axes=[1], keepdims=0), "logits", WIDTH, 4)
    inputs.append(value("token_type_ids", INT64, ["batch_size", "tokens"]))
    return g.model(inputs, [value("logits", FLOAT, ["batch_size", 4])])


TEXT = "\n".join(
    f"{subject} {verb} the {thing}, and nobody knows why."
    for subject in ("A fox", "The engineer", "My neighbour")
    for verb, thing in (("counts", "stars"), ("paints", "bridge"))
)


def tokenizer(place: Path) -> Path:
    """A tokenizer of single bytes, as tokenizer.json."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    path = place / "tokenizer.json"
    made.save(str(path))
    return path


def write(folder: Path, files: dict[str, onnx.ModelProto | dict[str, Any] | str]) -> Path:
    """A folder of models, configurations and other files."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, onnx.ModelProto):
            onnx.save(content, path)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2))
    return folder


def genai_config(**decoder: Any) -> dict[str, Any]:
    """What onnxruntime-genai reads."""
    names = {
        "inputs": {
            "input_ids": "input_ids", "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value",
        },
    }  # fmt: skip
    section = {
        "session_options": {}, "filename": "model.onnx", "head_size": HEAD, "hidden_size": WIDTH, **names,
        "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "num_key_value_heads": HEADS, **decoder,
    }  # fmt: skip
    model = {
        "bos_token_id": 256, "context_length": 256, "decoder": section, "eos_token_id": 257, "pad_token_id": 257,
        "type": "llama", "vocab_size": VOCABULARY,
    }  # fmt: skip
    search = {"max_length": 256, "do_sample": False, "past_present_share_buffer": True}
    return {"model": model, "search": search}


def genai_folder(place: Path, *, with_tokenizer: bool = True) -> Path:
    """A folder of onnxruntime-genai."""
    write(place, {"model.onnx": genai_decoder(), "genai_config.json": genai_config()})
    if with_tokenizer:
        tokenizer(place)
        write(place, {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}})
    return place


CONFIG = {"model_type": "t5", "vocab_size": VOCABULARY, "decoder_start_token_id": 1}


def seq2seq_files(prefix: str = "") -> dict[str, Any]:
    """The graphs of an encoder–decoder by the names of optimum."""
    return {
        f"{prefix}encoder_model.onnx": encoder(),
        f"{prefix}decoder_model.onnx": decoder(past=False, encoded=True),
        f"{prefix}decoder_with_past_model.onnx": decoder(past=True, encoded=True),
    }
