"""What is known of one quantized node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Finding:
    """What one quantized node does to the model.

    Attributes:
        node: its name in the float model.
        op_type: its operator.
        value: the value it computes.
        own_sqnr_db: of that value where this node alone is quantized and is given float inputs.
        arriving_sqnr_db: of that value in the whole quantized model; None where the model does not show it.
        output_sqnr_db: of the model's worst output where this node alone is quantized, the mean over samples; None
            where not measured.
        weight_sqnr_db: of its weight; None where it has none, or none that can be compared.
        low: lower end of the range of its output; None where that stays float.
        high: upper end.
        seen_low: smallest element of the float value.
        seen_high: largest.
        clipped: share of elements outside the range.
        cause: where most of its own error comes from, in words.
        remedy: what a recipe can do about it: keys of a rule.
        inside: the subgraph that it lies in, where what arrives and the effect on the outputs are not measured; empty
            in the main graph.
    """

    node: str
    op_type: str
    value: str
    own_sqnr_db: float
    arriving_sqnr_db: float | None = None
    output_sqnr_db: float | None = None
    weight_sqnr_db: float | None = None
    low: float | None = None
    high: float | None = None
    seen_low: float | None = None
    seen_high: float | None = None
    clipped: float = 0.0
    cause: str = ""
    remedy: dict[str, Any] = field(default_factory=dict)
    inside: str = ""
