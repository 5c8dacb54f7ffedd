"""``onnxq lint``: a quantized model against the rules of a target, and its engine's answer where that is here."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from onnxq.errors import EngineError
from onnxq.graph.files import io, saving
from onnxq.graph.files.io import Source
from onnxq.graph.names import make_unique
from onnxq.graph.prepare.whole import shapes
from onnxq.graph.types import Model
from onnxq.pipeline.deliver.on_engine import check_python, engine_of
from onnxq.pipeline.float_model import is_path
from onnxq.pipeline.job import contents
from onnxq.recipe.arguments import checked
from onnxq.recipe.values import sizes
from onnxq.targets import WHOLE, Target, target_named
from onnxq.verify.lint.findings import LintFinding, LintResult
from onnxq.verify.lint.fixes import Fixer
from onnxq.verify.lint.rules import check

_ROUNDS = 6
"""What one fix makes possible another can do: a bias at a scale after the weight has it."""


@checked
def lint(
    model: Source,
    *,
    target: str,
    output: str | os.PathLike[str] | None = None,
    fix_dims: Sequence[str] = (),
    engine_python: str | os.PathLike[str] | None = None,
) -> LintResult:
    """Check a quantized model, whoever made it, against the rules of a target, and ask the target's engine.

    Args:
        model: path or ``onnx.ModelProto``; never changed.
        target: a name that `targets` lists.
        output: file to write, in which everything is right that can be made so without data.
        fix_dims: ``"name=number"`` for symbolic dimensions, in that file.
        engine_python: the Python that has the engine of the target; None looks in this one.

    Raises:
        ModelError: the model cannot be used.
        TargetError: there is no such target.
        RecipeError: there is no such dimension, or no engine to ask in that Python.
    """
    place = None if output is None else Path(output)
    if place is not None:
        saving.check_destination(place, (model,))
    python = None if engine_python is None else os.fspath(engine_python)
    asked = target_named(target)
    check_python(asked, python)
    return _lint(model, asked, place, sizes("--fix-dim", fix_dims), python)


def _lint(
    source: Source, target: Target, output: Path | None, sizes: Mapping[str, int], python: str | None
) -> LintResult:
    model = io.load(source)
    make_unique(model)
    notes: list[str] = []
    result = LintResult(target.name, _checked(model, target, notes), warnings=notes)
    if output is not None:
        fixed = _fix(model, target, sizes, result)
        result.fixed = dict(fixed)
        shapes.drop_inferred(model)
        saving.save(model, output, source=source if is_path(source) else None)
        result.output = os.fspath(output)
        result.findings = _checked(io.load(output), target, [])
    _ask(result, target, output if output is not None else source, python)
    return result


def _checked(model: Model, target: Target, notes: list[str]) -> list[LintFinding]:
    shapes.remember_declared(model)
    shapes.infer(model, notes, folded=False)
    return check(model, target)


def _fix(model: Model, target: Target, sizes: Mapping[str, int], result: LintResult) -> Counter[str]:
    fixer, done = Fixer(model, target, sizes), Counter[str]()
    for _ in range(_ROUNDS):
        made = [finding.rule for finding in _checked(model, target, []) if fixer.fix(finding)]
        done.update(made)
        if not made:
            break
    result.warnings += fixer.notes
    return done


def _ask(result: LintResult, target: Target, source: Source, python: str | None) -> None:
    """Compare the findings with what the engine takes, where it is here."""
    if not target.provider:
        return
    engine = engine_of(target, python)
    if isinstance(engine, str):
        result.warnings.append(engine)
        return
    with ExitStack() as stack:
        stack.callback(engine.close)
        result.engine = str(engine.about())
        content = Path(source) if is_path(source) else contents(io.load(source), stack)
        try:
            refused = engine.refused(content)
        except EngineError as error:
            why = f"the engine refuses the model: {error}"
            result.findings.append(LintFinding("engine", "model", "", why, "quantize the float model for it"))
            return
    layers = [r for r in refused if r.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    known = {finding.node for finding in result.findings}
    strict = target.coverage == WHOLE
    for entry in layers:
        if entry.node not in known:
            why = f"the engine leaves it to the CPU{f': {entry.reason}' if entry.reason else ''}"
            remedy = "no rule foresees this; change the model"
            result.findings.append(LintFinding("engine", entry.node, entry.op_type, why, remedy, refuses=strict))
    taken = known - {entry.node for entry in refused}
    said = sorted(name for name in taken if any(f.node == name and f.rule == "placement" for f in result.findings))
    if said:
        result.warnings.append(f"the engine takes {said[0]!r} and {len(said) - 1} more, against the rules here")
