"""Descent among orthogonal matrices: steps along Cayley transforms, which never leave them.

References:
    Li, Fuxin, Todorovic, Efficient Riemannian Optimization on the Stiefel Manifold via the Cayley Transform,
    arXiv:2002.01113, algorithm 1 (SGD with momentum); the matrices here are square, and small enough that the
    transform is solved for rather than approached. Used for rotations by Liu et al., SpinQuant, arXiv:2405.16406.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from onnxq.qat.torch_ops.call import Tensor

_TINY = 1e-30


def skew(x: Tensor, gradient: Tensor) -> Tensor:
    """W of the Riemannian gradient W·X: what is left of a gradient at X among the directions that keep X orthogonal.

    Args:
        x: (n, n), orthogonal.
        gradient: (n, n), of the loss by the elements of X.

    Returns:
        (n, n), W = −Wᵀ.
    """
    product = gradient @ x.T
    return 0.5 * (product - product.T)


def cayley(x: Tensor, w: Tensor, length: float) -> Tensor:
    """(I + a/2·W)⁻¹·(I − a/2·W)·X, which is orthogonal as X is; for small a it is X − a·W·X.

    Args:
        x: (n, n), orthogonal.
        w: (n, n), skew-symmetric.
        length: a.
    """
    half = 0.5 * length * w
    eye = torch.eye(len(w), dtype=w.dtype, device=w.device)
    found: Tensor = torch.linalg.solve(eye + half, x - half @ x)
    return found


class CayleyDescent:
    """SGD with momentum, whose steps have a length that is given: a loss has no unit, an angle has.

    Attributes:
        matrices: (n, n) each, float64, orthogonal; as the last step left them.
    """

    def __init__(self, matrices: Sequence[Tensor], momentum: float = 0.9) -> None:
        self.matrices = [matrix.detach().double() for matrix in matrices]
        self._moments = [torch.zeros_like(matrix) for matrix in self.matrices]
        self._momentum = momentum

    def step(self, gradients: Sequence[Tensor], angle: float) -> None:
        """Turn each matrix against its gradient.

        Args:
            gradients: of the loss, by the elements of each matrix.
            angle: root mean square of the angles, in radians, that a matrix turns its vectors by; no more than 1.
        """
        for index, (x, gradient) in enumerate(zip(self.matrices, gradients, strict=True)):
            w = skew(x, self._momentum * self._moments[index] + gradient.double())
            self._moments[index] = w @ x
            norm = float(w.norm())
            if norm > _TINY:
                self.matrices[index] = cayley(x, w, angle * len(x) ** 0.5 / norm)
