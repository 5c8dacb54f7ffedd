"""Engines that run a model elsewhere than in this process: another provider, another Python, another machine.

Comes in: models and feeds. Goes out: outputs, times, the nodes that an engine does not take and its reasons.
Imports what `runtime` may; `worker` runs alone on the other side, with numpy and onnxruntime.
"""
