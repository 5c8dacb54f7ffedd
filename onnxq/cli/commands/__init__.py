"""One file a command: options to arguments, a result to text or JSON.

Comes in: the command line. Goes out: calls of `onnxq.api`.
Imports `api` inside functions, click and rich.
"""
