"""The nodes that a search may change, from what `onnxq.diagnosis.ranking` found of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from onnxq.diagnosis.finding import Finding
from onnxq.diagnosis.ranking import Diagnosis
from onnxq.graph.reading.ops import OPS, Kind
from onnxq.search.within.history import Suspect

_WEIGHT_DB = 6.0
"""Weights are at fault where their SQNR is at most so much above that of the node."""

_MOST_DAMAGE = 1e6


def suspects_of(diagnosis: Diagnosis, prices: Mapping[str, float]) -> list[Suspect]:
    """Those of the quantized nodes that round something themselves, in the order of the diagnosis.

    Args:
        diagnosis: of the model.
        prices: by node, the estimated microseconds that it takes longer in float.
    """
    return [_suspect(found, prices.get(found.node, 0.0)) for found in diagnosis.findings if _hurts(found)]


def _hurts(finding: Finding) -> bool:
    row = OPS.get(finding.op_type)
    if row is not None and row.kind is Kind.PASSING:  # it only moves what the node before it rounded
        return False
    return math.isfinite(finding.own_sqnr_db) or finding.output_sqnr_db not in (None, math.inf)


def _suspect(finding: Finding, price: float) -> Suspect:
    ratio, weight = finding.output_sqnr_db, finding.weight_sqnr_db
    damage = 0.0 if ratio is None or ratio == math.inf else min(10.0 ** (-ratio / 10.0), _MOST_DAMAGE)
    helps = finding.remedy.get("range")
    by_weights = helps is None and weight is not None and weight < finding.own_sqnr_db + _WEIGHT_DB
    return Suspect(finding.node, damage, helps, by_weights, finding.low is not None, price)
