"""Copies of a model for runs in memory: with inner values as outputs, and without their weights."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxq.core.dtypes import Array
from onnxq.graph import edit, walk
from onnxq.graph.names import scopes
from onnxq.graph.views import inner

Model = ir.Model
"""The model type, for packages that pass models on without looking inside."""


_POOLED_RANKS = (3, 4, 5)
"""Ranks of what the runtime's pooling operators take: images of one to three dimensions."""


@dataclass(frozen=True)
class Augmented:
    """A copy of a model with further outputs.

    Attributes:
        model: the copy; weights are shared with the original.
        outputs: the names asked for that are outputs of the copy, in the order asked for.
        inputs: those that are inputs of the graph, whose contents the feed has.
        constants: those that are initializers.
        missing: those that are unknown, or inside a body that does not hand them out.
        inner: by name of each value inside an If, Loop or Scan body, the output that hands it out
            (see `onnxq.graph.views.inner`).
    """

    model: Model
    outputs: list[str]
    inputs: list[str]
    constants: list[str]
    missing: list[str]
    inner: dict[str, str] = field(default_factory=dict)


def with_outputs(model: Model, names: Iterable[str]) -> Augmented:
    """Copy a model and append values, those of subgraphs among them, to its outputs.

    Args:
        model: unchanged.
        names: names of values; those that are outputs already are not appended again.
    """
    copy = model.clone()
    graph = copy.graph
    inputs = {value.name for value in graph.inputs}
    made = {value.name: value for node in graph for value in node.outputs if value.name}
    given = {value.name for value in graph.outputs}
    result = Augmented(copy, [], [], [], [])
    for name in dict.fromkeys(names):
        if name in inputs:
            result.inputs.append(name)
        elif name in graph.initializers:
            result.constants.append(name)
        elif name in made:
            result.outputs.append(name)
            if name not in given:
                value = made[name]
                value.shape = None  # the runtime infers both; what the file says of inner values may be wrong
                value.type = None
                graph.outputs.append(value)
        else:
            result.missing.append(name)
    result.inner.update(inner.expose(copy, result.missing))
    result.missing[:] = [name for name in result.missing if name not in result.inner]
    return result


def with_inner_shapes(model: Model) -> Augmented:
    """Copy a model and let it also give the shapes of the float values in its subgraphs (`onnxq.graph.views.inner`)."""
    copy = model.clone()
    return Augmented(copy, [], [], [], [], inner.expose(copy, inner.float_names(model), shapes=True))


def add_channel_means(augmented: Augmented, names: Iterable[str]) -> dict[str, str]:
    """Let an augmented model also give the mean of each channel over the image, (N, C, 1, …).

    Args:
        augmented: changed in place.
        names: values of (N, C, spatial …); unknown ones are left out.

    Returns:
        Name of the output by name of the value.
    """
    graph = augmented.model.graph
    free = walk.Names(augmented.model)
    known = {value.name: value for value in graph.inputs}
    known |= {value.name: value for node in graph for value in node.outputs if value.name}
    added: dict[str, str] = {}
    for name in dict.fromkeys(names):
        value = known.get(name)
        if value is None:
            continue
        mean = ir.Value(name=free.value(f"{name}_channel_means"))
        graph.append(ir.Node("", "GlobalAveragePool", [value], outputs=[mean], name=free.node(f"{name}_means")))
        graph.outputs.append(mean)
        added[name] = str(mean.name)
    return added


def add_channel_peaks(augmented: Augmented, names: Iterable[str]) -> dict[str, str]:
    """Let an augmented model also give the largest magnitude of each channel over the image, (N, C, 1, …).

    Args:
        augmented: changed in place.
        names: values; those that no Conv of the main graph writes, or one of more than three dimensions, are left out.

    Returns:
        Name of the output by name of the value.
    """
    graph = augmented.model.graph
    free = walk.Names(augmented.model)
    layers = [node for node in graph if node.op_type == "Conv" and node.domain == ""]
    known = {layer.outputs[0].name: layer.outputs[0] for layer in layers if walk.rank(layer.inputs[1]) in _POOLED_RANKS}
    added: dict[str, str] = {}
    for name in dict.fromkeys(names):
        value = known.get(name)
        if value is None:
            continue
        size = ir.Value(name=free.value(f"{name}_magnitude"))
        peak = ir.Value(name=free.value(f"{name}_channel_peaks"))
        graph.append(ir.Node("", "Abs", [value], outputs=[size], name=free.node(f"{name}_abs")))
        graph.append(ir.Node("", "GlobalMaxPool", [size], outputs=[peak], name=free.node(f"{name}_peaks")))
        graph.outputs.append(peak)
        added[name] = str(peak.name)
    return added


def with_offsets(model: Model, names: Iterable[str]) -> tuple[Model, dict[str, str]]:
    """Copy a model and let the caller add to values of its main graph: what an error there does further on.

    Args:
        model: unchanged.
        names: float values that nodes make.

    Returns:
        The copy, and the name of the input that is added to each value, of any shape that broadcasts.
    """
    copy = model.clone()
    free = walk.Names(copy)
    made = {value.name: value for node in copy.graph for value in node.outputs if value.name}
    added: dict[str, str] = {}
    for name in dict.fromkeys(names):
        value = made.get(name)
        if value is None:
            continue
        offset = ir.Value(name=free.value(f"{name}_offset"), type=ir.TensorType(ir.DataType.FLOAT))
        moved = ir.Value(name=free.value(f"{name}_moved"))
        value.replace_all_uses_with(moved, replace_graph_outputs=True)
        producer = value.producer()
        assert producer is not None
        add = ir.Node("", "Add", [value, offset], outputs=[moved], name=free.node(f"{name}_add"))
        copy.graph.insert_after(producer, add)
        copy.graph.inputs.append(offset)
        added[name] = str(offset.name)
        moved.type = value.type
    return copy, added


def only_outputs(model: Model, names: Iterable[str]) -> Model:
    """A copy of a model that computes some values of its main graph and nothing else.

    Args:
        model: unchanged.
        names: names of values; inputs of the model, initializers and unknown ones are left out.
    """
    copy = model.clone()
    graph = copy.graph
    made = {value.name: value for node in graph for value in node.outputs if value.name}
    wanted = [made[name] for name in dict.fromkeys(names) if name in made]
    graph.outputs.clear()
    for value in wanted:
        value.shape = None
        value.type = None
        graph.outputs.append(value)
    for node in reversed(list(graph)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            edit.remove_node(node)
    for constant in list(graph.initializers.values()):
        edit.drop_unused_initializer(constant)
    for value in [value for value in graph.inputs if not value.uses()]:
        graph.inputs.remove(value)
    return copy


def value_names(model: Model) -> list[str]:
    """Names of all values that nodes of the main graph make, in graph order."""
    return [value.name for node in model.graph for value in node.outputs if value.name]


_NOT_TENSORS = frozenset(
    {"SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceMap", "SplitToSequence"}
    | {"Optional", "OptionalGetElement", "ZipMap"}
)


def tensor_names(model: Model) -> list[str]:
    """Those of `value_names` that are sure to be tensors: no sequences, optional values or maps."""
    return [
        value.name
        for node in model.graph
        if node.op_type not in _NOT_TENSORS
        for value in node.outputs
        if value.name and not isinstance(value.type, ir.SequenceType | ir.OptionalType)
    ]


_INLINE = 4096
"""Initializers of fewer bytes stay in the message: runtimes read shapes and axes while they load."""

_SHARED = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8, ir.DataType.UINT8})
"""Element types of weights that numpy and every runtime hold alike."""


def without_weights(model: Model) -> tuple[bytes, dict[str, Array]]:
    """Take a model apart, so that its weights need not be copied to be run.

    Args:
        model: unchanged.

    Returns:
        The model's contents, whose large weights refer to a file that does not exist, and these weights by name,
        which share memory with the model.
    """
    copy = model.clone()
    weights = {}
    for name, value in copy.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.dtype not in _SHARED or tensor.nbytes < _INLINE:
            continue
        if value.is_graph_output() or not value.uses():  # the runtime drops what nothing reads, and misses it then
            continue
        weights[name] = np.ascontiguousarray(tensor.numpy())
        value.const_value = ir.ExternalTensor(
            "in-memory", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
        )
    return bytes(ir.to_proto(copy).SerializeToString()), weights


def weight_bytes(model: Model) -> int:
    """Bytes of the initializers of the main graph."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def has_operator(model: Model, op_type: str) -> bool:
    """Whether the main graph has a node of that type."""
    return any(node.op_type == op_type for node in model.graph)


_REORDER_DOMAIN = "com.microsoft.nchwc"
_BLOCK = 16
"""Channels in the largest block; a value with a multiple of them holds no padding."""


_LEAVES = frozenset({"Abs", "GlobalAveragePool", "GlobalMaxPool", "ReorderOutput"})
"""Operators that read a value for the caller alone, where nothing else reads what they make."""


def without_reorders(path: Path) -> bytes | None:
    """Let a model that ONNX Runtime optimized give blocked values instead of reordering them, under the same names.

    Only values without padding that nothing but the caller reads, or what `add_channel_peaks` added, are changed: their
    elements and shape stay, the order of the elements does not. What reads a value for the caller alone comes to stand
    right behind what makes it: run in this order, it finds the value in the cache.

    Args:
        path: of the optimized model; the file is not changed.

    Returns:
        The contents of the changed model; None where there was nothing to change.

    Raises:
        OSError: the file cannot be read.
    """
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    outputs = {value.name: value for value in graph.output}
    users = _Users(graph)
    renamed: dict[str, str] = {}
    kept = []
    for node in users.nodes:
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        if (
            node.op_type == "ReorderOutput"
            and node.domain == _REORDER_DOMAIN
            and node.output[0] in outputs
            and node.input[0] not in renamed
            and node.input[0] not in outputs
            and attributes.get("channels", 1) % _BLOCK == 0
            and not attributes.get("channels_last", 0)
            and (pools := users.peak_pools(node.output[0], outputs)) is not None
        ):
            renamed[node.input[0]] = node.output[0]
            outputs[node.output[0]].ClearField("type")
            for pool in pools:  # blocked channels of a single position are in order
                pool.domain = _REORDER_DOMAIN
        else:
            kept.append(node)
    for node in kept:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name in renamed:
                    names[index] = renamed[name]
    ordered = _leaves_early(kept)
    if not renamed and all(one is other for one, other in zip(ordered, kept, strict=True)):
        return None
    del graph.node[:]
    graph.node.extend(ordered)
    return bytes(model.SerializeToString())


class _Users:
    """Which nodes of the main graph read a value."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self._reads = Counter(name for scope in scopes(graph) for node in scope.node for name in node.input)
        self._users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self._users[name].append(node)

    def peak_pools(self, name: str, outputs: Collection[str]) -> list[onnx.NodeProto] | None:
        """The GlobalMaxPools of a value's magnitudes; None if anything else reads the value or its magnitudes."""
        sizes = self._all(name, "Abs")
        pools = None if sizes is None else [self._all(size.output[0], "GlobalMaxPool") for size in sizes]
        if sizes is None or pools is None or any(size.output[0] in outputs for size in sizes):
            return None
        return None if None in pools else [pool for some in pools for pool in some or ()]

    def _all(self, name: str, op_type: str) -> list[onnx.NodeProto] | None:
        """All nodes that read a value, if they are of that type and in the main graph."""
        users = self._users[name]
        plain = all(node.op_type == op_type and not node.domain for node in users)
        return users if plain and len(users) == self._reads[name] else None


def _leaves_early(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes, those that only give outputs right behind what they read."""
    read: set[str] = set()
    leaf = [False] * len(nodes)
    for index in range(len(nodes) - 1, -1, -1):
        node = nodes[index]
        leaf[index] = node.op_type in _LEAVES and not any(name in read for name in node.output)
        if not leaf[index]:
            read.update(node.input)
    places: dict[str, int] = {}
    keys = []
    for index, node in enumerate(nodes):
        place = max((places.get(name, -1) for name in node.input), default=-1) if leaf[index] else index
        places |= dict.fromkeys(node.output, place)
        keys.append((place, index))
    return [nodes[index] for _, index in sorted(keys)]
