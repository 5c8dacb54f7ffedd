"""What ``--max-drop`` is measured by: accuracy or agreement by default, another figure, or a function of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.data.user_code import import_callable
from onnxq.errors import OnnxqError, RecipeError
from onnxq.runtime.session import Session
from onnxq.verify.compare import Comparison
from onnxq.verify.metrics import metric_of

TOP1, SQNR = "top1", "sqnr"
FIGURES = ("accuracy", "perplexity", "divergence")
"""Figures of a comparison with float that a limit can be on, besides."""


class Runner:
    """A model that a metric can run: call it with a feed, get its outputs by name.

    Attributes:
        input_names: of the model, in order.
        output_names: likewise.
    """

    def __init__(self, session: Session) -> None:
        """Run the model of an open session."""
        self._session = session
        self.input_names = [spec.name for spec in session.input_specs]
        self.output_names = list(session.output_names)

    def __call__(self, feed: Feed) -> dict[str, Array]:
        """The outputs of one feed.

        Args:
            feed: arrays by input name.

        Raises:
            ModelError: the runtime refused the feed or failed.
        """
        return dict(zip(self.output_names, self._session.run(feed), strict=True))


_NAMES = ", ".join((TOP1, SQNR, *FIGURES))

Function = Callable[[Runner], float]
"""Scores a model; higher is better."""


@dataclass(frozen=True)
class TaskMetric:
    """What a model is scored by.

    Attributes:
        name: "top1", "sqnr", one of `FIGURES`, or what the user's function is called.
        function: the user's; None for the others, which the comparison with float gives.
    """

    name: str = TOP1
    function: Function | None = None

    @property
    def is_default(self) -> bool:
        """Verification itself holds a model to its limit."""
        return self.name in (TOP1, SQNR) and self.function is None

    def change(self, drop: float) -> str:
        """In words, what a model does that is so much worse; for two of the metrics, worse is higher."""
        higher = (drop < 0) != (self.function is None and self.name in ("perplexity", "divergence"))
        unit = " points" if self.function is None and self.name in (TOP1, "accuracy") else ""
        return f"{self.name} {'rises' if higher else 'falls'} by {abs(drop):.4g}{unit}"

    def fall(self, comparison: Comparison) -> float:
        """How much worse than float a model is by one of `FIGURES`: points of accuracy, perplexity, nats of divergence.

        Raises:
            RecipeError: the comparison does not have that figure.
        """
        found = metric_of(comparison, self.name)
        if self.name == "accuracy":
            return 100.0 * ((found.reference or 0.0) - found.quantized)
        return found.quantized - (found.reference or 0.0)

    def of(self, session: Session) -> float:
        """The score of a model by the user's function.

        Raises:
            RecipeError: the function failed, or gave no number.
        """
        assert self.function is not None, "other metrics come from the comparison with float"
        try:
            value = self.function(Runner(session))
        except OnnxqError:
            raise
        except (Exception, SystemExit) as error:  # the user's own code
            raise RecipeError(f"--metric {self.name}: it raised {type(error).__name__}: {error}") from error
        try:
            score = float(value)
        except (TypeError, ValueError):
            raise RecipeError(
                f"--metric {self.name}: it returned {value!r}, which must be a number, higher for a better model"
            ) from None
        if math.isnan(score):
            raise RecipeError(
                f"--metric {self.name}: it returned NaN; return a number that is higher for a better model"
            )
        return score


def search_metric(given: str | Function | None, max_drop: float | None, min_sqnr: float | None) -> TaskMetric:
    """What the user asked to measure by.

    Args:
        given: "top1", "sqnr", one of `FIGURES`, ``module:function``, or the function itself; None for "top1".
        max_drop: the limit on its fall.
        min_sqnr: the limit on SQNR.

    Raises:
        RecipeError: there is no such metric, or no limit that it could be held to.
    """
    if given is None:
        return TaskMetric()
    if given == SQNR:
        if min_sqnr is None or max_drop is not None:
            raise RecipeError("--metric sqnr: the limit of SQNR is --min-sqnr, in dB; use that, without --max-drop")
        return TaskMetric(SQNR)
    if max_drop is None:
        raise RecipeError("--metric: there is no limit to hold it to; pass --max-drop")
    if given == TOP1 or given in FIGURES:
        return TaskMetric(str(given))
    if isinstance(given, str):
        return TaskMetric(given, _imported(given))
    if not callable(given):
        raise RecipeError(
            f"metric: is a {type(given).__name__}; pass one of {_NAMES}, 'module:function' or a function of a runner"
        )
    return TaskMetric(
        f"{getattr(given, '__module__', '')}:{getattr(given, '__qualname__', type(given).__name__)}", given
    )


def _imported(text: str) -> Function:
    module, colon, name = text.rpartition(":")
    if not (colon and module and name):
        raise RecipeError(f"--metric: no {text!r}; there are {_NAMES} and module:function")
    what = "a function of a runner that returns a number"
    return import_callable(module, name, f"--metric {text}", RecipeError, what)
