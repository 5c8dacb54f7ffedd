"""What in a module that learns is what in a rewrite: numbers go in before blocks learn, and come back afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.core.spec import PerBlock, QParams, QTensor
from onnxq.graph import edit, walk
from onnxq.graph.emit.rewrite import DynamicRewrite, NodeRewrite, Rewrite
from onnxq.graph.reading.ops import clamp_bounds
from onnxq.graph.types import Model, Node
from onnxq.graph.views.plain_graph import PlainNode
from onnxq.plan.decisions import Fixed, Plan
from onnxq.plan.weights.constants import quantize_bias

if TYPE_CHECKING:
    from onnxq.qat.graph_module import GraphModule, Grid
    from onnxq.qat.parameters import Integers

_NEARER = 0.45
"""Steps from an integer within which a weight is taken to lie that was rounded to it."""


def weight_steps(model: Model, rewrite: Rewrite) -> dict[str, Array]:
    """By node, its weight in steps of its grid before rounding, zero point added.

    Args:
        model: the prepared model.
        rewrite: with each weight's own scales, not yet those of spread channels.
    """
    found = {}
    weights = _weights(rewrite)
    for node in walk.all_nodes(model.graph):
        tensor = weights.get(node.name or "")
        weight = walk.const_array(walk.input_at(node, 1))
        if tensor is None or weight is None or isinstance(tensor.params.spec.granularity, PerBlock):
            continue
        zero = tensor.params.zero_point.astype(np.float32)
        found[node.name or ""] = np.asarray(weight.astype(np.float32) / tensor.params.scale + zero)
    return found


def _weights(rewrite: Rewrite) -> dict[str, QTensor]:
    """The weight of each node that has an integer one."""
    found = {name: stored[1] for name, stored in rewrite.storage.items() if 1 in stored}
    changes: dict[str, NodeRewrite | DynamicRewrite] = {**rewrite.nodes, **rewrite.dynamic}
    return found | {name: change.constants[1] for name, change in changes.items() if 1 in change.constants}


class ModuleLink:
    """What in a module is what in a rewrite: the emitter writes each distinct constant once, so by contents."""

    def __init__(self, module: GraphModule, rewrite: Rewrite) -> None:
        """Find each of them.

        Args:
            module: of the model that the rewrite made.
            rewrite: the plan's numbers.
        """
        self.module, self._rewrite = module, rewrite
        self._grids: dict[tuple[bytes, bytes, str], Grid] = {
            _key(grid.scale.original, grid.zero.original if grid.zero is not None else None): grid
            for grid in module.grids.values()
        }
        self._integers = {
            (weight.integers.original.dtype.name, weight.integers.original.tobytes()): weight.integers
            for weight in module.weights.values()
        }
        self._scales = {id(w.integers): w.scale for w in module.weights.values() if w.scale is not None}
        self._nodes: dict[str, PlainNode] = {node.name: node for node in module.graph.nodes}

    def restrict(self, model: Model, plan: Plan, steps: Mapping[str, Array]) -> None:
        """Tell the module what must not change, and where the weights lay before they were rounded."""
        for name, decision in plan.values.items():
            grid = self._grid(name)
            if grid is None:
                continue
            if isinstance(decision, Fixed):
                grid.learns = grid.moves = False
            if self._rewrite.values[name].spec.symmetric:
                grid.moves = False
        nodes = {node.name or "": node for node in walk.all_nodes(model.graph)}
        for node_plan in plan.nodes.values():
            clamp = nodes.get(node_plan.folds or "")
            grid = self._grid(clamp.outputs[0].name or "") if clamp is not None else None
            if clamp is not None and grid is not None:
                grid.moves = False
                if any(np.isfinite(bound) and bound != 0.0 for bound in clamp_bounds(clamp)):
                    bound = float(grid.scale.original.reshape(()))
                    grid.scale.bound = bound if grid.scale.bound is None else min(bound, grid.scale.bound)
        for name, tensor in _weights(self._rewrite).items():
            self._start(tensor, steps.get(name))

    def _start(self, tensor: QTensor, steps: Array | None) -> None:
        values, part = tensor.values, self._part(tensor)
        if part is None:
            return
        spec = tensor.params.spec
        part.low, part.high = spec.qmin, spec.qmax
        if steps is None or steps.shape != values.shape:
            return
        whole = values.astype(np.float32)  # where it was learned already, it stays the nearer integer
        start = whole + np.clip(np.clip(steps, spec.qmin, spec.qmax) - whole, -_NEARER, _NEARER)
        turned = part.original.tobytes() != values.tobytes()
        part.start_from((start.T if turned else start).reshape(part.original.shape))

    def _part(self, tensor: QTensor) -> Integers | None:
        # a Gemm's may have been turned, and a Conv's over single positions is a matrix
        for values in (tensor.values, np.ascontiguousarray(tensor.values.T)):
            found = self._integers.get((values.dtype.name, values.tobytes()))
            if found is not None:
                return found
        return None

    def _grid(self, name: str) -> Grid | None:
        params = self._rewrite.values.get(name)
        return None if params is None else self._grids.get(_key(params.scale, params.zero_point))

    def rewrite_of(self, model: Model) -> Rewrite:
        """The rewrite with the module's numbers.

        Args:
            model: the prepared model; float biases of products that were learned are set in it.
        """
        old = self._rewrite
        nodes = {node.name or "": node for node in walk.all_nodes(model.graph)}
        values = {name: self._params(name, params) for name, params in old.values.items()}
        dynamic = {
            name: replace(change, constants=self._constants(change.constants)) for name, change in old.dynamic.items()
        }
        storage = {name: self._constants(stored) for name, stored in old.storage.items()}
        static = {}
        for name, change in old.nodes.items():
            source = nodes[name].inputs[0] if nodes[name].inputs else None
            static[name] = self._node(name, change, values.get((source.name if source is not None else None) or ""))
            if change.adds is not None:
                self._set_bias(nodes[change.adds])
        return replace(old, values=values, nodes=static, dynamic=dynamic, storage=storage)

    def _params(self, name: str, params: QParams) -> QParams:
        grid = self._grid(name)
        if grid is None:
            return params
        zero = params.zero_point if grid.zero is None else grid.zero.array().reshape(params.zero_point.shape)
        return replace(params, scale=grid.scale.array().reshape(params.scale.shape), zero_point=zero)

    def _constants(self, constants: Mapping[int, QTensor]) -> dict[int, QTensor]:
        found = dict(constants)
        for position, tensor in constants.items():
            part = self._part(tensor)
            if part is not None:
                same = part.original.tobytes() == tensor.values.tobytes()
                array = np.ascontiguousarray(part.array() if same else part.array().T)
                found[position] = QTensor(array.reshape(tensor.values.shape), self._own_scale(part, tensor.params))
        return found

    def _own_scale(self, part: Integers, params: QParams) -> QParams:
        """The parameters of a weight with the scales that it has learned."""
        scale = self._scales.get(id(part))
        if scale is None or not bool(scale.shift.any()):
            return params
        return replace(params, scale=scale.array().reshape(params.scale.shape))

    def _node(self, name: str, change: NodeRewrite, source: QParams | None) -> NodeRewrite:
        constants = self._constants(change.constants)
        if change.bias is None or source is None:
            return replace(change, constants=constants)
        scale = change.bias.params.scale.astype(np.float64)
        learned = self._bias(name)
        real = change.bias.values * scale if learned is None else learned
        scale_x = float(source.scale.reshape(()))
        return replace(change, constants=constants, bias=quantize_bias(real, scale_x, constants[1].params.scale))

    def _bias(self, name: str) -> Array | None:
        """The bias that a layer has learned, float64; a product adds it as a float."""
        node = self._nodes.get(name)
        if node is None or len(node.inputs) < 3:
            return None
        if node.op_type == "MatMulIntegerToFloat":
            found = self.module.floats.get(node.inputs[6]) if len(node.inputs) > 6 else None
        else:
            bias = self.module.biases.get(node.inputs[2])
            found = None if bias is None else bias.real
        return None if found is None else found.detach().cpu().numpy().astype(np.float64)

    def _set_bias(self, node: Node) -> None:
        """A bias that the kernel adds as a float stands in the model itself."""
        for value in node.inputs:
            learned = self.module.floats.get(value.name or "") if value is not None else None
            before = walk.const_array(value)
            if value is not None and learned is not None and before is not None and value.is_initializer():
                array = learned.detach().cpu().numpy().astype(before.dtype)
                if not np.array_equal(array, before):
                    edit.set_contents(value, array)


def _key(scale: Array, zero: Array | None) -> tuple[bytes, bytes, str]:
    """What tells grids apart: the bytes of scale and zero point, and their type."""
    if zero is None:
        return scale.tobytes(), b"", ""
    return scale.tobytes(), zero.tobytes(), zero.dtype.name
