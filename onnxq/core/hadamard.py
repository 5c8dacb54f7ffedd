"""Orthogonal matrices that spread every coordinate over all others: randomized Hadamard matrices of nearly any size.

References:
    Paley, On Orthogonal Matrices, 1933: Hadamard matrices of order q + 1 and 2(q + 1). Ashkboos et al., QuaRot,
    arXiv:2404.00456, section 3: random signs in front of a Hadamard matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.core.dtypes import Array

_LARGEST = 256
"""Orders of Hadamard matrices that are made by Paley's way; beyond, powers of two times these."""


@dataclass(frozen=True, eq=False)
class Turn:
    """An orthogonal matrix Q of n rows: signs, then a Hadamard matrix of order 2^k·m over √n; or any matrix.

    Attributes:
        size: n.
        signs: (n,), ±1, random.
        core: (m, m), a Hadamard matrix; or (n, n), all of Q, where there is no Hadamard matrix of that size.
        hadamard: which of the two.
    """

    size: int
    signs: Array
    core: Array
    hadamard: bool

    def apply(self, array: Array, axis: int = -1) -> Array:
        """x·Q along an axis: each vector along it, as a row, times Q. float64, of the same shape.

        Along axis 0 of a matrix W that is Qᵀ·W.
        """
        moved = np.moveaxis(np.asarray(array, np.float64), axis, -1)
        shape = moved.shape
        if not self.hadamard:
            return np.moveaxis(moved @ self.core, -1, axis)
        order = len(self.core)
        x = (moved * self.signs).reshape(-1, self.size // order, order) @ self.core
        width = 1
        while width < self.size // order:  # the fast Walsh–Hadamard transform over the power of two
            x = x.reshape(-1, self.size // order // (2 * width), 2, width * order)
            x = np.stack([x[:, :, 0] + x[:, :, 1], x[:, :, 0] - x[:, :, 1]], axis=2)
            width *= 2
        return np.moveaxis(x.reshape(shape) / np.sqrt(self.size), -1, axis)


def turn_of(size: int, seed: int = 0) -> Turn:
    """A random Q: a randomized Hadamard matrix where one of that size can be made, else one drawn evenly.

    Args:
        size: n, 1 or more.
        seed: of the random numbers; the same seed gives the same matrix.
    """
    rng = np.random.default_rng([seed, size])
    signs = rng.choice(np.array([-1.0, 1.0]), size)
    odd = size
    while odd % 2 == 0:
        odd //= 2
    order = odd
    while order <= min(size, _LARGEST):
        core = hadamard_of(order)
        if core is not None:
            return Turn(size, signs, core, True)
        order *= 2
        if size % order:
            break
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return Turn(size, signs, q * np.sign(np.diag(r)), False)


def turn_of_means(size: int, seed: int = 0) -> Turn:
    """A random Q that leaves the mean of the coordinates as it is: (1, …, 1)·Q = (1, …, 1).

    A norm that subtracts the mean then computes the same of x·Q as of x, turned. Q = B·P·Bᵀ, where B is a Hadamard
    matrix over √n whose first column is constant and P shuffles the others and draws their signs; where there is no
    Hadamard matrix, Q = A·Bᵀ of two such bases that are drawn evenly.

    Args:
        size: n, 1 or more.
        seed: of the random numbers; the same seed gives the same matrix.
    """
    rng, base = np.random.default_rng([seed, size, 1]), turn_of(size, seed)
    if base.hadamard:
        signs = np.tile(base.core[:, 0], size // len(base.core))
        basis = Turn(size, signs, base.core, True).apply(np.eye(size))
        order = np.concatenate([[0], 1 + rng.permutation(size - 1)])
        drawn = np.concatenate([[1.0], rng.choice(np.array([-1.0, 1.0]), size - 1)])
        whole = (basis * drawn)[:, order] @ basis.T
    else:
        whole = _basis_of_mean(size, rng) @ _basis_of_mean(size, rng).T
    return Turn(size, np.ones(size), whole, False)


def _basis_of_mean(size: int, rng: np.random.Generator) -> Array:
    """(n, n), orthogonal, its first column constant and positive, the others drawn evenly."""
    drawn = rng.standard_normal((size, size))
    drawn[:, 0] = 1.0
    q, r = np.linalg.qr(drawn)
    found: Array = q * np.sign(np.diag(r))
    return found


def hadamard_of(order: int) -> Array | None:
    """A Hadamard matrix, entries ±1 and H·Hᵀ = order·I, of order 1, q + 1 or 2(q + 1) for a prime q; else None."""
    if order == 1:
        return np.ones((1, 1))
    if order % 4:
        return None
    if _is_prime(order - 1):  # order − 1 ≡ 3 mod 4
        skew = np.zeros((order, order))
        skew[0, 1:], skew[1:, 0] = 1, -1
        skew[1:, 1:] = _jacobsthal(order - 1)
        return skew + np.eye(order)
    half = order // 2
    if _is_prime(half - 1) and (half - 1) % 4 == 1:
        conference = np.zeros((half, half))
        conference[0, 1:] = conference[1:, 0] = 1
        conference[1:, 1:] = _jacobsthal(half - 1)
        return np.kron(conference, np.array([[1, 1], [1, -1]])) + np.kron(np.eye(half), np.array([[1, -1], [-1, -1]]))
    return None


def _jacobsthal(q: int) -> Array:
    """Q[i, j] = whether i − j is a square modulo q (1), is none (−1), or is zero."""
    character = np.full(q, -1.0)
    character[np.arange(q) ** 2 % q] = 1.0
    character[0] = 0.0
    places = np.arange(q)
    found: Array = character[(places[:, None] - places[None, :]) % q]
    return found


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))
