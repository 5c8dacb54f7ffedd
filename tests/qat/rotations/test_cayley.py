"""Cayley steps: matrices stay orthogonal, steps go against the Riemannian gradient, and a known optimum is found."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.torch


def orthogonal(size: int, seed: int) -> Any:
    import torch

    drawn = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(drawn).Q


def drawn(size: int, seed: int) -> Any:
    import torch

    return torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1, 2, 7, 48])
def test_matrices_stay_orthogonal(size: int) -> None:
    import torch

    from onnxq.qat.rotations.cayley import CayleyDescent

    descent = CayleyDescent([orthogonal(size, 0)])
    for step in range(500):
        descent.step([drawn(size, step)], 0.3)
    (found,) = descent.matrices
    assert float((found @ found.T - torch.eye(size, dtype=torch.float64)).abs().max()) < 1e-10


def test_the_gradient_is_the_riemannian_one() -> None:
    import torch

    from onnxq.qat.rotations.cayley import skew

    x, gradient = orthogonal(6, 1), drawn(6, 2)
    w = skew(x, gradient)
    torch.testing.assert_close(w, -w.T)
    for seed in range(5):  # along every direction that keeps X orthogonal, it tells what the gradient does
        direction = drawn(6, 10 + seed)
        direction = (direction - direction.T) @ x
        torch.testing.assert_close((gradient * direction).sum(), (w @ x * direction).sum())
    normal = x @ (drawn(6, 20) + drawn(6, 20).T)
    assert abs(float((w @ x * normal).sum())) < 1e-10  # and it has no part that leaves them


def test_a_step_goes_down_as_the_gradient_says() -> None:
    import torch

    from onnxq.qat.rotations.cayley import cayley, skew

    x, target = orthogonal(6, 1), drawn(6, 3)

    def loss(matrix: Any) -> Any:
        return ((matrix @ target).sin() ** 2).sum()

    place = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(place), place)
    w, length = skew(x, gradient), 1e-6
    slope = (loss(cayley(x, w, length)) - loss(cayley(x, w, -length))) / (2 * length)
    torch.testing.assert_close(slope, -((w @ x) ** 2).sum(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close((cayley(x, w, length) - x) / length, -w @ x, rtol=1e-4, atol=1e-4)


def test_the_angle_of_a_step_is_the_one_that_is_asked_for() -> None:
    from onnxq.qat.rotations.cayley import CayleyDescent

    x = orthogonal(32, 0)
    descent = CayleyDescent([x])
    descent.step([1e-7 * drawn(32, 1)], 0.01)  # whatever the unit of the loss is
    assert float((descent.matrices[0] - x).norm()) / 32**0.5 == pytest.approx(0.01, rel=1e-3)
    before = descent.matrices[0]
    CayleyDescent([before]).step([0 * before], 0.01)
    assert (descent.matrices[0] == before).all()


def test_a_known_rotation_is_found() -> None:
    import torch

    from onnxq.qat.rotations.cayley import CayleyDescent, cayley

    eye = torch.eye(8, dtype=torch.float64)
    wanted = cayley(eye, drawn(8, 0) - drawn(8, 0).T, 0.3)
    points = drawn(8, 1)
    descent, losses = CayleyDescent([eye]), []
    for step in range(300):
        place = descent.matrices[0].clone().requires_grad_()
        loss = ((place @ points - wanted @ points) ** 2).mean()
        descent.step(torch.autograd.grad(loss, [place]), 0.05 * (1 - step / 300))
        losses.append(float(loss.detach()))
    assert losses[-1] < 1e-4 * losses[0]
    torch.testing.assert_close(descent.matrices[0], wanted, atol=0.02, rtol=0)
