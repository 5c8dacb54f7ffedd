"""Reconstruction: the blocks of a quantized graph learn, in order, to give the float model's values.

Each block is given what the quantized model, as far as it has learned, gives it in ONNX Runtime; its targets are the
float model's values. Nodes without a torch function stay as they are, and so do the blocks that they are in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path

import numpy as np
import torch

from onnxq.core import atomic, scratch
from onnxq.core.dtypes import Array
from onnxq.core.processors import free_processors
from onnxq.data.feeds import Feed
from onnxq.graph.types import Model
from onnxq.graph.views.plain_graph import PlainNode, limits_behind, plain_graph, replace_constants
from onnxq.qat.block_learning import BlockLearner, BlockResult, Sample
from onnxq.qat.block_parts import LearningConfig
from onnxq.qat.computing_time import Allowance
from onnxq.qat.graph_module import GraphModule
from onnxq.qat.network_blocks import Block, Facts, find_blocks, teachers_of
from onnxq.qat.parameters import RANGES
from onnxq.qat.torch_ops.call import NodeError
from onnxq.runtime.probe import InnerValues

IN_MEMORY = 256 << 20
"""Bytes of a block's samples that are kept in memory; the rest lies in a temporary folder."""

ON_DISK = 4 << 30
"""Bytes of a block's samples at most: beyond it further samples are left out."""

_STEPS_BEHIND = 4
"""Nodes behind a layer that are asked for a value which stands for one of the float model's."""

EVIDENCE = 100
"""Numbers that all samples together must hold of what a layer gives, for each number of its weight, for its rounding to
8 bits to learn: with fewer the samples are learned by heart, while scales and biases are few. Filters that share little
with others, as of depthwise convolutions, have far more."""


@dataclass
class Reconstruction:
    """What is to be reconstructed.

    Attributes:
        module: the quantized graph; learns in place.
        emitted: the model that the module was made of.
        teacher: the float model.
        floats: real values of the float model, with the number of their elements in a sample.
        samples: feeds to learn from; read once a block.
        count: how many there are.
        held_out: feeds to judge by.
        config: how a block learns.
        allowance: time that it may take.
        threads: threads to use; None takes the free processors.
        least: integer layers of a block, where the network has joints there.
        report: called with the blocks that are done, and how many there are.
        kept: folder where blocks that are done are kept, for a run that goes on; None keeps none.
        signature: of all that learning depends on: what is kept of another one is not taken.
    """

    module: GraphModule
    emitted: Model
    teacher: Model
    floats: dict[str, int]
    samples: Iterable[Feed]
    count: int
    held_out: Iterable[Feed]
    config: LearningConfig = field(default_factory=LearningConfig)
    allowance: Allowance = field(default_factory=Allowance)
    threads: int | None = None
    least: int = 4
    report: Callable[[int, int | None], None] = lambda done, total: None
    kept: Path | None = None
    signature: str = ""


@dataclass
class Reconstructed:
    """What came of it.

    Attributes:
        outcomes: of each block that learned, in order.
        skipped: operator types without a torch function that kept their blocks from learning.
        failed: why blocks did not learn that PyTorch could not run, a line each.
        late: blocks for which no time was left.
    """

    outcomes: list[BlockResult] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    late: int = 0


def reconstruct(task: Reconstruction) -> Reconstructed:
    """Let the blocks learn in order; each that learned is better on held-out samples than it was.

    Raises:
        ModelError: the runtime cannot run a model.
    """
    module = task.module
    plain = plain_graph(task.teacher)
    known = frozenset(plain.inputs) | {name for node in plain.nodes for name in node.outputs}
    facts = Facts(teachers_of(module.graph, known), task.floats, layers_of(module))
    blocks = [block for block in find_blocks(module.graph, facts, task.least) if block.layers]
    proven = _proven(task, facts)
    result, allowance = Reconstructed(), task.allowance
    with _threads(task.threads):
        for index, block in enumerate(blocks):
            task.report(index, len(blocks))
            lacking = [node.op_type for node in block.nodes if not module.runs(node)]
            if lacking:
                result.skipped += lacking
                continue
            if allowance.over:
                result.late = len(blocks) - index
                break
            share = _work(block, facts) / sum(_work(other, facts) for other in blocks[index:])
            try:
                outcome = _learn(task, block, facts, allowance, share, (index, proven))
            except NodeError as error:
                result.failed.append(str(error))
                continue
            if outcome is not None:
                result.outcomes.append(outcome)
        task.report(len(blocks), len(blocks))
    result.skipped = list(dict.fromkeys(result.skipped))
    return result


def _proven(task: Reconstruction, facts: Facts) -> frozenset[str]:
    """Weights for whose rounding to many bits there are samples enough, by the name of their integers."""
    readers: dict[str, list[PlainNode]] = {}
    for node in task.module.graph.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)

    def numbers(node: PlainNode) -> int:
        """Of what a layer gives, or of the first value behind it that stands for one of the float model's."""
        for _ in range(_STEPS_BEHIND):
            known = [facts.floats.get(facts.teachers.get(name, ""), 0) for name in node.outputs if name]
            behind = readers.get(node.outputs[0], [])
            if any(known) or len(behind) != 1:
                return max(known, default=0)
            node = behind[0]
        return 0

    found = set()
    for name, weight in task.module.weights.items():
        layers = [weight.node]
        if weight.node.op_type in ("DequantizeLinear", "Cast"):
            layers = readers.get(weight.node.outputs[0], [])
        if sum(map(numbers, layers)) * task.count >= EVIDENCE * weight.integers.latent.numel():
            found.add(name)
    return frozenset(found)


def _work(block: Block, facts: Facts) -> int:
    """What a step of a block costs, as the number of elements that it writes."""
    written = {facts.teachers.get(name, "") for node in block.nodes for name in node.outputs}
    return 1 + sum(facts.floats.get(name, 0) for name in written)


def layers_of(module: GraphModule) -> frozenset[int]:
    """Indices of the nodes that multiply by an integer weight."""
    readers: dict[str, list[int]] = {}
    for node in module.graph.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node.index)
    found: set[int] = set()
    for weight in module.weights.values():
        node = weight.node
        if node.op_type in ("DequantizeLinear", "Cast"):
            found.update(readers.get(node.outputs[0], ())[:1])
        else:
            found.add(node.index)
    return frozenset(found)


def _learn(
    task: Reconstruction, block: Block, facts: Facts, allowance: Allowance, share: float,
    how: tuple[int, frozenset[str]],
) -> BlockResult | None:  # fmt: skip
    learner = BlockLearner(task.module, block, task.config, *how)
    if not learner.learns:
        return None
    digest = hashlib.sha256(f"{task.signature} {how[0]}".encode()).hexdigest()
    path = None if task.kept is None else task.kept / f"{digest[:32]}.npz"
    known = None if path is None else atomic.read_arrays(path)
    if known is not None and "outcome" in known and learner.take(known):
        *figures, seconds = known["outcome"].tolist()
        allowance.spend(seconds)
        return BlockResult(*figures[:2], *map(int, figures[2:4]), *map(bool, figures[4:]))
    begun = allowance.mark()
    current = task.emitted.clone()
    replace_constants(current, task.module.changed())
    names = block.inputs if learner.drops else ()
    clean = {name: facts.teachers[name] for name in names if facts.teachers.get(name) in facts.floats}
    given = InnerValues(current, block.inputs, task.threads)
    wanted = InnerValues(task.teacher, [*block.outputs.values(), *clean.values()], task.threads)
    with scratch.folder() as folder:
        source = _Source(block, clean, given, wanted, _Shelf(folder), reaches_of(task.module))
        samples, held_out = (list(source.samples(feeds)) for feeds in (task.samples, task.held_out))
        if not samples or not held_out:
            return None
        outcome = learner.learn(samples, held_out, allowance.share(share))
    if path is not None:
        figures = np.array([*astuple(outcome), allowance.computed_since(begun)], np.float64)
        atomic.write_arrays(path, {**learner.state(), "outcome": figures})
    return outcome


def reaches_of(module: GraphModule) -> dict[str, tuple[Array, Array]]:
    """Least and largest number that each value behind a DequantizeLinear can be.

    A grid may end early on purpose: where all that reads the value is level beyond, as below −3 in HardSwish.
    """
    constants, found = module.graph.constants, {}
    limits = limits_behind(module.graph)
    for node in module.graph.nodes:
        scale, zero = (constants.get(name) for name in (*node.inputs[1:3], "", "")[:2])
        if node.op_type != "DequantizeLinear" or scale is None or zero is None or zero.dtype.name not in RANGES:
            continue
        ends = limits.get(node.inputs[0], RANGES[zero.dtype.name])
        low, high = (np.asarray((end - zero.astype(np.float32)) * scale, np.float32) for end in ends)
        found[node.outputs[0]] = (low, high) if scale.size == 1 else (low[:, None, None], high[:, None, None])
    return found


@dataclass
class _Source:
    """Where the samples of a block come from."""

    block: Block
    clean: dict[str, str]
    given: InnerValues
    wanted: InnerValues
    shelf: _Shelf
    reaches: dict[str, tuple[Array, Array]]

    def samples(self, feeds: Iterable[Feed]) -> Iterator[Sample]:
        """The block's samples; those with a value that is not finite or has another shape are left out."""
        for feed in feeds:
            if self.shelf.full:
                return
            values, teachers = self.given.of(feed), self.wanted.of(feed)
            inputs = {name: values[name] for name in self.block.inputs if name in values}
            exact = {
                name: self._within(name, teachers[teacher])
                for name, teacher in self.clean.items()
                if teacher in teachers and name in inputs and teachers[teacher].shape == inputs[name].shape
            }
            targets = {
                name: self._within(name, teachers[teacher])
                for name, teacher in self.block.outputs.items()
                if teacher in teachers
            }
            real = [array for part in (inputs, exact, targets) for array in part.values() if array.dtype.kind == "f"]
            finite = all(np.isfinite(array).all() for array in real)
            if len(inputs) == len(self.block.inputs) and targets and finite:
                yield Sample(*(self.shelf.keep_all(part) for part in (inputs, exact, targets)))

    def _within(self, name: str, array: Array) -> Array:
        low, high = self.reaches.get(name, (None, None))
        return array if low is None or (low.ndim and array.ndim != 4) else np.clip(array, low, high)


class _Shelf:
    """Keeps arrays: in memory while there are few, then in files."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._bytes, self._count = folder, 0, 0

    @property
    def full(self) -> bool:
        return self._bytes > ON_DISK

    def keep_all(self, arrays: dict[str, Array]) -> dict[str, Array]:
        return {name: self._keep(array) for name, array in arrays.items()}

    def _keep(self, array: Array) -> Array:
        self._bytes += array.nbytes
        if self._bytes <= IN_MEMORY or array.nbytes < 1 << 16:
            return array
        self._count += 1
        path = self._folder / f"{self._count}.npy"
        np.save(path, array)
        mapped: Array = np.load(path, mmap_mode="r")
        return mapped


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    """Within it torch uses so many threads, and draws the same numbers each time."""
    before, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(threads or free_processors())
    torch.manual_seed(0)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_rng_state(state)
