"""How far an output is from its teacher's, as a loss for its kind."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from onnxq.qat.torch_ops.call import Tensor
from onnxq.verify import loss

_TINY = 1e-12


@dataclass(frozen=True)
class OutputKind:
    """What an output holds.

    Attributes:
        kind: a kind of `onnxq.verify.loss`.
        axis: of the classes, where it has some; None where not.
        normalized: they are probabilities already, not logits.
        scale: mean square of the teacher's values about their mean, of outputs that are plain numbers.
        labelled: whether the labels of the samples, where there are some, are its classes.
    """

    kind: str
    axis: int | None = None
    normalized: bool = False
    scale: float = 1.0
    labelled: bool = False


def distance(target: OutputKind, expected: Tensor, got: Tensor) -> Tensor:
    """The loss of one batch, a number of about the same size whatever the kind.

    Classes and positions: Kullback-Leibler divergence, in nats. Probabilities: the same of each alone. Embeddings: one
    minus the cosine. Anything else: squares relative to the teacher's variance.
    """
    if target.axis is not None:
        wanted, found = (_log_classes(values, target) for values in (expected, got))
        return (wanted.exp() * (wanted - found)).sum(dim=target.axis).mean()
    if target.kind == loss.PROBABILITIES:
        wanted, found = expected.clamp(_TINY, 1.0), got.clamp(_TINY, 1.0 - 1e-6)
        entropy = functional.binary_cross_entropy(wanted.clamp(max=1.0 - 1e-6), wanted, reduction="mean")
        return functional.binary_cross_entropy(found, wanted, reduction="mean") - entropy
    if target.kind == loss.EMBEDDING:
        return (1.0 - functional.cosine_similarity(expected, got, dim=-1)).mean()
    return squares(expected, got, target.scale)


def squares(expected: Tensor, got: Tensor, scale: float) -> Tensor:
    """Mean squared error as a share of ``scale``."""
    return ((got - expected) ** 2).mean() / max(scale, _TINY)


def labelled(target: OutputKind, got: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy with classes that are known."""
    assert target.axis is not None
    logs = _log_classes(got, target).movedim(target.axis, -1)
    return functional.nll_loss(logs.reshape(-1, logs.shape[-1]), labels.reshape(-1))


def _log_classes(values: Tensor, target: OutputKind) -> Tensor:
    assert target.axis is not None
    if target.normalized:
        logs: Tensor = torch.log(values.clamp(min=_TINY))
        return logs
    return functional.log_softmax(values, dim=target.axis)
