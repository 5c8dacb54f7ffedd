"""Numbers of a solution that learn: the rounding of single layers, and whole blocks of the network.

Comes in: a job, a plan and its solution. Goes out: a solution with other integers, grids and biases. May import what
`pipeline` may; PyTorch only by way of `onnxq.qat`, on use.
"""
