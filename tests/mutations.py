"""Small models of every kind of structure, and damage to any field of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import numpy_helper

from tests.graph.build import Array, build, weights

NUMBERS = [0, 1, -1, 2, 3, 7, 255, 1 << 20, (1 << 31) - 1, -(1 << 31), 1 << 40, 1 << 62, -(1 << 62)]
REALS = [0.0, 1.0, -1.0, 1e-30, 1e30, float("inf"), float("nan")]
TEXTS = [
    "",
    "x",
    "y",
    "w",
    "\n",
    "\x1b[31m",
    "a b",
    "é",
    "n" * 5000,
    "Identity",
    "Relu",
    "MatMul",
    "ai.onnx",
    "com.microsoft",
]
MOST_NODES = 14


def layers() -> onnx.ModelProto:
    text = "g (float[N,16] x) => (float[N,16] y) { a = Gemm<transB=1> (x, w, b) c = Relu (a) y = MatMul (c, v) }"
    return build(text, w=weights(16, 16), v=weights(16, 16, seed=1), b=weights(16))


def convolutions() -> onnx.ModelProto:
    text = """g (float[N,3,8,8] x) => (float[N,16] y) {
        a = Conv<pads=[1,1,1,1]> (x, w, b) n = BatchNormalization (a, s, b, m, q) r = Relu (n)
        p = GlobalAveragePool (r) f = Flatten (p) y = Softmax<axis=1> (f) }"""
    vector = weights(16, low=0.5)
    return build(text, w=weights(16, 3, 3, 3), b=weights(16), s=vector, m=weights(16, seed=2), q=vector)


def attention() -> onnx.ModelProto:
    text = """g (float[N,4,16] x) => (float[N,4,16] y) {
        q = MatMul (x, w) k = MatMul (x, v) t = Transpose<perm=[0,2,1]> (k) s = MatMul (q, t) p = Softmax (s)
        o = MatMul (p, x) l = LayerNormalization (o, g, b) y = Add (l, x) }"""
    return build(text, w=weights(16, 16), v=weights(16, 16, seed=1), g=weights(16), b=weights(16, seed=3))


def recurrent() -> onnx.ModelProto:
    text = """g (float[4,N,16] x) => (float[N,8] y) {
        all, last, cell = LSTM<hidden_size=8> (x, w, r) s = Squeeze (last, axes) y = MatMul (s, v) }"""
    return build(text, w=weights(1, 32, 16), r=weights(1, 32, 8), v=weights(8, 8), axes=np.array([0], np.int64))


def branches() -> onnx.ModelProto:
    text = """g (float[N,16] x) => (float[N,16] y) {
        m = ReduceMean<keepdims=0> (x) c = Greater (m, zero)
        b = If (c) <then_branch = t () => (float[N,16] o) { o = MatMul (x, w) },
                    else_branch = e () => (float[N,16] p) { p = Relu (x) }>
        y = Loop (trips, yes, b) <body = l (int64 i, bool k, float[N,16] a) => (bool k2, float[N,16] a2)
                    { k2 = Identity (k) a2 = MatMul (a, w) }> }"""
    number = np.array(2, np.int64)
    return build(text, w=weights(16, 16, low=-0.2, high=0.2), zero=np.float32(0), trips=number, yes=np.array(True))


def quantized() -> onnx.ModelProto:
    text = """g (float[N,16] x) => (float[N,16] y) {
        q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) k = DequantizeLinear<axis=1> (w, t)
        y = MatMul (d, k) }"""
    integers = np.random.default_rng(1).integers(-127, 127, (16, 16)).astype(np.int8)
    return build(text, w=integers, s=np.float32(0.02), z=np.uint8(128), t=weights(16, low=0.01, high=0.02))


def functions() -> onnx.ModelProto:
    text = """g (float[N,16] x) => (float[N,16] y) { a = my.F0 (x) b = my.F0 (a) y = MatMul (b, w) }"""
    text += _calls(3)
    text += """
        <opset_import: ["" : 17], domain: "my"> F3 (a) => (c) { b = Relu (a) c = Add (a, b) }"""
    return build(text, imports=', "my": 1', w=weights(16, 16))


def _calls(levels: int) -> str:
    """Functions that call the next one twice each."""
    head = '<opset_import: ["" : 17, "my" : 1], domain: "my">'
    return "".join(
        f"\n{head} F{level} (a) => (c) {{ b = my.F{level + 1} (a) c = my.F{level + 1} (b) }}" for level in range(levels)
    )


def constants() -> onnx.ModelProto:
    text = """g (float[N,16] x) => (float[N,4] y) {
        k = Constant<value_ints=[16, 4]> () f = Constant<value_float=2.0> () v = Reshape (w, k) e = Mul (v, f)
        s = ConstantOfShape (shape) r = Expand (s, shape) h = Shape (x) a = MatMul (x, e) y = Add (a, r) }"""
    return build(text, w=weights(64), shape=np.array([1, 4], np.int64))


BASES: list[Callable[[], onnx.ModelProto]] = [
    layers, convolutions, attention, recurrent, branches, quantized, functions, constants,
]  # fmt: skip


def feeds(model: onnx.ModelProto) -> list[dict[str, Array]]:
    """Samples for a model before it is damaged."""
    generator, found = np.random.default_rng(0), []
    for _ in range(4):
        shapes = {
            value.name: [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim] for value in model.graph.input
        }
        found.append({name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})
    return found


def damaged(seed: int, base: int, times: int) -> onnx.ModelProto:
    """A model with some of its fields changed; the same for the same arguments."""
    chance, model = random.Random(seed), BASES[base]()
    for _ in range(times):
        _mutate(chance, model)
    return model


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for descriptor, value in message.ListFields():
        if descriptor.type == FieldDescriptor.TYPE_MESSAGE:
            for entry in [value] if isinstance(value, Message) else value:
                yield from _messages(entry)


def _mutate(chance: random.Random, model: onnx.ModelProto) -> None:
    everything = list(_messages(model))
    kinds: dict[str, list[Message]] = {}
    for message in everything:
        kinds.setdefault(message.DESCRIPTOR.name, []).append(message)
    message = chance.choice(kinds[chance.choice(list(kinds))])  # nodes are many, graphs are few
    known = [d for d, _ in message.ListFields() if d.name not in ("doc_string", "producer_name", "metadata_props")]
    spare = list(message.DESCRIPTOR.fields)
    descriptor = chance.choice(known if known and chance.random() < 0.8 else spare)
    if descriptor.type == FieldDescriptor.TYPE_MESSAGE:
        _mutate_messages(chance, message, descriptor, everything)
        return
    held = getattr(message, descriptor.name)
    repeated = not isinstance(held, (str, bytes, int, float))
    if not repeated:
        setattr(message, descriptor.name, _scalar(chance, descriptor, held, everything))
        return
    match chance.randrange(4 if len(held) else 1):
        case 0:
            held.append(_scalar(chance, descriptor, None, everything))
        case 1:
            del held[chance.randrange(len(held))]
        case 2:
            del held[:]
        case _:
            place = chance.randrange(len(held))
            held[place] = _scalar(chance, descriptor, held[place], everything)


def _mutate_messages(
    chance: random.Random, message: Message, descriptor: FieldDescriptor, everything: list[Message]
) -> None:
    alike = [other for other in everything if other.DESCRIPTOR is descriptor.message_type]
    donor = type(alike[0])() if alike else None
    if donor is not None:
        donor.CopyFrom(chance.choice(alike))
    held: Any = getattr(message, descriptor.name)
    if isinstance(held, Message):
        if donor is None or chance.random() < 0.4:
            message.ClearField(descriptor.name)
        elif donor.ByteSize() < 20_000:
            held.CopyFrom(donor)
        return
    match chance.randrange(4):
        case 0 if len(held):
            del held[chance.randrange(len(held))]
        case 1 if len(held) > 1:
            entries = [type(entry)() for entry in held]
            for copy, entry in zip(entries, held, strict=True):
                copy.CopyFrom(entry)
            chance.shuffle(entries)
            del held[:]
            held.extend(entries)
        case 2 if len(held):
            held[chance.randrange(len(held))].Clear()
        case _:
            if donor is not None and len(held) < MOST_NODES and donor.ByteSize() < 20_000:
                held.append(donor)


def _scalar(chance: random.Random, descriptor: FieldDescriptor, held: Any, everything: list[Message]) -> Any:
    if descriptor.type == FieldDescriptor.TYPE_STRING or (descriptor.type == FieldDescriptor.TYPE_BYTES and not held):
        names = [m.name for m in everything if isinstance(getattr(m, "name", None), str)]
        names += [
            name for m in everything if isinstance(m, onnx.NodeProto) for name in [*m.input, *m.output, m.op_type]
        ]
        text: str = chance.choice(names if names and chance.random() < 0.7 else TEXTS)
        return text if descriptor.type == FieldDescriptor.TYPE_STRING else text.encode()
    if descriptor.type == FieldDescriptor.TYPE_BYTES:
        content = bytearray(held)
        if chance.random() < 0.5:
            return bytes(content[: chance.randrange(len(content))])
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        return bytes(content)
    if descriptor.type == FieldDescriptor.TYPE_ENUM:
        return chance.choice([value.number for value in descriptor.enum_type.values])
    if descriptor.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return chance.choice(REALS)
    number = chance.choice(NUMBERS) if chance.random() < 0.7 else int(held or 0) + chance.choice([-1, 1])
    bits = 31 if descriptor.type in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_UINT32) else 62
    number = max(min(number, (1 << bits) - 1), -(1 << bits))
    return abs(number) if descriptor.type in (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64) else number


def doubling(depth: int) -> onnx.ModelProto:
    """Functions that call the next one twice."""
    text = "g (float[N,16] x) => (float[N,16] y) { a = my.F0 (x) y = MatMul (a, w) }"
    text += _calls(depth)
    text += f"""
        <opset_import: ["" : 17], domain: "my"> F{depth} (a) => (c) {{ c = Relu (a) }}"""
    return build(text, imports=', "my": 1', w=weights(16, 16))


def turns(count: int) -> onnx.ModelProto:
    """A Loop of that many turns."""
    model = branches()
    next(tensor for tensor in model.graph.initializer if tensor.name == "trips").CopyFrom(
        numpy_helper.from_array(np.array(count, np.int64), "trips")
    )
    return model


def chain(length: int) -> onnx.ModelProto:
    """Nodes that hand on what they get."""
    model = layers()
    model.graph.output[0].name = f"v{length}"
    names = ["y", *(f"v{i + 1}" for i in range(length))]
    for i in range(length):
        model.graph.node.append(onnx.helper.make_node("Identity", [names[i]], [names[i + 1]], name=f"id{i}"))
    return model


def grown(elements: int) -> onnx.ModelProto:
    """A constant of one number that becomes many."""
    text = """g (float[N,16] x) => (float[N,16] y) {
        big = ConstantOfShape (s) r = ReduceSum<keepdims=0> (big) a = MatMul (x, w) y = Add (a, r) }"""
    return build(text, w=weights(16, 16), s=np.array([elements], np.int64))


def named(length: int) -> onnx.ModelProto:
    """An operator with a name that long."""
    model = layers()
    model.graph.node[1].op_type = "A" * length
    return model
