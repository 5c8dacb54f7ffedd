"""What an engine is: a few verbs, whatever computes behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from onnxq.data.feeds import Feed
from onnxq.graph import traits


@dataclass(frozen=True)
class About:
    """What computes.

    Attributes:
        runtime: its name and version, such as ``onnxruntime 1.32.0``.
        provider: the execution provider, by its full name.
        device: the device that it runs on, in its own words.
    """

    runtime: str
    provider: str
    device: str

    def __str__(self) -> str:
        return f"{self.provider} on {self.device}, {self.runtime}"


@dataclass(frozen=True)
class Runs:
    """How often models are run.

    Attributes:
        seconds: time to spend on each.
        fewest: runs of each, however long they take.
        most: runs of each, however short they are.
    """

    seconds: float
    fewest: int
    most: int


@dataclass(frozen=True)
class Refusal:
    """A node that an engine leaves to another one.

    Attributes:
        node: its name in the model.
        op_type: its operator.
        reason: the engine's own words; empty where it gives none.
    """

    node: str
    op_type: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.op_type} {self.node!r}{f': {self.reason}' if self.reason else ''}"


class Engine(Protocol):
    """Runs models.

    A model is the contents of a file, or its path, which an engine on this machine can read. All verbs raise
    `onnxq.errors.EngineError`: it is not there, has ended, or refuses the model as a whole.
    """

    def about(self) -> About:
        """Version and device."""
        ...

    def refused(self, model: bytes | Path) -> list[Refusal]:
        """The nodes that it does not take, with its reasons."""
        ...

    def run(self, model: bytes | Path, feeds: Sequence[Feed]) -> list[list[Any]]:
        """One array an output, by feed."""
        ...

    def time(self, models: Sequence[bytes | Path], feeds: Sequence[Feed], seconds: float) -> list[list[float]]:
        """Milliseconds of single runs by model, which take turns; about ``seconds`` for each model."""
        ...

    def profiles(self, models: Sequence[bytes], feed: Feed, runs: Runs) -> list[bytes | None] | None:
        """ONNX Runtime's profile of each model, which take turns; None for one that does not run there.

        None for all where the engine shows no kernels.
        """
        ...

    def memory(self, model: bytes | Path, feed: Feed) -> int | None:
        """Bytes to load and run a model once, above those of the runtime; None where that cannot be seen."""
        ...

    def close(self) -> None:
        """End it; nothing else may be asked of it then."""
        ...


_NAMED = 3
_CPU = "CPUExecutionProvider"


def left_to_the_cpu(engine: Engine, models: Mapping[str, bytes | Path]) -> list[str]:
    """A line for each model of which a provider leaves layers to the CPU: its times are not the provider's alone."""
    about = engine.about()
    if about.provider == _CPU:
        return []
    return [line for name, model in models.items() if (line := said_of_left(name, about, engine.refused(model)))]


def said_of_left(name: str, about: About, refused: Sequence[Refusal]) -> str:
    """What to say of the nodes of a model that a provider does not take; empty where it takes every layer."""
    layers = layers_left(refused)
    listed = listing(layers, _NAMED, ", ")
    return f"{name}: {len(layers)} nodes run on the CPU and not on {about.provider}: {listed}" if layers else ""


def layers_left(refused: Sequence[Refusal]) -> list[Refusal]:
    """The nodes that compute something, of those that a provider does not take."""
    return [entry for entry in refused if entry.op_type not in traits.CONVERSIONS]


def listing(entries: Sequence[Refusal], most: int, between: str) -> str:
    """The first of them in words, and how many there are besides."""
    named = between.join(map(str, entries[:most]))
    return f"{named}{between}and {len(entries) - most} more" if len(entries) > most else named
