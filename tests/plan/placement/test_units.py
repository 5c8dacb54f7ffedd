"""Functions of several operators: on one side as a whole."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graph.build import build, weights
from tests.plan.planning import plan_of

SILU = """
g (float[2, 64, 64] x) => (float[2, 64, 64] y)
{
    [first] a = MatMul (x, w)
    [gate] s = Sigmoid (a)
    [silu] m = Mul (a, s)
    [last] y = MatMul (m, w)
}
"""
NORM = """
g (float[2, 64, 64] x) => (float[2, 64, 64] y)
{
    [first] a = MatMul (x, w)
    [square] p = Mul (a, a)
    [mean] v = ReduceMean <axes = [-1]> (p)
    [shift] q = Add (v, eps)
    [root] r = Sqrt (q)
    [over] n = Div (a, r)
    [gain] g = Mul (n, scale)
    [last] y = MatMul (g, w)
}
"""
CONSTANTS = {"w": weights(64, 64), "eps": np.float32(1e-5), "scale": weights(64)}


def planned(text: str, **options):
    arrays = {name: np.asarray(array) for name, array in CONSTANTS.items() if f"{name})" in text}
    return plan_of(build(text, **arrays), **options)


def test_a_norm_stays_float_as_a_whole_and_the_reason_names_it() -> None:
    plan = planned(NORM)
    for name in ("square", "mean", "shift", "root", "over", "gain"):
        assert (plan[name].action, plan[name].reason) == ("float", "part of an RMSNorm, which stays float")
    assert plan["first"].action == plan["last"].action == "integer"


def test_a_gate_is_never_half_on_integers() -> None:
    plan = planned(SILU)
    assert plan["gate"].action == plan["silu"].action


def test_one_part_that_has_to_stay_keeps_the_others() -> None:
    plan = planned(SILU, exclude=("silu",))
    assert plan["silu"].reason == "excluded by --exclude"
    assert (plan["gate"].action, plan["gate"].reason) == ("float", "part of a SiLU, which stays float")


@pytest.mark.parametrize(("include", "other"), [(("first", "gate"), "silu")])
def test_what_the_user_insists_on_is_done(include: tuple[str, ...], other: str) -> None:
    plan = planned(SILU, include=include)
    assert plan["gate"].action == "integer" and plan[other].action == "float"


def test_a_bias_is_added_by_the_kernel_that_scales_to_float() -> None:
    text = """
    g (float[2, 64, 64] x) => (float[2, 64, 64] y)
    {
        [first] a = MatMul (x, w)
        [bias] b = Add (a, scale)
        y = Tanh (b)
    }
    """
    plan = planned(text)
    assert plan["first"].adds == "bias" and plan["first"].float_output
    assert plan["bias"].action == "folded" and "added by the kernel of 'first'" in plan["bias"].reason
    kept = planned(text, exclude=("bias",))
    assert kept["bias"].reason == "excluded by --exclude" and kept["first"].adds is None


def test_a_product_of_activations_has_to_earn_its_place() -> None:
    text = """
    g (float[2, 4, 8, 8] x, float[2, 4, 8, 8] z) => (float[2, 4, 8, 8] y)
    {
        [small] a = MatMul (x, z)
        y = Tanh (a)
    }
    """
    both = """
    g (float[2, 64, 64] x, float[2, 64, 64] z) => (float[2, 64, 64] y)
    {
        [layer] a = MatMul (x, w)
        [small] b = MatMul (a, z)
        y = Tanh (b)
    }
    """
    assert planned(both)["small"].action == "float"
    assert planned(both)["layer"].action == "integer"
    assert planned(text)["small"].action == "integer"  # nothing else is there to quantize: it was asked for
