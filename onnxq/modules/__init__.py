"""PyTorch modules that are trained as they will be quantized; the functions that `onnxq.qat` has for its users.

Comes in: a module and a call of it. Goes out: a module that trains, and a verified model. May import what
`onnxq.folders` may; torch stays in `onnxq.qat`.
"""
