"""Learn the orthogonal matrices of a turned transformer: those with which quantization loses least.

Reference: Liu et al., SpinQuant: LLM Quantization with Learned Rotations, arXiv:2405.16406 (R1 and R2, which are folded
into the weights): Cayley descent of the quantized network's loss, from random Hadamard matrices. The loss here is the
distance to the float network's outputs, so that no labels are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.qat.batches import Batch, batches
from onnxq.qat.computing_time import Allowance
from onnxq.qat.distillation import OutputKind, distance
from onnxq.qat.rotations.cayley import CayleyDescent
from onnxq.qat.rotations.turned_module import TurnedModule
from onnxq.qat.torch_ops.call import Tensor


@dataclass(frozen=True)
class RotationConfig:
    """How to learn.

    Attributes:
        steps: how many.
        angle: of the first step, see `CayleyDescent.step`; it falls evenly to none.
        batch: samples of a step.
        every: steps after which the held-out samples are looked at.
        seed: of the order of the samples.
        seconds: of computing that it may take; what is best then counts.
        threads: that torch may use; None leaves it as it is.
    """

    steps: int = 200
    angle: float = 0.05
    batch: int = 8
    every: int = 10
    seed: int = 0
    seconds: float = float("inf")
    threads: int | None = None


@dataclass(frozen=True)
class LearnedRotations:
    """What came of it.

    Attributes:
        matrices: float64, (n, n) each, orthogonal; identities where nothing was better than the start.
        before: mean loss on held-out samples at the start.
        after: with the matrices.
        steps: that were taken.
    """

    matrices: list[Array]
    before: float
    after: float
    steps: int


def learn_rotations(
    module: TurnedModule,
    sizes: Sequence[tuple[int, bool]],
    targets: Mapping[str, OutputKind],
    samples: tuple[Sequence[Feed], Sequence[Feed]],
    config: RotationConfig | None = None,
    report: Callable[[int, int], None] | None = None,
) -> LearnedRotations:
    """Descend from identities, the model as it is.

    Args:
        module: the turned float model, with what quantization rounds.
        sizes: of each matrix: its rows, and whether it must leave (1, …, 1) as it is.
        targets: what each output holds that is to stay, by name.
        samples: those that are learned from, and those that states are judged by; at least one each.
        config: how.
        report: called with the steps that are done and their number.

    Raises:
        NodeError: a node that torch cannot run.
    """
    config = config or RotationConfig()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    bases = [_basis(size) if keeps_mean else None for size, keeps_mean in sizes]
    free = [size - int(keeps_mean) for size, keeps_mean in sizes]
    learned, judged = (batches(part, None, config.batch, module) for part in samples)
    descent = CayleyDescent([torch.eye(size, dtype=torch.float64) for size in free])

    def loss_of(batch: Batch, matrices: Sequence[Tensor]) -> Tensor:
        return _loss(module, batch, [_whole(x, basis) for x, basis in zip(matrices, bases, strict=True)], targets)

    def held_out() -> float:
        with torch.no_grad():
            return float(np.mean([float(loss_of(batch, descent.matrices)) for batch in judged]))

    rng, order = np.random.default_rng(config.seed), list[int]()
    before = best = held_out()
    kept, taken, allowance = descent.matrices, 0, Allowance(config.seconds)
    while taken < config.steps and not allowance.over:
        order = order or [int(index) for index in rng.permutation(len(learned))]
        places = [matrix.clone().requires_grad_() for matrix in descent.matrices]
        gradients = torch.autograd.grad(loss_of(learned[order.pop()], places), places)
        descent.step(gradients, config.angle * (1.0 - taken / config.steps))
        taken += 1
        if taken % config.every == 0 or taken == config.steps:
            found = held_out()
            if found < best:  # never where it is NaN
                best, kept = found, descent.matrices
        if report is not None:
            report(taken, config.steps)
    matrices = [_whole(x, basis).detach().numpy() for x, basis in zip(kept, bases, strict=True)]
    return LearnedRotations(matrices, before, best, taken)


def _loss(module: TurnedModule, batch: Batch, matrices: Sequence[Tensor], targets: Mapping[str, OutputKind]) -> Tensor:
    feed, names = batch[0], list(targets)
    module.rounds = False
    with torch.no_grad():
        expected = module(feed, names)
    module.rounds = True
    try:
        got = module({**feed, **module.constants(matrices, rounded=True)}, names)
    finally:
        module.rounds = False
    total: Tensor = sum(
        (distance(target, expected[name], got[name]) for name, target in targets.items()), start=torch.zeros(())
    )
    return total / len(targets)


def _basis(size: int) -> Tensor:
    """(n, n − 1): an orthonormal basis of what has no mean."""
    drawn = torch.eye(size, dtype=torch.float64)
    drawn[:, 0] = 1.0
    return torch.linalg.qr(drawn).Q[:, 1:]


def _whole(matrix: Tensor, basis: Tensor | None) -> Tensor:
    """The matrix that turns what has no mean by another one, and leaves the mean."""
    if basis is None:
        return matrix
    return basis @ matrix @ basis.T + 1.0 / len(basis)
