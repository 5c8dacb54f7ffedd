"""Round to nearest: the plain way to quantize a weight."""

from __future__ import annotations

import numpy as np

from onnxq.core.affine import params_from_range, quantize, reduce_range
from onnxq.core.dtypes import Array
from onnxq.core.spec import QParams, QTensor, TensorSpec


def rtn(weight: Array, spec: TensorSpec, smallest_scale: Array | None = None) -> QTensor:
    """Quantize a weight by the extrema of each group that shares a scale.

    A group of zeros, which any scale represents, takes the smallest scale of the others: at ``scale_x · scale_w`` the
    bias of a pruned channel is then as fine as theirs.

    Args:
        weight: float32, any shape.
        spec: the grid.
        smallest_scale: float, shape of the scale; no scale becomes smaller. It keeps an int32 bias at
            ``scale_x · scale_w`` inside its type.

    Returns:
        QTensor; scale has the rank of ``weight``.

    References:
        Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
        arXiv:1712.05877.
    """
    low, high = reduce_range(weight, spec.granularity)
    params = params_from_range(low, high, spec)
    scale, empty = params.scale, (low == 0) & (high == 0)
    del low, high  # of small blocks, a tenth of the weight
    if empty.any() and not empty.all():
        scale = np.where(empty, scale[~empty].min(), scale)
    if smallest_scale is not None:
        scale = np.maximum(scale, smallest_scale.astype(np.float32).reshape(scale.shape))
    params = QParams(spec, scale, params.zero_point)
    return QTensor(quantize(weight, params), params)
