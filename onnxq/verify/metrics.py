"""One figure of a comparison, by the name that ``--metric`` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnxq.errors import RecipeError, there_are
from onnxq.verify.compare import Comparison
from onnxq.verify.fidelity import Metric


def _both(found: Mapping[str, float] | None) -> tuple[float, float | None] | None:
    return None if found is None else (found["quantized"], found["float"])


def _alone(value: float | None) -> tuple[float, float | None] | None:
    return None if value is None else (value, None)


def _worst_cosine(comparison: Comparison) -> tuple[float, float | None] | None:
    return _alone(min((o.cosine for o in comparison.outputs.values() if o.cosine is not None), default=None))


def _tokens_or_top1(comparison: Comparison) -> tuple[float, float | None] | None:
    tokens = comparison.token_agreement
    return _alone(comparison.top1_agreement if tokens is None else tokens)


_FIGURES: dict[str, tuple[Callable[[Comparison], tuple[float, float | None] | None], str]] = {
    "sqnr": (lambda c: _alone(c.sqnr_db), "the outputs are no real numbers"),
    "cosine": (_worst_cosine, "the outputs are no real numbers"),
    "top1": (_tokens_or_top1, "no output holds scores of classes or tokens"),
    "accuracy": (lambda c: _both(c.accuracy), "the data has no array 'labels' that fits an output of class scores"),
    "perplexity": (
        lambda c: _both(c.perplexity),
        "no output (N, S, tokens) predicts the token ids of the data; pass an integer input (N, S), or labels of that "
        "shape",
    ),
    "divergence": (lambda c: _alone(c.token_divergence), "no output (N, S, tokens) predicts the token ids of the data"),
}
METRICS = tuple(_FIGURES)


def metric_of(comparison: Comparison, name: str) -> Metric:
    """A figure by its name.

    Raises:
        RecipeError: there is no such metric, or it cannot be had from this comparison.
    """
    if name not in _FIGURES:
        raise RecipeError(f"--metric: no {name!r}; {there_are(name, METRICS)}")
    figure, why_not = _FIGURES[name]
    found = figure(comparison)
    if found is None:
        raise RecipeError(f"--metric {name}: cannot be given, for {why_not}")
    return Metric(name, *found)
