"""Types and shapes of values, as far as onnx can infer them; what fails is a note, never an error."""

from __future__ import annotations

import re

import onnx
import onnx_ir as ir

from onnxq.graph import walk
from onnxq.graph.files import io
from onnxq.graph.prepare.folding import evaluate, fold_constants
from onnxq.graph.prepare.whole import inferring

_LISTED = 4096
"""Elements up to which onnx may compute the contents of a value; it takes some 100 bytes for each."""

_MADE_UP = re.compile(r"unk__\d+")
"""What onnx calls a dimension that it does not know."""


def forget(model: ir.Model) -> dict[str, int]:
    """Forget the declared shapes of all values but the inputs and outputs of the main graph.

    Exporters write there what they saw in one run, or -1, or the sizes before some rewriting; runtimes hardly look.
    What a body takes keeps its rank, since onnx infers nothing for it, but no size: a Loop may change it.

    Args:
        model: changed in place; value names must be unique in the whole model.

    Returns:
        The ranks that were declared, by name; for `recall`.
    """
    ranks: dict[str, int] = {}
    for value in walk.all_values(model.graph):
        if value.shape is None or _is_signature(value, model.graph) or value.is_initializer():
            continue
        if value.producer() is None:
            value.shape = ir.Shape([None] * value.shape.rank())
        else:
            if value.name:
                ranks[value.name] = value.shape.rank()
            value.shape = None
    return ranks


_DECLARED = "onnxq.declared"
"""Key of a model's metadata for the names of the inner values whose types the source declares."""


def remember_declared(model: ir.Model) -> None:
    """Note which inner values the source declares, once for a model; for `drop_inferred`."""
    known = (v for v in walk.all_values(model.graph) if v.producer() is not None and v.type is not None and v.name)
    model.meta.setdefault(_DECLARED, frozenset(value.name for value in known))


def drop_inferred(model: ir.Model) -> None:
    """Forget what was inferred of inner values that the source declares nothing of.

    A file without these is smaller, up to a quarter where names are long and weights few, and runtimes infer them anew.
    """
    declared = model.meta.get(_DECLARED)
    if declared is None:
        return
    for value in walk.all_values(model.graph):
        if value.producer() is not None and not value.is_graph_output() and value.name not in declared:
            value.shape, value.type = None, None


def recall(model: ir.Model, ranks: dict[str, int]) -> None:
    """Believe the declared rank, and nothing more, where inference found none (operators that onnx does not know)."""
    for value in walk.all_values(model.graph):
        if value.shape is None and value.name in ranks and value.producer() is not None:
            value.shape = ir.Shape([None] * ranks[value.name])


def infer(model: ir.Model, notes: list[str], *, folded: bool) -> None:
    """Fill in types and shapes.

    Inputs of the main graph have what the model says, and so have its outputs unless that contradicts what they are
    computed from; any other shape is replaced by one that knows more.

    Args:
        model: changed in place; value names must be unique in the whole model.
        notes: gets a sentence where inference fails.
        folded: constants are folded, so that a size that is still not constant is not known to onnx either.
    """
    data_prop = all(_may_list(node, folded) for node in walk.all_nodes(model.graph))
    try:
        with io.detached(model, "weights") as (proto, _):
            made = {name for node in proto.graph.node for name in node.output}
            for output in proto.graph.output:
                if output.name in made and output.type.HasField("tensor_type"):
                    output.type.tensor_type.ClearField("shape")  # it would count as known
            inferred = inferring.infer_shapes(proto, data_prop=data_prop)
    except Exception as error:  # onnx raises whatever an unknown construct leads to
        notes.append(f"shape inference failed, types come from calibration: {' '.join(str(error).split())}")
        return
    known = {info.name: info.type for info in inferring.value_infos(inferred.graph)}
    for value in walk.all_values(model.graph):
        found = known.get(value.name or "")
        if found is not None and found.WhichOneof("value") == "tensor_type":
            _update(value, found, model.graph)


def _may_list(node: ir.Node, folded: bool) -> bool:
    """Whether onnx may compute the elements of what a node gives: not if there are very many."""
    if node.op_type not in ("ConstantOfShape", "Range") or node.domain != "":
        return True
    inputs = fold_constants.constants_of(node)
    if inputs is None:
        return folded
    size = evaluate.result_bytes(node, inputs)
    return size is not None and size <= 8 * _LISTED


def _update(value: ir.Value, found: onnx.TypeProto, main: ir.Graph) -> None:
    if value.is_initializer():
        return
    if value.dtype is None and found.tensor_type.elem_type:
        value.type = ir.TensorType(ir.DataType(found.tensor_type.elem_type))
    if not found.tensor_type.HasField("shape") or value.is_graph_input():
        return
    shape = _shape(found)
    if _is_signature(value, main):
        value.shape = _without_contradictions(value.shape, shape)
    elif value.shape is None or (shape.rank() == value.shape.rank() and _known(shape) > _known(value.shape)):
        value.shape = shape


def _shape(found: onnx.TypeProto) -> ir.Shape:
    """The shape without the names that onnx makes up: they mean another thing in each run, and nothing to the user."""
    dims = found.tensor_type.shape.dim
    sizes = (dim.dim_value if dim.HasField("dim_value") else None for dim in dims)
    names = (None if _MADE_UP.fullmatch(dim.dim_param) else dim.dim_param or None for dim in dims)
    return ir.Shape([name if size is None else size for size, name in zip(sizes, names, strict=True)])


def _is_signature(value: ir.Value, main: ir.Graph) -> bool:
    return (value.is_graph_input() or value.is_graph_output()) and value.graph is main


def _without_contradictions(declared: ir.Shape | None, inferred: ir.Shape) -> ir.Shape:
    """What an output is said to have, except where it cannot."""
    if declared is None or declared.rank() != inferred.rank():
        return inferred
    pairs = list(zip(declared, inferred, strict=True))
    if not any(_contradicts(said, found) for said, found in pairs):
        return declared
    return ir.Shape([found if _contradicts(said, found) else said for said, found in pairs])


def _contradicts(said: int | ir.SymbolicDim, found: int | ir.SymbolicDim) -> bool:
    return isinstance(said, int) and isinstance(found, int) and said != found


def _known(shape: ir.Shape) -> tuple[int, int]:
    """How many sizes are fixed, and how many have a name."""
    names = [dim.value for dim in shape if not isinstance(dim, int)]
    return shape.rank() - len(names), len(names) - names.count(None)
