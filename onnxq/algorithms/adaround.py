"""AdaRound: learn for each weight whether to round it up or down, so that the layer's outputs change least.

With e = Ŵ − W the expected squared error of the outputs is tr(e H eᵀ) with H = E[xxᵀ], so one matrix stands for all
samples, and the rows of a weight are learned independently of each other. Where the layer reads other inputs x̂ than
the ones that gave its targets Wx (those of a model whose earlier layers are quantized already: the layer-by-layer
distillation of ZeroQuant), E‖Ŵx̂ − Wx‖² takes H = E[x̂x̂ᵀ] and the cross moment E[xx̂ᵀ].

References:
    Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, arXiv:2004.10568, section 3;
    Hubara et al., AdaQuant, arXiv:2006.10518 (scales learned with the integers); Yao et al., ZeroQuant,
    arXiv:2206.01861, section 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.core.affine import expand_blocks, params_for
from onnxq.core.dtypes import Array
from onnxq.core.spec import PerAxis, PerBlock, PerTensor, QParams, QTensor, TensorSpec
from onnxq.errors import CalibrationError, RecipeError

_STRETCH_LOW, _STRETCH_HIGH = -0.1, 1.1
"""The sigmoid is stretched a little beyond 0…1, so that its ends are reached (equation 23 of the paper)."""

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class AdaRoundConfig:
    """How AdaRound learns.

    Attributes:
        iterations: steps of Adam; each sees all samples, by way of the moments.
        rate: its learning rate, units of the logit of the rounding.
        weight: of the term that drives roundings to 0 or 1, relative to the error in steps².
        warm: share of the iterations before that term sets in.
        sharpest: exponent of the term at its end; it starts at ``flattest`` (flat near 0 and 1, steep at the middle).
        flattest: exponent of the term at its start.
        sweeps: passes over the columns afterwards, in which each rounding is turned over if that alone is better; rows
            that end better from rounding to nearest take that.
        learn_scale: fit the scales to the integers at the end (AdaQuant), in closed form.
    """

    iterations: int = 300
    rate: float = 0.05
    weight: float = 0.5
    warm: float = 0.2
    flattest: float = 20.0
    sharpest: float = 2.0
    sweeps: int = 3
    learn_scale: bool = False

    def __post_init__(self) -> None:
        if self.iterations < 1 or not 0.0 <= self.warm < 1.0 or self.rate <= 0.0:
            raise RecipeError("AdaRoundConfig: iterations and rate have to be positive, warm in 0…1; 300, 0.05 and 0.2")


def adaround(
    weight: Array,
    moment: Array,
    spec: TensorSpec,
    config: AdaRoundConfig,
    *,
    cross: Array | None = None,
    params: QParams | None = None,
) -> QTensor:
    """Quantize a weight with learned rounding.

    Args:
        weight: float32, (out, in).
        moment: float, (in, in), symmetric: E[x̂x̂ᵀ] or any multiple of it, of the inputs that the quantized layer reads.
        spec: the grid, in the layout of ``weight``.
        config: how to learn.
        cross: float, (in, in): E[xx̂ᵀ], the same multiple, where the targets are Wx of other inputs x; None where x̂
            is x.
        params: scales and zero points; None takes those of the extrema.

    Returns:
        QTensor whose output error is at most that of rounding to nearest, row by row.

    Raises:
        CalibrationError: a moment does not fit the weight or is not finite.
    """
    if weight.ndim != 2:
        raise RecipeError(f"adaround: a weight of shape {weight.shape} is no matrix; bring it to (out, in) first")
    inputs = weight.shape[1]
    for name, array in (("moment", moment), ("cross moment", cross)):
        if array is not None and (array.shape != (inputs, inputs) or not np.isfinite(array).all()):
            raise CalibrationError(
                f"adaround: the {name} of shape {array.shape} does not fit {inputs} inputs or is not finite; "
                f"it must be ({inputs}, {inputs})"
            )
    params = params if params is not None else params_for(weight, spec)
    problem = _Problem.of(weight, moment, cross, params)
    steps = problem.nearest()
    error = problem.errors(steps)
    # where products leave the range of float32 no rounding is seen to be better, and nearest stays
    with np.errstate(over="ignore", invalid="ignore"):
        for start in (_learn(problem, config), steps.copy()):
            for _ in range(config.sweeps):
                if not problem.sweep(start):
                    break
            reached = problem.errors(start)
            better = reached < error
            steps[better], error[better] = start[better], reached[better]
    zero_point = _spread(params.zero_point, weight.shape, params)
    values = np.clip(problem.floor + steps + zero_point, spec.qmin, spec.qmax)
    result = QTensor(values.astype(np.int32).astype(spec.dtype.numpy), params)
    return _with_scales(result, problem) if config.learn_scale else result


@dataclass
class _Problem:
    """The layer in units of rounding steps: minimise Σ_rows (q·s) H (q·s)ᵀ − 2 (q·s) Tᵀ over q = floor + {0, 1}.

    Attributes:
        floor: float32, (out, in), whole numbers without zero point, clipped so that floor + 1 is on the grid too.
        fraction: where each weight lies between floor (0) and floor + 1 (1), clipped.
        scale: float32, (out, in).
        moment: float32, (in, in), of mean diagonal 1.
        target: float32, (out, in): W·E[xx̂ᵀ] in the same unit.
    """

    floor: Array
    fraction: Array
    scale: Array
    moment: Array
    target: Array

    @classmethod
    def of(cls, weight: Array, moment: Array, cross: Array | None, params: QParams) -> _Problem:
        doubled = np.asarray(moment, np.float64)
        unit = float(np.trace(doubled)) / max(len(doubled), 1)
        unit = unit if unit > 0.0 else 1.0
        doubled = (doubled + doubled.T) / (2.0 * unit)
        exact = weight.astype(np.float64)
        target = exact @ (doubled if cross is None else np.asarray(cross, np.float64) / unit)
        scale = _spread(params.scale, weight.shape, params).astype(np.float32)
        zero_point = _spread(params.zero_point, weight.shape, params)
        low, high = params.spec.qmin - zero_point, params.spec.qmax - zero_point
        place = exact / scale
        floor = np.clip(np.floor(place), low, high - 1)
        fraction = np.clip(place - floor, 0.0, 1.0)
        return cls(
            floor.astype(np.float32),
            fraction.astype(np.float32),
            scale,
            doubled.astype(np.float32),
            target.astype(np.float32),
        )

    def nearest(self) -> Array:
        """Rounding to nearest, half to even."""
        return np.asarray(np.rint(self.floor + self.fraction) - self.floor)

    def errors(self, steps: Array) -> Array:
        """float64, (out,): squared output error of each row, up to a constant of its own."""
        real = ((self.floor + steps) * self.scale).astype(np.float64)
        moved = real @ self.moment.astype(np.float64) - 2.0 * self.target
        return np.asarray((moved * real).sum(axis=1))

    def gradient(self, steps: Array) -> Array:
        """Of half the error in squared steps of each row, by the steps."""
        real = (self.floor + steps) * self.scale
        return np.asarray((real @ self.moment - self.target) / self.scale)

    def sweep(self, steps: Array) -> bool:
        """Turn roundings over, column by column, wherever that makes the row's error smaller; says whether any was."""
        pull = ((self.floor + steps) * self.scale) @ self.moment - self.target
        turned = False
        for j in range(steps.shape[1]):
            change = (1.0 - 2.0 * steps[:, j]) * self.scale[:, j]
            better = 2.0 * change * pull[:, j] + change**2 * self.moment[j, j] < 0.0
            if better.any():
                turned = True
                moved = np.where(better, change, 0.0).astype(np.float32)
                steps[better, j] = 1.0 - steps[better, j]
                pull += moved[:, None] * self.moment[j]
        return turned


def _learn(problem: _Problem, config: AdaRoundConfig) -> Array:
    """Adam on the logits of the roundings; returns hard roundings, float32 zeros and ones."""
    width = _STRETCH_HIGH - _STRETCH_LOW
    share = np.clip((problem.fraction - _STRETCH_LOW) / width, 1e-6, 1 - 1e-6)
    logits = np.log(share / (1 - share)).astype(np.float32)
    first, second = np.zeros_like(logits), np.zeros_like(logits)
    start = int(config.warm * config.iterations)
    for iteration in range(config.iterations):
        sigmoid = 1.0 / (1.0 + np.exp(-logits))
        soft = np.clip(sigmoid * width + _STRETCH_LOW, 0.0, 1.0)
        slope = 2.0 * problem.gradient(soft)
        if iteration >= start:
            along = (iteration - start) / max(config.iterations - start - 1, 1)
            beta = config.sharpest + (config.flattest - config.sharpest) * 0.5 * (1.0 + np.cos(np.pi * along))
            centred = 2.0 * soft - 1.0
            slope -= 2.0 * config.weight * beta * np.sign(centred) * np.abs(centred) ** (beta - 1.0)
        inside = (soft > 0.0) & (soft < 1.0)
        slope *= width * sigmoid * (1.0 - sigmoid) * inside
        first += (1.0 - _BETA1) * (slope - first)
        second += (1.0 - _BETA2) * (slope * slope - second)
        step = first / (1.0 - _BETA1 ** (iteration + 1))
        logits -= config.rate * step / (np.sqrt(second / (1.0 - _BETA2 ** (iteration + 1))) + _EPSILON)
    return np.asarray((logits >= 0.0).astype(np.float32))


def _spread(parameter: Array, shape: tuple[int, ...], params: QParams) -> Array:
    granularity = params.spec.granularity
    size = granularity.size if isinstance(granularity, PerBlock) else None
    return np.array(expand_blocks(parameter.astype(np.float64), shape, size))


def _with_scales(tensor: QTensor, problem: _Problem) -> QTensor:
    """The same integers with the scales that leave the least output error: s = ⟨q, T⟩ / ⟨q, qH⟩ for each group."""
    params = tensor.params
    granularity = params.spec.granularity
    shape = tensor.values.shape
    whole = tensor.values.astype(np.float64) - _spread(params.zero_point, shape, params)
    if isinstance(granularity, PerBlock):
        return tensor  # scales of one row are coupled there
    pull = whole @ problem.moment.astype(np.float64)
    up, down = (whole * problem.target).sum(axis=1), (whole * pull).sum(axis=1)
    if isinstance(granularity, PerTensor):
        up, down = up.sum(keepdims=True), down.sum(keepdims=True)
    elif not (isinstance(granularity, PerAxis) and granularity.axis % 2 == 0):
        return tensor
    old = params.scale.reshape(-1).astype(np.float64)
    fitted = np.where((down > 0) & (up > 0), up / np.where(down > 0, down, 1.0), old)
    fitted = np.clip(fitted, 0.5 * old, 2.0 * old)
    return QTensor(
        tensor.values, QParams(params.spec, fitted.astype(np.float32).reshape(params.scale.shape), params.zero_point)
    )


__all__ = ["AdaRoundConfig", "adaround"]
