"""Learning on a finished quantized model.

Comes in: a quantized model, the float model and samples. Goes out: the quantized model with learned numbers, or the
reason why it stays as it was. Imports qat, and the rest of pipeline up to the gate.
"""
