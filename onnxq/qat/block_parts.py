"""What of a module belongs to one block and learns, and how fast."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from onnxq.errors import RecipeError
from onnxq.qat.graph_module import GraphModule
from onnxq.qat.network_blocks import Block
from onnxq.qat.parameters import Integers, Scale
from onnxq.qat.torch_ops.call import Tensor

FEW_BITS = 4
"""Bits of activations up to which some are left unquantized in a step where nothing else is said, and of weights up to
which roundings learn from any number of samples."""


_LEVELS = 256
"""Levels of a grid that the rates are meant for."""

_SCALED = ("DequantizeLinear", "MatMulIntegerToFloat")
"""Readers of a weight's integers that multiply them by its scales."""


@dataclass(frozen=True)
class LearningConfig:
    """How a block learns.

    Attributes:
        iterations: steps of Adam.
        rounding_rate: learning rate of the roundings' logits.
        scale_rate: of the logarithms of scales, at 256 levels; fewer ask for longer steps.
        zero_rate: of zero points, in steps.
        bias_rate: of biases, as a share of their root mean square, at 256 levels.
        drop: share of the elements that are not quantized in a step (QDrop); None drops half where activations have 4
            bits or fewer, and none at more, where it only adds noise.
        checks: how often the block is judged on held-out samples.
        batch: samples that a step sees at most.
        patience: checks without a better one after which a block is done.
    """

    iterations: int = 60
    rounding_rate: float = 0.02
    scale_rate: float = 3e-4
    zero_rate: float = 3e-3
    bias_rate: float = 6e-4
    drop: float | None = None
    checks: int = 6
    batch: int = 32
    patience: int = 4

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.checks < 1 or not 0.0 <= (self.drop or 0.0) <= 1.0:
            raise RecipeError(
                "LearningConfig: iterations and checks have to be positive, drop in 0…1; 60, 6 and 0.5 are usual"
            )


@dataclass
class Parts:
    """What of a module belongs to a block.

    Attributes:
        integers: of weights.
        rounds: whether the roundings of each of them learn.
        grids: scales of activations.
        scales: of activations and weights.
        levels: how many levels the grid of each of them has.
        coarsest: how many the coarsest grid of an activation has.
        zeros: zero points of activations.
        biases: of layers.
        logits: of the integers' roundings.
    """

    integers: list[Integers] = field(default_factory=list)
    rounds: list[bool] = field(default_factory=list)
    grids: list[nn.Parameter] = field(default_factory=list)
    scales: list[nn.Parameter] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    coarsest: int = _LEVELS
    zeros: list[nn.Parameter] = field(default_factory=list)
    biases: list[nn.Parameter] = field(default_factory=list)
    logits: list[nn.Parameter] = field(default_factory=list)

    @classmethod
    def of(cls, module: GraphModule, block: Block, proven: Collection[str] = ()) -> Parts:
        """All that belongs to a block of a module; begins to learn roundings.

        Args:
            module: the quantized graph.
            block: of it.
            proven: weights, by the name of their integers, for whose roundings to many bits there are samples enough.
        """
        found = cls()
        inside = {node.index for node in block.nodes}
        written = {name for node in block.nodes for name in node.outputs}
        outside = {id(grid.scale) for grid in module.grids.values()}
        outside |= {id(weight.scale) for weight in module.weights.values() if weight.node.index not in inside}
        scales: dict[int, tuple[Scale, int]] = {}
        for name, weight in module.weights.items():
            if weight.node.index not in inside:
                continue
            levels = weight.integers.high - weight.integers.low + 1
            found.integers.append(weight.integers)
            found.rounds.append(name in proven or levels <= 1 << FEW_BITS)
            if weight.scale is not None and id(weight.scale) not in outside and weight.node.op_type in _SCALED:
                scales[id(weight.scale)] = (weight.scale, levels)
        quantized = {
            node.inputs[0] for node in block.nodes if node.op_type == "QuantizeLinear" and node.index in inside
        }
        for grid in module.grids.values():
            # a grid that other blocks use too stays as it is
            if grid.values and set(grid.values) <= quantized and grid.learns:
                found.grids.append(grid.scale.shift)
                found.scales.append(grid.scale.shift)
                found.levels.append(grid.levels)
                found.coarsest = min(found.coarsest, grid.levels)
                if grid.zero is not None and grid.moves:
                    found.zeros.append(grid.zero.shift)
        for scale, levels in scales.values():
            found.scales.append(scale.shift)
            found.levels.append(levels)
        for name, bias in module.biases.items():
            if name in written:
                found.biases.append(bias.real)
        for node in block.nodes:
            if node.op_type == "MatMulIntegerToFloat" and len(node.inputs) > 6 and node.inputs[6] in module.floats:
                found.biases.append(module.floats[node.inputs[6]])
        found.logits = [part.learn_rounding() for part in found.integers]
        return found

    @property
    def learns(self) -> bool:
        """Whether anything of it can learn: integers of 8 bits alone do not where there are too few samples."""
        return any(self.rounds) or bool(self.scales or self.zeros or self.biases)

    def groups(self, config: LearningConfig) -> list[dict[str, object]]:
        """Parameters with their rates, as an optimizer takes them; they learn from now on."""
        learned = [logit for rounds, logit in zip(self.rounds, self.logits, strict=True) if rounds]
        coarser = _LEVELS / self.coarsest
        groups: list[dict[str, object]] = [
            {"params": learned, "lr": config.rounding_rate},
            {"params": self.zeros, "lr": config.zero_rate},
        ]
        for scale, levels in zip(self.scales, self.levels, strict=True):
            groups.append({"params": [scale], "lr": config.scale_rate * max(_LEVELS / levels, 1.0)})
        for bias in self.biases:
            size = float(bias.detach().square().mean().sqrt())
            groups.append({"params": [bias], "lr": config.bias_rate * coarser * (size or 1.0)})
        for parameter in (*learned, *self.scales, *self.zeros, *self.biases):
            parameter.requires_grad_(True)
        return [group for group in groups if group["params"]]

    @property
    def _learned(self) -> list[nn.Parameter]:
        return [*self.logits, *self.scales, *self.zeros, *self.biases]

    def state(self) -> list[Tensor]:
        """Copies of all that learns."""
        return [parameter.detach().clone() for parameter in self._learned]

    def restore(self, state: Sequence[Tensor]) -> None:
        """Set all that learns."""
        with torch.no_grad():
            for parameter, value in zip(self._learned, state, strict=True):
                parameter.copy_(value)

    def widen(self, factor: float) -> None:
        """Let the grids of activations reach further than they did at first, with as many levels."""
        with torch.no_grad():
            for shift in self.grids:
                shift.fill_(math.log(factor))

    def settle(self) -> None:
        """End of learning: integers are integers again."""
        for parameter in self._learned:
            parameter.requires_grad_(False)
        for part in self.integers:
            part.settle()

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """Within it, integers are what they would be if learning ended."""
        before = [part.rounding for part in self.integers]
        for part in self.integers:
            part.rounding = "hard" if part.logit is not None else "nearest"
        try:
            yield
        finally:
            for part, rounding in zip(self.integers, before, strict=True):
                part.rounding = rounding
