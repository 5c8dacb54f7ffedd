"""The user's PyTorch module, trained as it will be quantized.

Comes in: a module, and the graph that `onnxq.pipeline` made of its export. Goes out: a module that computes that graph
with the first one's parameters, and what training has changed. May import what `onnxq.qat` may.
"""
