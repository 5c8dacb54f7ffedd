"""Language networks to ONNX by torch's exporters, with readable names and nothing of the machine in the file."""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from pathlib import Path

import onnx
import torch
from torch import nn

OPSET = 18
IR_VERSION = 10
# The exporter fixes a dimension that is 1 in the example.
EXAMPLE = (2, 24)
SCOPES = "pkg.torch.onnx.name_scopes"


def export(network: nn.Module, inputs: list[str], path: Path) -> None:
    """Write a network of int64 inputs (batch, length), both dynamic, and the output ``logits``.

    Args:
        network: in evaluation mode; takes the inputs in order.
        inputs: their names.
        path: the ONNX file.
    """
    recurrent = any(isinstance(module, nn.RNNBase) for module in network.modules())
    example = tuple(torch.ones(EXAMPLE, dtype=torch.int64) for _ in inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if recurrent:
            _by_torchscript(network, example, inputs, path)
        else:
            _by_dynamo(network, example, inputs, path)
    model = onnx.load(path)
    name_by_module(model.graph)
    clean(model)
    model.graph.name = path.stem
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _by_dynamo(network: nn.Module, example: tuple[torch.Tensor, ...], inputs: list[str], path: Path) -> None:
    program = torch.onnx.export(
        network,
        example,
        dynamo=True,
        opset_version=OPSET,
        input_names=inputs,
        output_names=["logits"],
        dynamic_shapes=tuple({0: "batch", 1: "length"} for _ in inputs),
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=False)


def _by_torchscript(network: nn.Module, example: tuple[torch.Tensor, ...], inputs: list[str], path: Path) -> None:
    """The way of before: the other one declares the example's length as the output's and cuts an LSTM's weights up."""
    torch.onnx.export(
        network,
        example,
        str(path),
        dynamo=False,
        opset_version=OPSET,
        input_names=inputs,
        output_names=["logits"],
        dynamic_axes={name: {0: "batch", 1: "length"} for name in [*inputs, "logits"]},
    )


def name_by_module(graph: onnx.GraphProto) -> None:
    """Name nodes ``/<module>/<operator>`` and weights ``<module>.weight``, so that rules can name layers.

    The old exporter names nodes so already; the new one leaves the module in the metadata.
    """
    seen: Counter[str] = Counter()
    matrices = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    for node in graph.node:
        for entry in node.metadata_props:
            if entry.key == SCOPES:
                # Each module, the outermost first, then the operation; a module's scope begins with that of its parent.
                modules = [scope for scope in ast.literal_eval(entry.value)[:-1] if not scope.startswith("_")]
                parts = [scope[len(outer) :].lstrip(".") for outer, scope in zip(["", *modules], modules, strict=False)]
                name = "/".join(["", *filter(None, parts), node.op_type])
                seen[name] += 1
                node.name = name if seen[name] == 1 else f"{name}_{seen[name] - 1}"
        weight = matrices.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is not None:
            weight.name = f"{node.name.strip('/').removesuffix('/MatMul').replace('/', '.')}.weight"
            node.input[1] = weight.name


def clean(model: onnx.ModelProto) -> None:
    """Take out what the exporter notes of the source: traces, documentation, its own version."""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "onnxq-models", ""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
