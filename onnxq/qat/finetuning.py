"""Finetuning: a quantized graph learns, end to end, to give what the float model gives.

Scales of activations and weights learn (LSQ, arXiv:1902.08153), zero points (LSQ+, arXiv:2004.09576), biases and gains
of norms; integers learn where they have few bits, or where there are many samples. Labels are not needed: the teacher
is the float model (Hinton et al., arXiv:1503.02531). The state that is best on samples of its own is what comes out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onnxq.core import atomic
from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.qat.batches import batches
from onnxq.qat.computing_time import Allowance
from onnxq.qat.distillation import OutputKind, distance, labelled, squares
from onnxq.qat.fake_quantization import aligned
from onnxq.qat.graph_module import GraphModule
from onnxq.qat.parameter_groups import parameter_groups
from onnxq.qat.parameters import as_tensor
from onnxq.qat.recomputed import Recomputed, written_bytes
from onnxq.qat.torch_ops.call import Tensor

_BATCH = 16
"""Samples a step, at most."""
_LEAST_STEPS = 10
"""Steps that a pass has at least, as long as there are samples for them."""
_STEPS = 500
"""Steps of a run for which no number of epochs was given, about."""
_FEATURES = 6
"""Inner values that are compared beside the outputs, at most."""
_STEP_BYTES = 512 << 20
"""Bytes that the nodes write in a step, at most, where that is more than one sample."""
_SHARE = 0.2
"""What all inner values together weigh against the outputs."""
_PATIENCE = 10
"""Passes without a better state after which it ends, or a third of all where that is more."""
_WORSE = 1.5
"""Loss of a pass, against the best one, from which on it goes back there and takes smaller steps."""
_NO_BETTER = 3
"""Passes after which it does so too, as long as nothing was won."""
_SMALLER = 0.25
"""Those steps, against the ones before. Few bits want large steps, which at 8 bits do more harm than rounding does."""
_TIMES = 4
"""How often steps become smaller, at most."""
_NEARER = 0.49
"""Steps from its integer, or beyond the ends of its grid, within which a weight starts."""
_ROUNDED = 0.501
"""Steps that an integer lies from its weight, at most, where it was rounded to nearest."""
_LEARNED = 0.25
"""Steps from an integer within which a weight starts that was rounded to it although another one is nearer."""
_PROGRESS = {"epoch", "waited", "best", "kept", "before", "eased"}
"""What a file says of how far an interrupted run came."""
_LABELS = 0.5
"""What labels weigh against the teacher."""


@dataclass(frozen=True)
class FinetuneConfig:
    """How it learns.

    Attributes:
        epochs: passes over the samples; None chooses by their number.
        minutes: of computing, after which it ends.
        rate: of Adam, as a share: of scales, and of the grid for zero points and integers.
        seed: of the order of the samples.
        device: "cpu" or "cuda".
        batch: samples a step; None takes a tenth of them, 16 at most.
        threads: that PyTorch may use meanwhile.
    """

    epochs: int | None = None
    minutes: float = 4.0
    rate: float = 2e-3
    seed: int = 0
    device: str = "cpu"
    batch: int | None = None
    threads: int = 1


@dataclass
class Finetuning:
    """What is to learn from what.

    Attributes:
        student: the quantized graph; learns in place.
        teacher: the float graph.
        targets: what each output holds, by name; others are not looked at.
        samples: feeds to learn from.
        held_out: feeds to judge states by.
        labels: classes of the items of each feed; None where there are none.
        bits: of weights that use fewer than their type has, by the name of their integers: smallest and largest one.
        config: how.
        state: file that an interrupted run goes on from; None keeps none.
        signature: what the file must be of.
        report: called with a line on how it goes, what is done and how much there is.
    """

    student: GraphModule
    teacher: GraphModule
    targets: Mapping[str, OutputKind]
    samples: Sequence[Feed]
    held_out: Sequence[Feed]
    labels: Sequence[Array] | None = None
    bits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    config: FinetuneConfig = field(default_factory=FinetuneConfig)
    state: Path | None = None
    signature: str = ""
    report: Callable[[str, int, int], None] = lambda line, done, total: None


@dataclass
class FinetuningResult:
    """How it went.

    Attributes:
        before: loss on held-out samples at the start.
        after: of the best state, which the student is left in.
        epochs: passes that were made, those of an earlier run among them.
        finite: False where a loss was NaN or infinite, which ended it.
        resumed: whether it went on from a file.
        late: whether time was up before all epochs were done.
        weights: how many weights' integers learned.
        learns: False where the student has nothing that can.
    """

    before: float
    after: float
    epochs: int = 0
    finite: bool = True
    resumed: bool = False
    late: bool = False
    weights: int = 0
    learns: bool = True


def finetune(task: Finetuning) -> FinetuningResult:
    """Learn; deterministic by seed on one machine, as long as time is not what ends it."""
    before = torch.get_num_threads()
    torch.set_num_threads(task.config.threads)
    try:
        return _Run(task).go()
    finally:
        torch.set_num_threads(before)


def has_device(name: str) -> bool:
    """Whether PyTorch can run on a device."""
    return name == "cpu" or torch.cuda.is_available()


class _Run:
    def __init__(self, task: Finetuning) -> None:
        self.task, self.config = task, task.config
        self.device = torch.device(task.config.device)
        for module in (task.student, task.teacher):
            module.to(self.device)
        for name, (low, high) in task.bits.items():
            part = task.student.weights[name].integers
            part.low, part.high = low, high
        self.features = self._common_values()
        sizes = self._sizes()
        fit = max(1, _STEP_BYTES // max(sum(sizes), 1))
        batch = task.config.batch or max(1, min(_BATCH, fit, len(task.samples) // _LEAST_STEPS))
        self.train = batches(task.samples, task.labels, batch, task.student)
        self.judge = batches(task.held_out, None, min(_BATCH, fit), task.student)
        self.student = Recomputed(task.student, [batch * size for size in sizes])
        with torch.no_grad():
            feed = {name: value.to(self.device) for name, value in self.train[0][0].items()}
            inner = task.teacher(feed, self.features)
        self.scales = {name: float(inner[name].var(unbiased=False)) for name in self.features}
        groups, self.weights = parameter_groups(task.student, task.config.rate, len(task.samples))
        self.parameters: list[torch.nn.Parameter] = [p for group in groups for p in group["params"]]
        self.first = [group["lr"] for group in groups]
        # False where there is nothing, or where it is in front of nothing that is looked at
        self.learns = self._loss(*self.train[0]).requires_grad
        if self.learns:
            self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))

    def go(self) -> FinetuningResult:
        allowance = Allowance(60.0 * self.config.minutes, by_clock=self.device.type != "cpu")
        epochs = self.config.epochs or max(3, min(60, math.ceil(_STEPS / max(len(self.train), 1))))
        best, kept = self._held_out()[0], self._copy()
        if not self.learns:
            return FinetuningResult(best, best, learns=False)
        outcome = FinetuningResult(best, best, weights=self.weights)
        epoch, waited, eased = 0, 0, 0
        known = self._load()
        if known is not None:
            epoch, waited, best, kept = known["epoch"], known["waited"], known["best"], known["kept"]
            outcome.before, outcome.after, outcome.resumed = known["before"], best, True
            eased = known["eased"]
            self.first = [rate * _SMALLER**eased for rate in self.first]
        while epoch < epochs + eased:
            if not self._epoch(epoch, epochs + eased, allowance):
                outcome.finite = False
                break
            loss, decibels = self._held_out()
            epoch += 1
            outcome.epochs = epoch
            if not math.isfinite(loss):
                outcome.finite = False
                break
            waited = 0 if loss < best else waited + 1
            if loss < best:
                best, kept = loss, self._copy()
            elif eased < _TIMES and (loss > _WORSE * best or (best == outcome.before and waited >= _NO_BETTER)):
                waited, eased = 0, eased + 1
                self._go_back(kept)
                self.first = [rate * _SMALLER for rate in self.first]
                self.optimizer.state.clear()  # gradients that led away count no more
            self.task.report(f"loss {loss:.4g}, SQNR {decibels:.1f} dB", epoch, epochs + eased)
            progress = {"epoch": epoch, "waited": waited, "best": best, "kept": kept, "before": outcome.before}
            self._save({**progress, "eased": eased})
            if waited >= max(_PATIENCE, epochs // 3):  # a rate that falls late may still win
                break
            if allowance.over:
                outcome.late = epoch < epochs + eased
                break
        self._go_back(kept)
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        outcome.after = best
        return outcome

    def _go_back(self, kept: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, kept, strict=True):
                parameter.copy_(value)

    # Making it.

    def _sizes(self) -> list[int]:
        """Bytes that each node of the student writes for one sample."""
        first = {name: as_tensor(array).to(self.device) for name, array in self.task.samples[0].items()}
        self.task.student.eval()
        return written_bytes(self.task.student, first)

    def _common_values(self) -> list[str]:
        """Inner values that both graphs have, evenly spaced along the student."""
        known = {name for node in self.task.teacher.graph.nodes for name in node.outputs if name}
        order = {name: node.index for node in self.task.student.graph.nodes for name in node.outputs if name}
        names = {name for grid in self.task.student.grids.values() for name in grid.values}
        both = sorted((n for n in names if n in known and n in order), key=lambda name: order[name])
        if len(both) <= _FEATURES:
            return both
        return [both[i] for i in np.linspace(0, len(both) - 1, _FEATURES).astype(int)]

    # Learning.

    def _epoch(self, epoch: int, epochs: int, allowance: Allowance) -> bool:
        """One pass; False where a loss is not finite."""
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.train))
        self.task.student.train()
        for position, index in enumerate(order):
            along = (epoch + position / len(order)) / epochs
            for group, first in zip(self.optimizer.param_groups, self.first, strict=True):
                group["lr"] = first * 0.5 * (1.0 + math.cos(math.pi * along))
            self.optimizer.zero_grad()
            loss = self._loss(*self.train[index])
            if not torch.isfinite(loss):
                return False
            loss.backward()
            self.optimizer.step()
            if allowance.over:
                break
        return True

    def _loss(self, feed: dict[str, Tensor], labels: Tensor | None) -> Tensor:
        task = self.task
        feed = {name: value.to(self.device) for name, value in feed.items()}
        names = [*task.targets, *self.features]
        with torch.no_grad():
            expected = task.teacher(feed, names)
        got = self.student(feed, names)
        expected, got = ({name: value.float() for name, value in each.items()} for each in (expected, got))
        total = torch.zeros((), device=self.device)
        for name, target in task.targets.items():
            total = total + distance(target, expected[name], got[name])
            if labels is not None and target.labelled:
                total = total + _LABELS * labelled(target, got[name], labels.to(self.device))
        for name in self.features:
            part = squares(expected[name], got[name], self.scales[name])
            total = total + _SHARE / len(self.features) * part
        return total

    def _held_out(self) -> tuple[float, float]:
        """Loss of the outputs on held-out samples, without inner values; and the SQNR of the worst output, in dB."""
        task = self.task
        task.student.eval()
        total, noise, signal = 0.0, dict.fromkeys(task.targets, 0.0), dict.fromkeys(task.targets, 0.0)
        with torch.no_grad():
            for feed, _ in self.judge:
                moved = {name: value.to(self.device) for name, value in feed.items()}
                expected, got = (
                    {name: value.float() for name, value in module(moved, list(task.targets)).items()}
                    for module in (task.teacher, task.student)
                )
                for name, target in task.targets.items():
                    total += float(distance(target, expected[name], got[name]))
                    noise[name] += float(((got[name] - expected[name]).double() ** 2).sum())
                    signal[name] += float((expected[name].double() ** 2).sum())
        known = [10.0 * math.log10(signal[n] / noise[n]) for n in noise if noise[n] > 0 and signal[n] > 0]
        return total / max(len(self.judge), 1), min(known, default=99.0)

    # What is kept.

    def _copy(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]

    def _save(self, progress: dict[str, Any]) -> None:
        if self.task.state is None:
            return
        content = BytesIO()
        state = {"signature": self.task.signature, "now": self._copy(), "optimizer": self.optimizer.state_dict()}
        torch.save({**state, **progress}, content)
        atomic.write(self.task.state, content.getvalue())

    def _load(self) -> dict[str, Any] | None:
        """What an interrupted run has left, where it was of the same models, samples and options."""
        path = self.task.state
        if path is None or not path.is_file():
            return None
        try:
            known: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
            if known["signature"] != self.task.signature or len(known["now"]) != len(self.parameters):
                return None
            if not known.keys() >= _PROGRESS:
                return None
            self._go_back(known["now"])
            self.optimizer.load_state_dict(known["optimizer"])
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, EOFError):
            return None
        except Exception as error:  # what unpickling raises where the file is something else
            if type(error).__name__ != "UnpicklingError":
                raise
            return None
        return known


def start_from(student: GraphModule, weights: Mapping[str, Array], bits: Mapping[str, tuple[int, int]]) -> None:
    """Let integers start where their weights lay before they were rounded.

    Args:
        student: the quantized graph.
        weights: float weights by the name of the node that reads them.
        bits: as of `Finetuning`.
    """
    writers = {name: node for node in student.graph.nodes for name in node.outputs}
    for node in student.graph.nodes:
        writer = writers.get(node.inputs[1]) if len(node.inputs) > 1 else None
        real = weights.get(node.name)
        if real is None or writer is None or writer.op_type != "DequantizeLinear":
            continue
        weight = student.weights.get(writer.inputs[0])
        if weight is None or weight.scale is None or weight.integers.latent.shape != real.shape:
            continue
        part = weight.integers
        low, high = bits.get(writer.inputs[0], (part.low, part.high))
        scale = aligned(weight.scale.base, part.latent, writer.attributes.get("axis", 1), 0)
        zero = (
            0.0 if weight.zero is None else aligned(weight.zero.base, part.latent, writer.attributes.get("axis", 1), 0)
        )
        steps = (torch.from_numpy(np.array(real, np.float32)) / scale + zero).clamp(low - _NEARER, high + _NEARER)
        away = steps - part.latent
        # where the other neighbour was learned, so near to it that the first steps do not undo that
        near = torch.where(away.abs() <= _ROUNDED, away.clamp(-_NEARER, _NEARER), away.clamp(-_LEARNED, _LEARNED))
        part.start_from((part.latent + near).numpy())
