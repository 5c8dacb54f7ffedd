"""Numbers: element types, specifications, affine quantization, error measures."""
