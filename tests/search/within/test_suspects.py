"""Which nodes a search may change, and what it knows of them."""

from __future__ import annotations

import math

from onnxq.diagnosis.finding import Finding
from onnxq.diagnosis.ranking import Diagnosis
from onnxq.search.within.suspects import suspects_of


def finding(node: str, own: float = 20.0, op_type: str = "Conv", **more: object) -> Finding:
    return Finding(node, op_type, f"{node}.out", own, **more)  # type: ignore[arg-type]


def test_order_damage_and_price_are_kept() -> None:
    found = [finding("b", output_sqnr_db=10.0), finding("a", output_sqnr_db=30.0), finding("c")]
    suspects = suspects_of(Diagnosis(found, {}, 1), {"a": 3.0})
    assert [(s.node, round(s.damage, 6), s.price) for s in suspects] == [
        ("b", 0.1, 0.0),
        ("a", 0.001, 3.0),
        ("c", 0, 0),
    ]


def test_nodes_that_round_nothing_themselves_are_left_out() -> None:
    found = [finding("moves", op_type="Reshape"), finding("exact", own=math.inf), finding("rounds")]
    assert [suspect.node for suspect in suspects_of(Diagnosis(found, {}, 1), {})] == ["rounds"]


def test_what_is_at_fault() -> None:
    found = [
        finding("clipped", remedy={"range": "minmax"}, weight_sqnr_db=21.0, low=-1.0, high=1.0),
        finding("weights", weight_sqnr_db=22.0, remedy={"quantize": False}),
        finding("inputs", weight_sqnr_db=40.0, low=0.0, high=1.0),
    ]
    suspects = suspects_of(Diagnosis(found, {}, 1), {})
    assert [(s.range, s.by_weights, s.ranged) for s in suspects] == [
        ("minmax", False, True),
        (None, True, False),
        (None, False, True),
    ]


def test_an_infinite_damage_stays_a_number() -> None:
    suspects = suspects_of(Diagnosis([finding("broken", output_sqnr_db=-math.inf)], {}, 1), {})
    assert suspects[0].damage == 1e6
