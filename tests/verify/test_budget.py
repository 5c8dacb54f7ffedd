"""One place holds a comparison against limits."""

from __future__ import annotations

import pytest

from onnxq.verify.budget import Limits, fall
from onnxq.verify.compare import Comparison
from onnxq.verify.loss import BUDGET


def comparison(**figures: object) -> Comparison:
    known: dict[str, object] = {"outputs": {}, "samples": 4, "sqnr_db": None, "top1_agreement": None}
    return Comparison(**{**known, "class_output": None, **figures})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limits", "figures", "reason"),
    [
        (Limits(min_sqnr=20), {"sqnr_db": 25.0}, ""),
        (Limits(min_sqnr=20), {"sqnr_db": 18.0}, "SQNR is 18.0 dB and --min-sqnr asks for 20"),
        (Limits(min_sqnr=20), {}, "--min-sqnr: the model has no real-valued output to measure"),
        (
            Limits(max_drop=1),
            {"possible_agreement": 0.98},
            "top-1 agreement falls by 2.00 points and --max-drop allows 1",
        ),
        (Limits(max_drop=1), {"possible_agreement": 0.9, "accuracy": {"float": 0.9, "quantized": 0.895}}, ""),
        (Limits(max_drop=1), {"loss": 0.005}, ""),
        (Limits(max_drop=1), {"loss": 0.02}, "the share of unchanged decisions falls by 2.00 points and --max-drop"),
        (Limits(max_drop=1), {}, "--max-drop: no output could be judged"),
        (Limits(), {"loss": 0.9}, ""),
    ],
)
def test_limits(limits: Limits, figures: dict[str, object], reason: str) -> None:
    found = limits.outside(comparison(**figures))
    assert found.startswith(reason) and bool(found) == bool(reason)


def test_the_budget_holds_where_the_user_set_no_limit() -> None:
    assert Limits.or_budget(None, None).max_loss == BUDGET
    assert Limits.or_budget(1.0, None).max_loss is None
    assert Limits.or_budget(None, 30.0).max_loss is None


def test_the_fall_is_of_what_users_know_best() -> None:
    assert fall(comparison()) is None
    assert fall(comparison(loss=0.5, possible_agreement=0.75)) == ("top-1 agreement falls", 25.0)
