"""The module that `onnxq.qat.prepare` returns: the user's, as it will be quantized."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.errors import RecipeError
from onnxq.graph.files import io
from onnxq.graph.views.exported_module import ExportedGraph
from onnxq.graph.views.plain_graph import plain_graph
from onnxq.qat.parameters import as_tensor
from onnxq.qat.trainable.exporting import Arguments
from onnxq.qat.trainable.threading import Ranges, Threader, unused
from onnxq.qat.trainable.tied_graph import TiedGraph, TrainedWeight
from onnxq.qat.trainable.ties import Place, Tie

_NARROW = (torch.int8, torch.uint8, torch.int16, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Knitting:
    """What a `QuantizedModule` is made of.

    Attributes:
        exported: the float model.
        arguments: how the module is called.
        quantized: the quantized model's bytes.
        ties: where the prepared model's constants come from.
        ranges: as of `Threader`.
        standing: as of `Threader.find`.
    """

    exported: ExportedGraph
    arguments: Arguments
    quantized: bytes
    ties: dict[Place, Tie]
    ranges: Ranges
    standing: dict[str, tuple[str, ...]]


class QuantizedModule(nn.Module):
    """Computes what the quantized model will compute, with the parameters of the user's module.

    Attributes:
        module: the user's; its parameters are trained, its modes count.
        activations: scales of activations, which learn.
        weights: scales of weights, which learn.
        notes: what does not learn, a line each.
        origin: what `onnxq.qat.export` needs, set by whoever makes the module.
    """

    def __init__(self, module: nn.Module, parts: Knitting) -> None:
        super().__init__()
        self.module = module
        self.origin: Any = None
        self._arguments, self._quantized = parts.arguments, parts.quantized
        graph = plain_graph(io.load(parts.quantized))
        threader = Threader(graph, parts.ties, parts.ranges)
        threads = threader.find(parts.exported, parts.standing)
        if not threads.layers:
            raise RecipeError(
                "prepare: no weight on integers is one of the module's parameters, so there is nothing to train; use "
                "a preset such as w8a8 or w4, and --format qdq"
            )
        tied = TiedGraph(graph, threads)
        object.__setattr__(self, "graph", tied)  # no submodule: its copies of the weights are not the module's state
        lacking = list(dict.fromkeys(node.op_type for node in tied.unsupported))
        if lacking:
            raise RecipeError(
                f"prepare: gradients cannot pass {', '.join(lacking)}, for which there is no torch function"
            )
        self.activations, self.weights, self.zeros = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self._register(threads.layers)
        names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        self.notes = _notes(unused(threads, names, parts.exported.constants), threader.not_dropped)
        self.train(module.training)
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        self.to(device)

    def _register(self, layers: Iterable[TrainedWeight]) -> None:
        """Make scales and zero points part of the state; only scales learn."""
        seen: set[int] = set()
        for grid in self.graph.grids.values():
            if grid.zero is not None and id(grid.zero) not in seen:
                self.zeros[_free(grid.values[0], self.zeros)] = grid.zero
                seen.add(id(grid.zero))
            if id(grid.scale) in seen:
                continue
            seen.add(id(grid.scale))
            grid.scale.shift.requires_grad_(True)
            self.activations[_free(grid.values[0], self.activations)] = grid.scale
        for layer in layers:
            self.weights[_free(layer.tie.name, self.weights)] = layer.grid

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the user's module returns, computed with fake quantization; in float32 whatever autocast says."""
        feed = self._arguments.feed(args, kwargs)
        feed = {name: value.float() if value.dtype in _NARROW else value for name, value in feed.items()}
        kind = next((value.device.type for value in feed.values()), "cpu")
        with torch.autocast(device_type=kind, enabled=False):
            self.graph.bind(self.module)
            try:
                outputs = self.graph(feed)
            finally:
                self.graph.release()
        return self._arguments.wrap(outputs)

    def _apply(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.graph._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)

    def run(self, feed: Feed) -> dict[str, Array]:
        """Outputs by name for arrays by name, in evaluation mode."""
        device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        modes = [(each, each.training) for each in self.modules()]
        self.eval()
        try:
            with torch.no_grad():
                self.graph.bind(self.module)
                found = self.graph({name: as_tensor(array).to(device) for name, array in feed.items()})
        finally:
            self.graph.release()
            for each, mode in modes:
                each.training = mode
        return {name: value.cpu().numpy() for name, value in found.items()}

    def learned(self) -> tuple[bytes, dict[tuple[int, int], tuple[str, Array]]]:
        """The quantized model as it was made, and the constants that it has now instead, by where they are read."""
        graph = self.graph
        with torch.no_grad():
            graph.bind(self.module)
            found = dict(graph.changed())
            for layer in graph.threads.layers:
                part = graph.weights[layer.name].integers
                before = part.latent.data
                part.latent.data = graph.given_at(layer.integers)
                integers = part.array()
                part.latent.data = before
                held = graph.weights[layer.name].scale
                assert held is not None
                scale = graph.given_at(layer.scale).cpu().numpy().astype(held.original.dtype)
                _put(found, layer.integers, layer.name, integers)
                _put(found, layer.scale, f"{layer.name}_scale", scale.reshape(held.original.shape))
            nodes = {node.index: node for node in graph.graph.nodes}
            for index in graph.threads.biases:
                node = nodes[index]
                bias = graph.biases[node.outputs[0]]
                bias.real.data = graph.real_bias(index)
                whole, scale = bias.arrays(graph.step_of(node))
                _put(found, (index, 0), node.inputs[0], whole)
                _put(found, (index, 1), f"{node.inputs[0]}_scale", scale)
            for spot in graph.threads.floats:
                node = nodes[spot[0]]
                old = graph.graph.constants[node.inputs[spot[1]]]
                array = graph.given_at(spot).cpu().numpy().astype(old.dtype).reshape(old.shape)
                if not np.array_equal(array, old):
                    _put(found, spot, node.inputs[spot[1]], array)
            graph.release()
        return self._quantized, found

    def constants(self) -> dict[str, Array]:
        """Parameters and buffers of the user's module as they are now."""
        state = {**dict(self.module.named_parameters(remove_duplicate=False)), **dict(self.module.named_buffers())}
        return {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}


def _put(found: dict[tuple[int, int], tuple[str, Array]], spot: tuple[int, int], name: str, array: Array) -> None:
    """Inputs of one name and equal contents share a constant."""
    for key, known in found.values():
        if key.startswith(f"{name}@") and known.dtype == array.dtype and np.array_equal(known, array):
            found[spot] = key, known
            return
    found[spot] = f"{name}@{spot[0]}.{spot[1]}", array


def _free(name: str, taken: nn.ModuleDict) -> str:
    """A name that a submodule may have."""
    plain = re.sub(r"\W", "_", name) or "value"
    plain = f"{plain}_" if hasattr(nn.ModuleDict, plain) else plain
    found, number = plain, 1
    while found in taken:
        number += 1
        found = f"{plain}_{number}"
    return found


def _notes(still: list[str], not_dropped: list[str]) -> list[str]:
    notes = []
    if still:
        more = f" and {len(still) - 3} more" if len(still) > 3 else ""
        notes.append(
            f"{len(still)} parameters have no place of their own in the quantized graph and do not learn: "
            f"{', '.join(still[:3])}{more}"
        )
    if not_dropped:
        notes.append(f"dropout of {', '.join(not_dropped[:3])} has no place in the quantized graph; nothing is dropped")
    return notes
