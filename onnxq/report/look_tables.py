"""Tables of what was seen in models: errors of schemes, and differences between two models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from onnxq.report.result_tables import ROWS_SHOWN, Table
from onnxq.report.words import decibels, three_digits

_RAMP = " .:-=+*#%@"
SHOWN_SCHEMES = (
    ("int8", "symmetric 8 bits per channel"),
    ("4 bits", "symmetric 4 bits groups of 32"),
    ("nf4", "nf4 4 bits groups of 64"),
    ("2 bits", "affine 2 bits groups of 32"),
)
"""Schemes that each weight is shown with, under short names."""


def schemes_tables(schemes: Mapping[str, Any], *, everything: bool = False) -> list[Table]:
    """Totals by scheme, and a line for each weight.

    Args:
        schemes: what `onnxq.plan.weights.scheme_tables.scheme_tables` gives.
        everything: every scheme of every weight.
    """
    weights = schemes["weights"]
    left = f"{schemes['left_out']} weights that are integers already are left out" if schemes["left_out"] else ""
    totals = Table(
        ("scheme, all weights", "bits a weight", "mean |error|", "mean error^2", "mean |error|/|weight|"),
        [_cells(row) for row in schemes["totals"]],
        right=(1, 2, 3, 4),
        more=left,
    )
    shown = weights if everything else weights[:ROWS_SHOWN]
    rows = [
        (
            weight["name"] or weight["node"],
            "x".join(str(length) for length in weight["shape"]),
            *(_relative(weight["errors"], scheme) for _, scheme in SHOWN_SCHEMES),
            histogram_line(weight["histogram"]),
        )
        for weight in shown
    ]
    more = f"and {len(weights) - len(shown)} more weights; --verbose shows all" if len(shown) < len(weights) else ""
    header = ("mean |error|/|weight| of", "shape", *(name for name, _ in SHOWN_SCHEMES), "histogram")
    tables = [totals, Table(header, rows, right=(2, 3, 4, 5), long=(0,), more=more)]
    if everything:
        tables += [
            Table(
                (str(weight["name"] or weight["node"]), "bits a weight", "mean |error|", "mean error^2", "relative"),
                [_cells(row) for row in weight["errors"]],
                right=(1, 2, 3, 4),
            )
            for weight in weights
        ]
    return [table for table in tables if table.rows]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["scheme"], f"{row['bits_per_weight']:.2f}", f"{row['mean_abs']:.4g}", f"{row['mean_sq']:.4g}",
        f"{row['mean_rel']:.4f}",
    )  # fmt: skip


def _relative(errors: Sequence[Mapping[str, Any]], scheme: str) -> str:
    return next((f"{row['mean_rel']:.4f}" for row in errors if row["scheme"] == scheme), "-")


def histogram_line(histogram: Mapping[str, Any]) -> str:
    """A histogram as one line of letters, darker where there is more, between its ends."""
    most = max(histogram["counts"], default=0) or 1
    line = "".join(_RAMP[min(-(-count * (len(_RAMP) - 1) // most), len(_RAMP) - 1)] for count in histogram["counts"])
    return f"{three_digits(histogram['low'])} [{line}] {three_digits(histogram['high'])}"


def difference_line(result: Mapping[str, Any]) -> str:
    """How many nodes differ, in words."""
    only = [f"{len(result[key])} only in the {key[5:]} model" for key in ("only_first", "only_second") if result[key]]
    return ", ".join([f"{len(result['nodes'])} nodes differ", f"{result['same']} do not", *only])


def difference_tables(result: Mapping[str, Any], *, everything: bool = False) -> list[Table]:
    """A line for each node that differs, and for each that one model alone has.

    Args:
        result: what `onnxq.report.results.Difference.to_dict` gives.
        everything: all rows, not only the first.
    """
    tables = []
    nodes = result["nodes"] if everything else result["nodes"][:ROWS_SHOWN]
    rows = [
        (
            row["node"],
            ", ".join(row["differs"]),
            _side(row["first"], row["differs"]),
            _side(row["second"], row["differs"]),
            _weights(row["weight_sqnr_db"]),
        )
        for row in nodes
    ]
    if rows:
        header = ("node", "differs", "first", "second", "weights")
        tables.append(Table(header, rows, right=(4,), long=(0, 1, 2, 3), more=_more(result["nodes"], nodes)))
    for key in ("only_first", "only_second"):
        shown = result[key] if everything else result[key][:ROWS_SHOWN]
        if shown:
            lines = [(row["node"], row["op_type"], row["how"] or row["state"]) for row in shown]
            title = f"only in the {key[5:]}"
            tables.append(Table((title, "operator", "how"), lines, long=(0, 2), more=_more(result[key], shown)))
    return tables


def _more(every: Sequence[Any], shown: Sequence[Any]) -> str:
    return f"and {len(every) - len(shown)} more; --verbose shows all" if len(shown) < len(every) else ""


def _weights(ratio: float | None) -> str:
    return "-" if ratio is None else "equal" if ratio == math.inf else decibels(ratio)


def _side(facts: Mapping[str, Any], differs: Sequence[str]) -> str:
    """What one model says of what differs."""
    words = []
    told = {"state", "weight"} if "how" in differs and facts["how"] else set()
    for name in differs:
        if name in told:
            continue
        value = facts.get(name)
        if name == "how" and not value:
            value = facts["state"] if "state" not in differs else None
        if name == "output":
            value = "float output" if value is None else f"{value[0]:.4g} to {value[1]:.4g}"
        if value and str(value) not in words:
            words.append(str(value))
    return "; ".join(words) or "-"
