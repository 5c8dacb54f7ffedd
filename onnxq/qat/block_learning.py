"""One block learns to give the float model's values from what the quantized model gives it.

Roundings are AdaRound's rectified sigmoids; a step computes with the integers that they stand for and passes gradients
through, so that a few hundred steps do what takes thousands where sigmoids are drawn to 0 and 1 little by little.

References:
    Nagel et al., AdaRound, arXiv:2004.10568, section 3.2; Li et al., BRECQ, arXiv:2102.05426; Wei et al., QDrop,
    arXiv:2203.05740; Esser et al., LSQ, arXiv:1902.08153; Bhalgat et al., LSQ+, arXiv:2004.09576.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from onnxq.core.dtypes import Array
from onnxq.qat.block_parts import FEW_BITS, LearningConfig, Parts
from onnxq.qat.computing_time import Allowance
from onnxq.qat.graph_module import GraphModule
from onnxq.qat.network_blocks import Block
from onnxq.qat.parameters import as_tensor
from onnxq.qat.torch_ops.call import NodeError, Tensor

_ELEMENTS = 1 << 20
"""Elements of a block's inputs and targets that one step sees, about."""

_TRIED = 4
"""Steps after which it is known how many the time suffices for; the first one is longer than the others."""

_WIDER = (1.05, 1.1, 1.2, 1.3)
"""Factors by which grids of activations are widened in turn, as long as that helps."""

_TRIED_ON = 8
"""Samples to learn from that widths are tried on, beside those held out."""

_DROP = 0.5
"""Share of activations on few bits that are left unquantized in a step where nothing else is said."""

_SPARED = 0.1
"""Share of the time that checks on held-out samples take, about."""


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
class BlockResult:
    """How a block came out.

    Attributes:
        before: error of its outputs on held-out samples, relative to their energy.
        after: the same with what was learned; at most ``before``.
        steps: how many steps were made.
        planned: how many there are where nothing gets better no more and time suffices.
        short: whether time did not suffice.
        finite: whether no loss was NaN or infinite.
    """

    before: float
    after: float
    steps: int = 0
    planned: int = 0
    short: bool = False
    finite: bool = True


class BlockLearner:
    """Learns one block of a module in place; what is no better on held-out samples is undone."""

    def __init__(
        self, module: GraphModule, block: Block, config: LearningConfig, seed: int = 0, proven: Collection[str] = ()
    ) -> None:
        """Prepare a block.

        Args:
            module: the quantized graph.
            block: of it.
            config: how it learns.
            seed: of the order of the samples.
            proven: weights whose roundings to many bits learn too, by the name of their integers; to few all do.
        """
        self._module, self._block, self._config, self._seed = module, block, config, seed
        self._generator = torch.Generator().manual_seed(seed)
        self._parts = Parts.of(module, block, proven)
        self._best = self._parts.state()
        self._energy: dict[str, float] = {}
        few = any(levels <= 1 << FEW_BITS for levels in self._parts.levels)
        self._drop = config.drop if config.drop is not None else _DROP if few else 0.0

    @property
    def learns(self) -> bool:
        """Whether there is anything to learn."""
        return bool(self._parts.integers and self._block.outputs) and self._parts.learns

    @property
    def drops(self) -> bool:
        """Whether it needs the float model's values of its inputs too."""
        return self._drop > 0.0

    def learn(
        self, samples: Sequence[Sample], held_out: Sequence[Sample], allowance: Allowance | None = None
    ) -> BlockResult:
        """Learn.

        Args:
            samples: to learn from.
            held_out: to judge by.
            allowance: time that it may take. Where it does not suffice, rates fall faster, so that they end where they
                would have.

        Raises:
            NodeError: a node that PyTorch cannot run on the samples; nothing has been learned then.
        """
        torch.manual_seed(self._seed)  # what is dropped does not depend on the blocks before
        try:
            return self._learn(samples, held_out, allowance or Allowance())
        finally:
            self._parts.restore(self._best)
            self._parts.settle()
            self._module.drop = 0.0
            self._module.eval()

    def state(self) -> dict[str, Array]:
        """What the block has come to, to be kept."""
        return {str(place): value.numpy() for place, value in enumerate(self._best)}

    def take(self, state: Mapping[str, Array]) -> bool:
        """Set what `state` gave in an earlier run, in place of learning; False where it does not fit."""
        known = [state.get(str(place)) for place in range(len(self._best))]
        fits = all(k is not None and k.shape == tuple(b.shape) for k, b in zip(known, self._best, strict=True))
        if fits:
            self._best = [torch.from_numpy(np.array(array)) for array in known]
            self._parts.restore(self._best)
            self._parts.settle()
        return fits

    def _learn(self, samples: Sequence[Sample], held_out: Sequence[Sample], allowance: Allowance) -> BlockResult:
        config, parts = self._config, self._parts
        self._energy = _energies(samples)
        size = self._batch_size(samples)
        before, count = self.error(held_out), config.iterations
        best = self._widen(samples, held_out, before)
        self._best = parts.state()
        outcome = BlockResult(before, best, planned=count)
        waited = 0
        optimizer = torch.optim.Adam(parts.groups(config))
        first = [group["lr"] for group in optimizer.param_groups]
        unit = max(self._training_error(samples), 1e-12)
        step, begun = 0, allowance.mark()
        while step < count:
            if step == _TRIED:
                count = int(min(count, step + allowance.repeats(begun, _TRIED, 1.0 - _SPARED)))
            outcome.short = count < config.iterations
            if allowance.over or step >= count:
                outcome.short = True
                break
            for group, rate in zip(optimizer.param_groups, first, strict=True):
                group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * step / count))
            loss = self._loss(self._pick(samples, size)) / unit
            if not bool(torch.isfinite(loss)):
                outcome.finite = False
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            outcome.steps = step
            if step % max(count // config.checks, 1) == 0 or step == count:
                reached = self.error(held_out)
                if reached < best:
                    best, self._best, waited = reached, parts.state(), 0
                else:
                    waited += 1
                if waited >= config.patience:
                    break
        outcome.after = best
        return outcome

    def _widen(self, samples: Sequence[Sample], held_out: Sequence[Sample], before: float) -> float:
        """Choose how far the grids of activations reach, all by one factor, before each finds its own by small steps.

        What lies beyond a grid costs more at the block's outputs than its squares say, which ranges are chosen by.

        Args:
            samples: to learn from.
            held_out: others.
            before: error on these; it does not become more.

        Returns:
            The error on samples held out.
        """
        some = samples[:_TRIED_ON]
        best, factor, least = self.error(some), 1.0, before
        for wider in _WIDER if self._parts.grids else ():
            self._parts.widen(wider)
            reached, unseen = self.error(some), self.error(held_out)
            if reached >= best or unseen >= least:
                break
            best, factor, least = reached, wider, unseen
        self._parts.widen(factor)
        return least

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
        given = _stacked([sample.given for sample in samples])
        self._module.train()
        drop = self._module.drop = self._drop
        if drop > 0.0:
            for name, exact in _stacked([sample.clean for sample in samples]).items():
                kept = torch.rand(exact.shape, generator=self._generator) < drop
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
        except (NodeError, RuntimeError):
            return 1
        return size


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
