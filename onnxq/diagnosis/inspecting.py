"""Looking into models: what one holds, and what is quantized differently between two."""

from __future__ import annotations

from onnxq.graph.differences import differences
from onnxq.graph.files import io
from onnxq.graph.reading.inspection import inspect_model
from onnxq.pipeline.float_model import Source, is_path
from onnxq.plan.weights.scheme_tables import scheme_tables
from onnxq.recipe.arguments import checked
from onnxq.report.results import Difference, Inspection


@checked
def inspect(model: Source, *, schemes: bool = False) -> Inspection:
    """Say what of a model is quantized, how, and what its weights look like.

    Args:
        model: path or ``onnx.ModelProto``, float or quantized, by whatever tool.
        schemes: also round every float weight by every usual scheme, and give the errors.

    Raises:
        ModelError: the model cannot be used.
    """
    loaded = io.load(model)
    size = io.size_bytes(model) if is_path(model) else len(io.to_bytes(loaded))
    found = inspect_model(loaded, size)
    tables = scheme_tables(model) if schemes else None
    return Inspection(found.facts, found.nodes, found.weights, found.coverage, tables)


@checked
def diff(first: Source, second: Source) -> Difference:
    """Say what is quantized differently between two models, node by node.

    Args:
        first: path or ``onnx.ModelProto``, float or quantized, by whatever tool.
        second: the same network in another form.

    Raises:
        ModelError: a model cannot be used.
    """
    return Difference(**differences(io.load(first), io.load(second)))
