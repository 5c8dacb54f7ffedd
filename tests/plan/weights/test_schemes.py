"""Errors of schemes against plain formulas, and for every weight of a model once."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.core.codebook import NF4
from onnxq.plan.weights.scheme_tables import scheme_tables
from onnxq.plan.weights.schemes import SCHEMES, Scheme, scheme_errors
from tests.graph.build import build, weights

GENERATOR = np.random.default_rng(0)
WEIGHT = (GENERATOR.normal(size=(24, 100)) * GENERATOR.uniform(0.2, 3, size=(24, 1))).astype(np.float32)
WEIGHT[3, 5] = 0.0


def grouped(weight: np.ndarray, granularity: str | int) -> list[np.ndarray]:
    if granularity == "tensor":
        return [weight]
    if granularity == "channel":
        return list(weight)
    return [row[start : start + granularity] for row in weight for start in range(0, len(row), granularity)]


def rounded(group: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Rounding written down once more, in float64."""
    x, levels = group.astype(np.float64), 2**scheme.bits
    if scheme.mode == "nf4":
        size = np.abs(x).max()
        table = NF4.astype(np.float64) * size
        return table[np.abs(x[..., None] - table).argmin(axis=-1)]
    if scheme.mode == "affine":
        low, high = min(x.min(), 0.0), max(x.max(), 0.0)
        step = (high - low) / (levels - 1)
        zero = np.clip(np.rint(-low / step), 0, levels - 1)
        return (np.clip(np.rint(x / step) + zero, 0, levels - 1) - zero) * step
    step = np.abs(x).max() / (levels // 2 - 1)
    return np.clip(np.rint(x / step), 1 - levels // 2, levels // 2 - 1) * step


PLAIN = [s for s in SCHEMES if s.mode in ("affine", "nf4") or (s.mode == "symmetric" and s.bits == 8)]


@pytest.mark.parametrize("scheme", PLAIN, ids=lambda scheme: scheme.name)
def test_errors_are_those_of_the_formula(scheme: Scheme) -> None:
    (found,) = scheme_errors(WEIGHT, [scheme])
    pairs = [(group, rounded(group, scheme)) for group in grouped(WEIGHT, scheme.granularity)]
    error = np.concatenate([np.abs(group - other).ravel() for group, other in pairs])
    size = np.concatenate([np.abs(group).ravel() for group, _ in pairs])
    assert found.mean_abs == pytest.approx(error.mean(), rel=2e-3)
    assert found.mean_sq == pytest.approx((error**2).mean(), rel=2e-3)
    assert found.mean_rel == pytest.approx((error[size > 0] / size[size > 0]).mean(), rel=2e-3)


def test_finer_grids_and_fitted_tables_are_better() -> None:
    found = {error.scheme.name: error.mean_sq for error in scheme_errors(WEIGHT)}
    for mode in ("affine", "symmetric"):
        for bits in (8, 4, 3, 2):
            row = [found[f"{mode} {bits} bits {where}"] for where in ("per tensor", "per channel", "groups of 16")]
            assert row == sorted(row, reverse=True)
        assert (
            found[f"{mode} 2 bits per tensor"] > found[f"{mode} 3 bits per tensor"] > found[f"{mode} 8 bits per tensor"]
        )
    for bits in (4, 3, 2):
        assert found[f"kmeans {bits} bits per tensor"] < found[f"affine {bits} bits per tensor"]
    assert "kmeans 8 bits per channel" not in found  # its tables would be larger than the weight


def test_rows_of_a_weight_keep_the_range_of_the_whole() -> None:
    scheme = Scheme("affine", 8, "tensor")
    (whole,) = scheme_errors(WEIGHT, [scheme])
    (part,) = scheme_errors(WEIGHT[::3], [scheme], ends=(float(WEIGHT.min()), float(WEIGHT.max())))
    assert part.mean_abs == pytest.approx(whole.mean_abs, rel=0.1)


def test_every_weight_of_a_model_once() -> None:
    model = build(
        """g (float[1,3,8,8] x, int64[4] i) => (float y, float e, float s) {
        a = Conv (x, w) b = Conv (x, w) y = Add (a, b) e = Gather (table, i)
        c = Constant <value = bool {1}> ()
        s = If (c) <then_branch = t () => (float z) { z = MatMul (table, m) },
                    else_branch = f () => (float z) { z = MatMul (table, m) }> }""",
        w=weights(16, 3, 3, 3), table=weights(10, 32), m=weights(32, 6),
    )  # fmt: skip
    found = scheme_tables(model)
    assert [(row["name"], row["shape"]) for row in found["weights"]] == [
        ("w", [16, 3, 3, 3]), ("table", [10, 32]), ("m", [32, 6]),
    ]  # fmt: skip
    assert found["left_out"] == 0
    assert all(sum(row["histogram"]["counts"]) == row["rounded"] for row in found["weights"])
    shares = [float(np.prod(row["shape"])) for row in found["weights"]]
    parts = [row["errors"][0]["mean_abs"] for row in found["weights"]]
    assert found["totals"][0]["mean_abs"] == pytest.approx(np.average(parts, weights=shares))
    small = scheme_tables(model, elements=100, most=1)
    assert [row["name"] for row in small["weights"]] == ["w"] and small["weights"][0]["rounded"] <= 108
    assert small["left_out"] == 2


def test_a_matmul_has_its_channels_in_columns() -> None:
    weight = (weights(64, 8) * np.array([1, 100, 1, 1, 1, 1, 1, 1], np.float32)).astype(np.float32)
    model = build("g (float[1,64] x) => (float y) { y = MatMul (x, w) }", w=weight)
    errors = {row["scheme"]: row["mean_rel"] for row in scheme_tables(model)["weights"][0]["errors"]}
    assert errors["symmetric 8 bits per channel"] < errors["symmetric 8 bits per tensor"] / 5


def test_relative_errors_of_weights_that_are_next_to_nothing_do_not_overflow() -> None:
    weight = np.array([[1.0, 1e-40, 0.5, -1e-42]], np.float32)
    for found in scheme_errors(weight):
        assert np.isfinite(found.mean_rel)
