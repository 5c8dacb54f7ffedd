"""What a quantized model has to keep: the one place that holds a comparison against limits."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.verify.compare import Comparison
from onnxq.verify.loss import BUDGET, share

_NOTHING = "the float model's outputs are NaN or infinite on all samples, so that nothing could be judged"


@dataclass(frozen=True)
class Limits:
    """What the result has to keep.

    Attributes:
        max_drop: largest fall of accuracy or agreement in points, or of a metric in its units; None for any.
        min_sqnr: least SQNR of the worst output, in dB; None for any.
        max_loss: largest expected share of changed decisions (`onnxq.verify.loss`); None for any.
    """

    max_drop: float | None = None
    min_sqnr: float | None = None
    max_loss: float | None = None

    @classmethod
    def or_budget(cls, max_drop: float | None, min_sqnr: float | None) -> Limits:
        """The user's limits, or the default budget where there are none."""
        return cls(max_drop, min_sqnr, BUDGET if max_drop is None and min_sqnr is None else None)

    def failures(self, comparison: Comparison) -> list[str]:
        """What a comparison misses, one line each; empty where it is inside."""
        found = []
        if not comparison.finite:
            found.append("an output is NaN or infinite where float is finite")
        if self.min_sqnr is not None:
            if comparison.sqnr_db is None:
                found.append("--min-sqnr: the model has no real-valued output to measure")
            elif comparison.sqnr_db < self.min_sqnr:
                found.append(f"SQNR is {comparison.sqnr_db:.1f} dB and --min-sqnr asks for {self.min_sqnr:g}")
        if self.max_drop is not None:
            found += self._fallen(comparison, self.max_drop)
        if self.max_loss is not None and comparison.loss is None and comparison.finite:
            found += [_NOTHING] if any(output.nonfinite_float for output in comparison.outputs.values()) else []
        if self.max_loss is not None and (missed := comparison.outside(self.max_loss)):
            found.append(missed)
        return found

    @staticmethod
    def _fallen(comparison: Comparison, most: float) -> list[str]:
        known = fall(comparison)
        if known is None:
            return ["--max-drop: no output could be judged; use --min-sqnr, or --metric with a function"]
        what, drop = known
        if drop <= most:
            return []
        return [f"{what} by {drop:.2f} points and --max-drop allows {most:g}"]

    def outside(self, comparison: Comparison) -> str:
        """Why a comparison is outside the limits, in one line; empty where it is inside."""
        return "; ".join(self.failures(comparison))

    def __str__(self) -> str:
        """The limits in words."""
        said = [] if self.max_drop is None else [f"--max-drop {self.max_drop:g}"]
        said += [] if self.min_sqnr is None else [f"--min-sqnr {self.min_sqnr:g}"]
        said += [] if self.max_loss is None else [f"the budget of {share(self.max_loss)} of decisions"]
        return " and ".join(said)


def only_noise(comparison: Comparison) -> float | None:
    """The best SQNR, in dB, where the error of every real output is as large as its signal; else None."""
    known = [output.sqnr_db for output in comparison.outputs.values() if output.sqnr_db is not None]
    return max(known) if known and max(known) <= 0.0 else None


def fall(comparison: Comparison) -> tuple[str, float] | None:
    """What --max-drop is about, and by how many points it fell; None where nothing could be judged.

    That is accuracy where the data has labels, else agreement with float among classes, else the expected share of
    changed decisions (`onnxq.verify.loss`).
    """
    if comparison.accuracy is not None:
        return "accuracy falls", 100 * (comparison.accuracy["float"] - comparison.accuracy["quantized"])
    if comparison.possible_agreement is not None:
        return "top-1 agreement falls", 100 * (1 - comparison.possible_agreement)
    if comparison.loss is not None:
        return "the share of unchanged decisions falls", 100 * comparison.loss
    return None
