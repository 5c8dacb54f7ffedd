"""A quantized graph whose weights and biases are those of a PyTorch module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from onnxq.core.dtypes import Array
from onnxq.graph.views.exported_module import BatchNorm
from onnxq.graph.views.plain_graph import PlainGraph, PlainNode
from onnxq.qat.fake_quantization import quantize
from onnxq.qat.graph_module import GraphModule
from onnxq.qat.parameters import as_tensor
from onnxq.qat.torch_ops.call import Call, Tensor
from onnxq.qat.torch_ops.integers import round_through, unpacked
from onnxq.qat.torch_ops.registry import function_of
from onnxq.qat.trainable.ties import BIAS, PARAMETER, SCALE, WEIGHT, Tie

Spot = tuple[int, int]
"""A node by its index and the position of an input."""


class WeightGrid(nn.Module):
    """The scale of a weight that its module trains: it follows the weight's size, and learns beside that.

    ``scale = ratio · size(weight) · exp(shift)``; the size is the largest magnitude, or below 8 bits the mean one, of
    what shares a scale. So grids stay right where an optimizer, or a norm folded into the weight, changes that by far.
    The shift is a logarithm: its gradient is about as large as that of a norm's gain, so that one rate suits all.

    Attributes:
        shift: parameter, 0 at the start.
        ratio: buffer.
    """

    def __init__(self, scale: Array, zero: Tensor | None, limits: tuple[int, int], axes: tuple[int, int]) -> None:
        """Begin with the scale that was found.

        Args:
            scale: of the weight, in the shape that the graph holds it in.
            zero: whole zero points in the same shape; None where they are 0.
            limits: smallest and largest integer that may be used.
            axes: the axis of the scales, and elements of a block along it, 0 where there are none.
        """
        super().__init__()
        self.limits, self.axis, self.block = limits, axes[0], axes[1]
        self.shift = nn.Parameter(torch.zeros(scale.shape, dtype=torch.float32))
        self.ratio: Tensor
        self.register_buffer("ratio", as_tensor(scale))
        self.register_buffer("zero", zero)

    def start(self, weight: Tensor) -> None:
        """Take the weight that the scale was found for."""
        size = self._size(weight)
        top = float(max(abs(self.limits[0]), abs(self.limits[1])))
        self.ratio = torch.where(size > 1e-12, self.ratio / size.clamp(min=1e-12), torch.full_like(size, 1.0 / top))

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Whole numbers of a weight, and their scale; gradients are those of learned step sizes."""
        base = (self.ratio * self._size(weight)).clamp(min=1e-12)
        scale = base * torch.exp(self.shift)
        zero = torch.zeros((), device=weight.device) if self.zero is None else self.zero
        return quantize(weight, scale, zero, self.limits, axis=self.axis, block=self.block), scale

    def _size(self, weight: Tensor) -> Tensor:
        magnitude = weight.detach().abs()
        mean = self.limits[1] - self.limits[0] < 127
        if self.shift.numel() == 1:
            found = magnitude.mean() if mean else magnitude.amax()
            return found.reshape(self.shift.shape)
        axis = self.axis % weight.ndim
        if self.block:
            lengths = (0, -weight.shape[axis] % self.block)
            wide = functional.pad(magnitude.movedim(axis, -1), lengths)
            wide = wide.reshape(*wide.shape[:-1], -1, self.block)
            found = wide.mean(-1) if mean else wide.amax(-1)
            return found.movedim(-1, axis).reshape(self.shift.shape)
        others = [i for i in range(weight.ndim) if i != axis]
        found = magnitude.mean(others) if mean else magnitude.amax(others)
        return found.reshape(self.shift.shape)


@dataclass
class TrainedWeight:
    """A weight on integers that the module trains.

    Attributes:
        tie: where it comes from.
        grid: its scale.
        integers: where the graph reads its integers.
        scale: where the graph reads its scale.
        name: of its integers' constant.
        packed: shape that MatMulNBits wants, blocks along the last axis; None for all others.
    """

    tie: Tie
    grid: WeightGrid
    integers: Spot
    scale: Spot
    name: str
    packed: tuple[int, ...] | None = None

    def arranged(self, weight: Tensor) -> Tensor:
        """The weight as the node holds it."""
        if self.packed is None:
            return weight
        rows, blocks, size = self.packed
        turned = weight.T
        return functional.pad(turned, (0, blocks * size - turned.shape[1])).reshape(rows, blocks, size)


@dataclass
class Dropped:
    """A dropout in the graph.

    Attributes:
        spots: where dropped values are read.
        rate: share that is dropped.
        module: whose mode counts.
        channels: whole channels are dropped.
    """

    spots: frozenset[Spot]
    rate: float
    module: str
    channels: bool


@dataclass
class Threads:
    """What ties a graph to a module.

    Attributes:
        layers: weights on integers.
        floats: constants in float, by where they are read.
        biases: of int32 biases, by the index of the node that dequantizes them: the tie (None where the module has
            none) and what was added to the bias since.
        steps: for each of these: where the scales of the layer's input and weight are read.
        norms: layers into which a norm was folded, by the index of their node: the weight and the bias's node.
        alone: norms that stand alone, by the index of the node that multiplies or normalizes.
        dropouts: the dropouts.
    """

    layers: list[TrainedWeight] = field(default_factory=list)
    floats: dict[Spot, Tie] = field(default_factory=dict)
    biases: dict[int, tuple[Tie | None, Array]] = field(default_factory=dict)
    steps: dict[int, tuple[Spot, Spot]] = field(default_factory=dict)
    norms: dict[int, tuple[TrainedWeight, int]] = field(default_factory=dict)
    alone: dict[int, BatchNorm] = field(default_factory=dict)
    dropouts: list[Dropped] = field(default_factory=list)


class TiedGraph(GraphModule):
    """The graph; `bind` has to be called before each run.

    Attributes:
        threads: what ties it to the module.
    """

    def __init__(self, graph: PlainGraph, threads: Threads) -> None:
        super().__init__(graph)
        self.threads = threads
        self._module: nn.Module | None = None
        self._given: dict[Spot, Tensor] = {}
        self._masks: dict[int, Tensor] = {}
        self._dropped: dict[Spot, list[int]] = {}
        for index, each in enumerate(threads.dropouts):
            for spot in each.spots:
                self._dropped.setdefault(spot, []).append(index)
        for index, (tie, extra) in threads.biases.items():
            self.register_buffer(f"extra_{index}", torch.from_numpy(extra))
            self._keep(f"bias_{index}", tie)
        for spot, tie in threads.floats.items():
            self._keep(f"float_{spot[0]}_{spot[1]}", tie)
        for layer in threads.layers:
            self._keep(f"weight_{layer.integers[0]}_{layer.integers[1]}", layer.tie)

    def __getstate__(self) -> dict[str, Any]:
        """Functions of operators are found again."""
        return {**self.__dict__, "_functions": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._functions = {node.index: self._function(node) for node in self.graph.nodes}

    def _keep(self, key: str, tie: Tie | None) -> None:
        if tie is not None and tie.factor is not None:
            self.register_buffer(f"factor_{key}", torch.from_numpy(tie.factor))

    def bind(self, module: nn.Module) -> None:
        """Take weights and biases as a module has them now."""
        self._module, self._masks = module, {}
        state = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
        given: dict[Spot, Tensor] = {}
        for layer in self.threads.layers:
            weight = self._tied(f"weight_{layer.integers[0]}_{layer.integers[1]}", layer.tie, state)
            given[layer.integers], given[layer.scale] = layer.grid(layer.arranged(weight))
        for spot, tie in self.threads.floats.items():
            given[spot] = self._tied(f"float_{spot[0]}_{spot[1]}", tie, state)
        for index, (known, _) in self.threads.biases.items():
            real = getattr(self, f"extra_{index}")
            given[index, 0] = real if known is None else real + self._tied(f"bias_{index}", known, state)
        self._given = given

    def release(self) -> None:
        """Let go of what `bind` took, so that the graph can be copied."""
        self._module, self._given, self._masks = None, {}, {}

    def _tied(self, key: str, tie: Tie, state: Mapping[str, Tensor]) -> Tensor:
        value = source_of(tie, state).permute(tie.order).reshape(tie.shape)
        factor = getattr(self, f"factor_{key}", None)
        return value if factor is None else value * factor

    # Running it.

    def inputs_of(self, node: PlainNode, values: Mapping[str, Tensor]) -> list[Tensor | None]:
        """What a node reads: the module's own weights, and values that are dropped."""
        found: list[Tensor | None] = []
        for position, name in enumerate(self._reads[node.index]):
            spot = (node.index, position)
            value = self._given[spot] if spot in self._given else self._read(name, values) if name else None
            for index in self._dropped.get(spot, ()) if value is not None else ():
                value = self._drop(index, value)
            found.append(value)
        return found

    def _drop(self, index: int, value: Tensor) -> Tensor:
        """A value without what is dropped; all that read it miss the same."""
        dropout = self.threads.dropouts[index]
        assert self._module is not None
        if not self._module.get_submodule(dropout.module).training:
            return value
        if index not in self._masks:
            shape = value.shape[:2] + (1,) * (value.ndim - 2) if dropout.channels else value.shape
            self._masks[index] = functional.dropout(torch.ones(shape, device=value.device), dropout.rate, True)
        return value * self._masks[index]

    def bias(self, node: PlainNode) -> Tensor:
        """An int32 bias, rounded to the steps of its layer's products."""
        if node.index not in self.threads.biases:
            return super().bias(node)
        step = self.step_of(node)
        return round_through(self._given[node.index, 0] / step) * step

    def step_of(self, node: PlainNode) -> Tensor:
        """Scale of a layer's products, by the node that dequantizes its bias."""
        x, w = (self._scale_at(spot) for spot in self.threads.steps[node.index])
        return (x * w).detach().reshape(-1).clamp(min=float(torch.finfo(torch.float32).tiny))

    def _scale_at(self, spot: Spot) -> Tensor:
        if spot in self._given:
            return self._given[spot]
        node = next(node for node in self.graph.nodes if node.index == spot[0])
        return self._read(self._reads[node.index][spot[1]], {})

    def real_bias(self, index: int) -> Tensor:
        """An int32 bias before it is rounded."""
        return self._given[index, 0]

    def given_at(self, spot: Spot) -> Tensor:
        """What is read at a spot that is tied."""
        return self._given[spot]

    def step(self, node: PlainNode, values: dict[str, Tensor]) -> None:
        """Run one node; a norm that is in training normalizes by its batch."""
        if self._module is not None and node.index in self.threads.norms:
            layer, bias = self.threads.norms[node.index]
            assert layer.tie.norm is not None
            norm = self._module.get_submodule(layer.tie.norm.module)
            if norm.training:
                values[node.outputs[0]] = self._with_norm(node, values, (layer, bias), norm)
                return
        if self._module is not None and node.index in self.threads.alone:
            norm = self._module.get_submodule(self.threads.alone[node.index].module)
            x = self.inputs_of(node, values)[0]
            if norm.training and x is not None:
                values[node.outputs[0]] = norm(x)
                return
        super().step(node, values)

    def _with_norm(
        self, node: PlainNode, values: Mapping[str, Tensor], parts: tuple[TrainedWeight, int], norm: nn.Module
    ) -> Tensor:
        """A layer on the weight that it will have when the norm is folded into it, and the norm behind it.

        The layer's output is divided by the factors of folding again, so that the norm sees what it sees in the module.
        """
        layer, bias = parts
        found, tie = layer.tie.norm, layer.tie
        assert found is not None and self._module is not None
        state = {**dict(self._module.named_parameters()), **dict(self._module.named_buffers())}
        inputs = self.inputs_of(node, values)
        weight = inputs[1]
        assert weight is not None
        folded = source_of(Tie(SCALE, tie.name, found, (0,), (), tie.constant), state)
        known, _ = self.threads.biases.get(bias, (None, None))
        outer = getattr(self, f"factor_bias_{bias}", None) if known is not None else None
        scale = folded if outer is None else folded * outer
        shape = [-1 if axis == found.axis else 1 for axis in range(weight.ndim)]
        small = scale.detach().abs() < 1e-6
        raw = state[found.weight]
        unfolded = weight / torch.where(small, torch.ones_like(scale), scale).reshape(shape)
        unfolded = torch.where(small.reshape(shape), raw.reshape(weight.shape), unfolded)
        function = function_of(node)
        assert function is not None
        y = function(Call(node, [inputs[0], unfolded, None]))
        assert isinstance(y, torch.Tensor)
        wide = [1, -1] + [1] * (y.ndim - 2)
        if found.bias:
            y = y + state[found.bias].reshape(wide)
        y = norm(y)
        if outer is not None:
            y = y * outer.reshape(wide)
        return y + getattr(self, f"extra_{bias}").reshape(wide) if bias in self.threads.biases else y


def source_of(tie: Tie, state: Mapping[str, Tensor]) -> Tensor:
    """What a tie's constant is made of, as a module holds it now."""
    if tie.kind == PARAMETER:
        return state[tie.name]
    norm = tie.norm
    assert norm is not None
    gain, offset, mean, variance = (
        state.get(f"{norm.module}.{part}" if norm.module else part)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    assert mean is not None and variance is not None
    scale = torch.rsqrt(variance + norm.epsilon)
    scale = scale if gain is None else scale * gain
    if tie.kind == SCALE:
        return scale
    if tie.kind == WEIGHT:
        weight = state[norm.weight]
        return weight * scale.reshape([-1 if axis == norm.axis else 1 for axis in range(weight.ndim)])
    before = state[norm.bias] - mean if tie.kind == BIAS and norm.bias else -mean
    found = before * scale
    return found if offset is None else found + offset


def zero_points(array: Array, bits: int, shape: tuple[int, ...]) -> Tensor:
    """Zero points of MatMulNBits as whole numbers in the shape of its scales."""
    tensor = as_tensor(array)
    rows = shape[0]
    flat = tensor.reshape(rows, -1)
    return (flat if flat.shape[1] == shape[1] else unpacked(flat, bits)[:, : shape[1]]).reshape(shape)
