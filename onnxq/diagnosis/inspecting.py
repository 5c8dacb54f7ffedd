"""Looking into models: what one holds, and what is quantized differently between two."""

from __future__ import annotations

from onnxq.graph.differences import differences
from onnxq.graph.files import io
from onnxq.graph.files.cut_files import refuse_cut
from onnxq.graph.prepare import prepare
from onnxq.graph.reading.inspection import inspect_model
from onnxq.graph.types import Model
from onnxq.graph.views.counterparts import Counterparts
from onnxq.passes.recover import recover, weight_fit
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
    refuse_cut()
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
    found = Difference(**differences(io.load(first), io.load(second)))
    left, right = (io.load(model) for model in (first, second))
    floats = [not inspect_model(model, 0).facts["quantized"] for model in (left, right)]
    if floats[0] != floats[1]:
        ratios = _as_rewritten(*((left, right) if floats[0] else (right, left)))
        for row in found.nodes:
            ratio = row["weight_sqnr_db"]
            if ratio is not None:
                row["weight_sqnr_db"] = max(ratio, ratios.get(row["node"], ratio))
    refuse_cut()
    return found


def _as_rewritten(model: Model, quantized: Model) -> dict[str, float]:
    """How alike weights are once the float model has what was folded into them, and its channels scaled, likewise."""
    pair = Counterparts(quantized)
    prepare(model)
    recover(model, pair)
    return weight_fit(model, pair)
