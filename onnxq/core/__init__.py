"""Numbers: element types, specifications, affine quantization, packing, error measures.

Comes in: arrays. Goes out: integers with their scales, and figures.
Imports `errors`, numpy and ml_dtypes.
"""
