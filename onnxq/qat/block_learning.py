"""One block learns to give the float model's values from what the quantized model gives it.

Roundings are AdaRound's rectified sigmoids; a step computes with the integers that they stand for and passes gradients
through, so that a few hundred steps do what takes thousands where sigmoids are drawn to 0 and 1 little by little.

References:
    Nagel et al., AdaRound, arXiv:2004.10568, section 3.2; Li et al., BRECQ, arXiv:2102.05426; Wei et al., QDrop,
    arXiv:2203.05740; Esser et al., LSQ, arXiv:1902.08153; Bhalgat et al., LSQ+, arXiv:2004.09576.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from onnxq.core.dtypes import Array
from onnxq.errors import RecipeError
from onnxq.qat.graph_module import GraphModule
from onnxq.qat.network_blocks import Block
from onnxq.qat.parameters import Integers, as_tensor
from onnxq.qat.torch_ops.call import Tensor

_ELEMENTS = 1 << 20
"""Elements of a block's inputs and targets that one step sees, about."""


@dataclass(frozen=True)
class LearningConfig:
    """How a block learns.

    Attributes:
        iterations: steps of Adam.
        rounding_rate: learning rate of the roundings' logits.
        scale_rate: of the logarithms of activations' scales.
        zero_rate: of zero points, in steps.
        bias_rate: of biases, as a share of their root mean square.
        drop: share of the elements that are not quantized in a step (QDrop).
        checks: how often the block is judged on held-out samples.
        batch: samples that a step sees at most.
        patience: checks without a better one after which a block is done.
    """

    iterations: int = 150
    rounding_rate: float = 0.01
    scale_rate: float = 1e-3
    zero_rate: float = 0.01
    bias_rate: float = 2e-3
    drop: float = 0.5
    checks: int = 6
    batch: int = 32
    patience: int = 4

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.checks < 1 or not 0.0 <= self.drop <= 1.0:
            raise RecipeError(
                "LearningConfig: iterations and checks have to be positive, drop in 0…1; 150, 6 and 0.5 are usual"
            )


@dataclass
class Sample:
    """What a block is given in one sample, and what it should give.

    Attributes:
        given: its inputs in the quantized model, by name.
        clean: those of them that are real numbers in the float model.
        targets: the float model's values by the name of the block's output.
    """

    given: dict[str, Array]
    clean: dict[str, Array]
    targets: dict[str, Array]

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """What has to be equal for samples to be stacked."""
        every = {**self.given, **{f"{name} wanted": array for name, array in self.targets.items()}}
        return tuple((name, array.shape) for name, array in every.items())

    @property
    def elements(self) -> int:
        """Numbers that it holds."""
        return sum(array.size for part in (self.given, self.targets) for array in part.values())


@dataclass
class Outcome:
    """How a block came out.

    Attributes:
        before: error of its outputs on held-out samples, relative to their energy.
        after: the same with what was learned; at most ``before``.
        steps: how many steps were made.
        finite: whether no loss was NaN or infinite.
    """

    before: float
    after: float
    steps: int = 0
    finite: bool = True


class BlockLearner:
    """Learns one block of a module in place; what is no better on held-out samples is undone."""

    def __init__(self, module: GraphModule, block: Block, config: LearningConfig, seed: int = 0) -> None:
        self._module, self._block, self._config = module, block, config
        self._generator = torch.Generator().manual_seed(seed)
        self._parts = _Parts.of(module, block)
        self._energy: dict[str, float] = {}

    @property
    def learns(self) -> bool:
        """Whether there is anything to learn."""
        return bool(self._parts.integers and self._block.outputs)

    def learn(self, samples: Sequence[Sample], held_out: Sequence[Sample], deadline: float = math.inf) -> Outcome:
        """Learn.

        Args:
            samples: to learn from.
            held_out: to judge by.
            deadline: of `time.monotonic`; no step begins after it.
        """
        config, module, parts = self._config, self._module, self._parts
        self._energy = _energies(samples)
        size = self._batch_size(samples)
        best = self.error(held_out)
        outcome = Outcome(best, best)
        state, waited = parts.state(), 0
        groups = parts.groups(config)
        optimizer = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.iterations)
        unit = max(self._training_error(samples), 1e-12)
        every = max(config.iterations // config.checks, 1)
        for step in range(config.iterations):
            if time.monotonic() > deadline:
                break
            loss = self._loss(self._pick(samples, size)) / unit
            if not bool(torch.isfinite(loss)):
                outcome.finite = False
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            outcome.steps = step + 1
            if (step + 1) % every == 0 or step + 1 == config.iterations:
                reached = self.error(held_out)
                if reached < best:
                    best, state, waited = reached, parts.state(), 0
                else:
                    waited += 1
                if waited >= config.patience:
                    break
        parts.restore(state)
        parts.settle()
        module.drop = 0.0
        module.eval()
        outcome.after = best
        return outcome

    def error(self, samples: Sequence[Sample]) -> float:
        """Mean error of the outputs on what the quantized model gives the block, relative to their energy."""
        self._energy = self._energy or _energies(samples)
        self._module.eval()
        total = 0.0
        with torch.no_grad(), self._parts.rounded():
            for sample in samples:
                total += float(self._difference(self._run(_tensors(sample.given)), _tensors(sample.targets)))
        return total / max(len(samples), 1)

    def _training_error(self, samples: Sequence[Sample]) -> float:
        return self.error(samples[:4])

    def _run(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._module.run(self._block.nodes, values)

    def _difference(self, values: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        terms = []
        for name, target in targets.items():
            difference = values[name] - target
            terms.append((difference * difference).mean() / self._energy[name])
        return torch.stack(terms).mean()

    def _loss(self, samples: Sequence[Sample]) -> Tensor:
        config = self._config
        given = _stacked([sample.given for sample in samples])
        clean = _stacked([sample.clean for sample in samples])
        self._module.train()
        self._module.drop = config.drop
        if config.drop > 0.0:
            for name, exact in clean.items():
                kept = torch.rand(exact.shape, generator=self._generator) < config.drop
                given[name] = torch.where(kept, exact, given[name])
        return self._difference(self._run(given), _stacked([sample.targets for sample in samples]))

    def _pick(self, samples: Sequence[Sample], size: int) -> list[Sample]:
        first = int(torch.randint(len(samples), (1,), generator=self._generator))
        if size == 1:
            return [samples[first]]
        alike = [sample for sample in samples if sample.shapes == samples[first].shapes]
        order = torch.randperm(len(alike), generator=self._generator)[:size].tolist()
        return [alike[index] for index in order]

    def _batch_size(self, samples: Sequence[Sample]) -> int:
        """Samples that can be stacked, which is tried: two together must give what each gives alone."""
        largest = max(sample.elements for sample in samples)
        size = max(min(self._config.batch, _ELEMENTS // max(largest, 1), len(samples)), 1)
        alike = [sample for sample in samples if sample.shapes == samples[0].shapes][:2]
        if size == 1 or len(alike) < 2:
            return 1
        self._module.eval()
        try:
            with torch.no_grad(), self._parts.rounded():
                each = [self._run(_tensors(sample.given)) for sample in alike]
                both = self._run(_stacked([sample.given for sample in alike]))
                for name in self._block.outputs:
                    together = torch.cat([values[name] for values in each])
                    if not torch.allclose(both[name], together, rtol=1e-3, atol=1e-4 * float(together.abs().max())):
                        return 1
        except (RuntimeError, IndexError, ValueError, AssertionError):
            return 1
        return size


@dataclass
class _Parts:
    """What of a module belongs to a block."""

    integers: list[Integers] = field(default_factory=list)
    scales: list[nn.Parameter] = field(default_factory=list)
    zeros: list[nn.Parameter] = field(default_factory=list)
    biases: list[nn.Parameter] = field(default_factory=list)
    logits: list[nn.Parameter] = field(default_factory=list)

    @classmethod
    def of(cls, module: GraphModule, block: Block) -> _Parts:
        found = cls()
        inside = {node.index for node in block.nodes}
        written = {name for node in block.nodes for name in node.outputs}
        for weight in module.weights.values():
            if weight.node.index in inside:
                found.integers.append(weight.integers)
        quantized = {
            node.inputs[0] for node in block.nodes if node.op_type == "QuantizeLinear" and node.index in inside
        }
        for grid in module.grids.values():
            # a grid that other blocks use too stays as it is
            if grid.values and set(grid.values) <= quantized and grid.learns:
                found.scales.append(grid.scale.shift)
                if grid.zero is not None and grid.moves:
                    found.zeros.append(grid.zero.shift)
        for name, bias in module.biases.items():
            if name in written:
                found.biases.append(bias.real)
        for node in block.nodes:
            if node.op_type == "MatMulIntegerToFloat" and len(node.inputs) > 6 and node.inputs[6] in module.floats:
                found.biases.append(module.floats[node.inputs[6]])
        found.logits = [part.learn_rounding() for part in found.integers]
        return found

    def groups(self, config: LearningConfig) -> list[dict[str, object]]:
        """Parameters with their rates, as an optimizer takes them; they learn from now on."""
        groups: list[dict[str, object]] = [
            {"params": self.logits, "lr": config.rounding_rate},
            {"params": self.scales, "lr": config.scale_rate},
            {"params": self.zeros, "lr": config.zero_rate},
        ]
        for bias in self.biases:
            size = float(bias.detach().square().mean().sqrt())
            groups.append({"params": [bias], "lr": config.bias_rate * (size or 1.0)})
        for parameter in self._learned:
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


def _energies(samples: Sequence[Sample]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in samples[0].targets:
        squares = [float((sample.targets[name].astype("float64") ** 2).mean()) for sample in samples]
        found[name] = max(sum(squares) / len(squares), 1e-30)
    return found


def _tensors(arrays: dict[str, Array]) -> dict[str, Tensor]:
    return {name: as_tensor(array) for name, array in arrays.items()}


def _stacked(parts: Sequence[dict[str, Array]]) -> dict[str, Tensor]:
    """Samples one after the other along the first axis; what all have alike and is no real number once."""
    if len(parts) == 1:
        return _tensors(parts[0])
    found = {}
    for name, array in parts[0].items():
        tensors = [as_tensor(part[name]) for part in parts]
        alike = array.ndim == 0 or (
            not tensors[0].is_floating_point() and all(torch.equal(tensors[0], other) for other in tensors[1:])
        )
        found[name] = tensors[0] if alike else torch.cat(tensors)
    return found
