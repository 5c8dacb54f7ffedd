"""Quantized graphs that learn, in PyTorch (the extra ``torch``): the only package that imports it.

Comes in: a quantized model as `onnxq.graph` hands it out, and samples. Goes out: scales, zero points, integers and
biases. May import everything up to `verify`; whatever imports a module of this package calls `need_torch` before.

How it is used (any QDQ model, ours or another's; If, Loop and Scan have no torch function):

    model = io.load(source)                        # an emitted model: `emit(copy, solution.rewrite, "qdq")`, or a file
    module = GraphModule(plain_graph(model))       # graph_module.py; nothing requires a gradient yet
    module.unsupported                             # nodes without a torch function; `forward` refuses them
    module(feed, outputs=None)                     # tensors by name, of graph outputs or of any other values
    module.run(nodes, values)                      # some of `module.graph.nodes`, on the values that they read
    module.grids[name].scale.shift                 # parameter: log of scale ÷ first scale (LSQ); `.scale.bound`
    module.grids[name].zero.shift                  # parameter: steps (LSQ+); leave it where `any(zero.at_end)`
    module.grids[name].values                      # what QuantizeLinear puts on this grid
    module.weights[name].integers.latent           # parameter: weight ÷ scale + zero point, rounded straight through
    module.weights[name].integers.start_from(...)  # the unrounded steps, where the float weight is known
    module.weights[name].integers.learn_rounding() # AdaRound: gives the logits; `settle()` ends it
    module.weights[name].scale.shift               # parameter: one entry a scale of the weight
    module.biases[name].real                       # parameter: int32 biases, which follow scale of x · scale of w
    module.floats[name]                            # every other float constant (norms, biases of products)
    module.drop = 0.5; module.train()              # QDrop: so many elements are not rounded by activations' grids
    replace_constants(model, module.changed())     # plain_graph.py: writes what has changed into the model

Feed tensors come from `parameters.as_tensor` (integers of 8 bits or fewer are whole numbers in float32). The module
computes what ONNX Runtime does without optimizations, to the last bit but for the order of sums. Constants that several
grids share by contents are one scale (tied on purpose: MaxPool and Concat need equal ones) and a zero point a grid.
onnx2torch does not do this: it needs torchvision, stops at operator set 17 and knows no integer operators.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

from onnxq.errors import MissingExtraError

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
"""Threads that wait for each other sleep, as in our sessions of ONNX Runtime: on a machine that does other things too,
torch is ten times slower where they spin. It is read when torch is loaded."""


def need_torch(what: str) -> None:
    """Check that PyTorch is there.

    Args:
        what: the option that needs it, for the message.

    Raises:
        MissingExtraError: it is not installed.
    """
    if not has_torch():
        raise MissingExtraError(f"{what}: needs PyTorch, which is not installed; pip install 'onnxq[torch]'")


def has_torch() -> bool:
    """Whether PyTorch is installed; it is not imported."""
    return importlib.util.find_spec("torch") is not None


_PUBLIC = {"prepare": "onnxq.modules.preparing", "export": "onnxq.modules.writing"}
"""What this package has for users; it stands above the pipeline and is imported on first use, as `onnxq` does."""


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
