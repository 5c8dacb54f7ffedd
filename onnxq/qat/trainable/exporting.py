"""A PyTorch module as an ONNX model, and how the arguments of one become the inputs of the other."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from onnxq.core.dtypes import Array
from onnxq.errors import CalibrationError, MissingExtraError, ModelError
from onnxq.graph.views.exported_module import ExportedGraph, mark_of, read_export
from onnxq.qat.torch_ops.call import Tensor

_DROPOUTS = {"aten.dropout.default": False, "aten.feature_dropout.default": True}
"""Operators that drop, and whether they drop whole channels."""


@dataclass(frozen=True)
class Arguments:
    """How a module is called.

    Attributes:
        module: its class, for messages.
        signature: of its ``forward``.
        spec: how the arguments of the example nest.
        leaves: what they hold: None for a tensor, else a value that is fixed in the graph.
        inputs: names of the graph's inputs, in the order of the tensors.
        outputs: names of its outputs, in the order of the result's tensors.
        result: how the result nests.
        batch: samples that a call must have, where the graph fixes them; None where any number will do.
    """

    module: str
    signature: inspect.Signature
    spec: Any
    leaves: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    result: Any
    batch: int | None

    def feed(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """Tensors by the names of the graph's inputs.

        Raises:
            TypeError: the arguments do not nest as those of the example, or one that is no tensor is another one.
        """
        bound = self.signature.bind(*args, **kwargs)
        leaves, spec = pytree.tree_flatten((bound.args, bound.kwargs))
        if spec != self.spec:
            raise TypeError(
                f"{self.module}: called with {spec}, but prepared for {self.spec}; call it as example_inputs say"
            )
        found: list[Tensor] = []
        for leaf, known in zip(leaves, self.leaves, strict=True):
            if isinstance(leaf, torch.Tensor) and known is None:
                found.append(leaf)
            elif isinstance(leaf, torch.Tensor) or leaf != known:
                raise TypeError(
                    f"{self.module}: prepared for the argument {known!r}, got {leaf!r}; prepare it with that"
                )
        if self.batch is not None and found and found[0].ndim and found[0].shape[0] != self.batch:
            raise TypeError(
                f"{self.module}: exported for batches of {self.batch}, got {found[0].shape[0]}; pass dynamic_shapes"
            )
        return dict(zip(self.inputs, found, strict=True))

    def __deepcopy__(self, memo: dict[int, Any]) -> Arguments:
        """Itself: nothing in it changes."""
        return self

    def wrap(self, outputs: dict[str, Tensor]) -> Any:
        """The graph's outputs as the module returns them."""
        return pytree.tree_unflatten([outputs[name] for name in self.outputs], self.result)


@dataclass(frozen=True)
class Example:
    """Arguments of one call.

    Attributes:
        args: by position.
        kwargs: by name.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, given: Any) -> Example:
        """A tensor, a tuple of arguments by position, or a dict of them by name."""
        if isinstance(given, dict):
            return cls((), dict(given))
        return cls(tuple(given) if isinstance(given, tuple | list) else (given,), {})


@dataclass(frozen=True)
class Exported:
    """A module's graph.

    Attributes:
        graph: the float model.
        arguments: how it is called.
        feed: the example by names of inputs.
        notes: what the user should know.
    """

    graph: ExportedGraph
    arguments: Arguments
    feed: dict[str, Array]
    notes: tuple[str, ...] = ()


def export_module(
    module: nn.Module, given: Any, dynamic_shapes: Any = None, names: tuple[Sequence[str], Sequence[str]] = ((), ())
) -> Exported:
    """Export a module in evaluation mode; its mode is as before afterwards.

    Args:
        module: any that torch.export takes.
        given: as of `Example.of`.
        dynamic_shapes: as of ``torch.export.export``; None lets the first axis of every tensor vary where it can.
        names: of the model's inputs and outputs; empty ones take PyTorch's.

    Raises:
        CalibrationError: the module does not run on the example.
        ModelError: it cannot be exported, or not all that it takes and gives are tensors.
        MissingExtraError: there is no onnxscript, which exports.
    """
    kind = type(module).__name__
    if not isinstance(module, nn.Module):
        raise ModelError(f"prepare: a {kind} is no torch.nn.Module; pass the module itself")
    wide = [name for name, p in module.named_parameters() if p.is_floating_point() and p.dtype != torch.float32]
    if wide:
        raise ModelError(f"prepare: parameter {wide[0]!r} of {kind} is no float32; call .float() on the module first")
    modes = [(each, each.training) for each in module.modules()]
    module.eval()
    try:
        example = _doubled(module, _checked(module, Example.of(given)))
        return _exported(module, example, dynamic_shapes, names)
    finally:
        for each, training in modes:
            each.training = training


def _checked(module: nn.Module, example: Example) -> Example:
    try:
        inspect.signature(module.forward).bind(*example.args, **example.kwargs)
        with torch.no_grad():
            module(*example.args, **example.kwargs)
    except Exception as error:  # whatever the user's code raises
        raise CalibrationError(
            f"prepare: {type(module).__name__} does not run on example_inputs: {_first_line(error)}; pass a tensor, a "
            "tuple of arguments or a dict of them by name, on the module's device"
        ) from error
    return example


def _doubled(module: nn.Module, example: Example) -> Example:
    """An example of two samples where it has one: an axis of length 1 is fixed by torch.export."""
    leaves, spec = pytree.tree_flatten((example.args, example.kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if not tensors or any(not t.ndim or t.shape[0] != 1 for t in tensors):
        return example
    twice = [torch.cat([leaf, leaf]) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    args, kwargs = pytree.tree_unflatten(twice, spec)
    try:
        with torch.no_grad():
            module(*args, **kwargs)
    except Exception:  # it takes one sample at a time
        return example
    return Example(args, kwargs)


def _exported(
    module: nn.Module, example: Example, dynamic: Any, names: tuple[Sequence[str], Sequence[str]]
) -> Exported:
    kind, signature = type(module).__name__, inspect.signature(module.forward)
    bound = signature.bind(*example.args, **example.kwargs)
    example = Example(bound.args, bound.kwargs)
    leaves, spec = pytree.tree_flatten((example.args, example.kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    batch = tensors[0].shape[0] if tensors and tensors[0].ndim else None
    free = dynamic
    if dynamic is None and tensors and all(t.ndim and t.shape[0] == batch for t in tensors):
        free = pytree.tree_map(
            lambda leaf: {0: torch.export.Dim.AUTO} if isinstance(leaf, torch.Tensor) else None, dict(bound.arguments)
        )
    with _silent():
        try:
            program, whole = _program(module, example, free), free is not None
        except Exception as error:  # torch.export raises whatever tracing came upon
            if dynamic is not None or free is None:
                raise ModelError(f"prepare: torch.export cannot export {kind}: {_first_line(error)}") from error
            try:
                program, whole = _program(module, example, None), False
            except Exception as again:
                raise ModelError(f"prepare: torch.export cannot export {kind}: {_first_line(again)}") from again
        found = _to_onnx(program, kind, names)
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    graph = read_export(found.model, set(state))
    result = program.call_spec.out_spec
    if len(graph.inputs) != len(tensors) or len(graph.outputs) != result.num_leaves:
        raise ModelError(
            f"prepare: {kind} takes {len(tensors)} tensors and gives {result.num_leaves} values, but its graph has "
            f"{len(graph.inputs)} inputs and {len(graph.outputs)} outputs; return tensors alone"
        )
    fixed = None if whole and _varies(found.model) else batch
    notes = () if fixed is None else (f"the graph of {kind} is for batches of {fixed}; pass dynamic_shapes for others",)
    known = tuple(None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves)
    arguments = Arguments(kind, signature, spec, known, graph.inputs, graph.outputs, result, fixed)
    feed = {name: t.detach().cpu().numpy() for name, t in zip(graph.inputs, tensors, strict=True)}
    return Exported(graph, arguments, feed, notes)


def _varies(model: Any) -> bool:
    """Whether the first axis of the first input has a name rather than a length."""
    shape = model.graph.inputs[0].shape if model.graph.inputs else None
    return shape is None or not len(shape) or not isinstance(shape[0], int)


def _program(module: nn.Module, example: Example, dynamic: Any) -> Any:
    """The exported program, with a mark at each dropout."""
    _register()
    program = torch.export.export(module, example.args, example.kwargs, dynamic_shapes=dynamic)
    for node in program.graph.nodes:
        channels = _DROPOUTS.get(str(node.target))
        if node.op == "call_function" and channels is not None and node.args[1] > 0:
            node.target = torch.ops.onnxq.dropout_here.default
            node.args = (node.args[0], float(node.args[1]), channels)
    program.graph_module.recompile()
    return program


def _register() -> None:
    """The operator that marks a dropout; it gives a copy of what it is given."""
    if hasattr(torch.ops.onnxq, "dropout_here"):
        return

    def mark(x: torch.Tensor, rate: float, channels: bool) -> torch.Tensor:
        return x.clone()

    mark.__annotations__ = {"x": torch.Tensor, "rate": float, "channels": bool, "return": torch.Tensor}
    operator = torch.library.custom_op("onnxq::dropout_here", mark, mutates_args=())
    operator.register_fake(lambda x, rate, channels: torch.empty_like(x))


def _to_onnx(program: Any, kind: str, names: tuple[Sequence[str], Sequence[str]]) -> Any:
    try:
        from onnxscript import opset18
    except ImportError:
        raise MissingExtraError(
            "onnxq.qat.prepare: needs onnxscript, which exports modules; pip install 'onnxq[torch]'"
        ) from None

    def mark(x: Any, rate: float, channels: bool) -> Any:
        return opset18.Bernoulli(x, seed=mark_of(rate, channels))

    try:
        return torch.onnx.export(
            program, (), dynamo=True, optimize=False, verbose=False,
            input_names=list(names[0]) or None, output_names=list(names[1]) or None,
            custom_translation_table={torch.ops.onnxq.dropout_here.default: mark},
        )  # fmt: skip
    except Exception as error:
        raise ModelError(f"prepare: torch.onnx cannot export {kind}: {_first_line(error)}") from error


@contextmanager
def _silent() -> Iterator[None]:
    """What PyTorch warns of while it exports is about its own parts."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    """The cause of an error in one line: exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
