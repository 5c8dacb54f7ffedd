"""Rotations that learn: what quantization loses falls, floats stay, and what is no better in the end is not kept."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

import onnxq
from onnxq.graph.views.plain_graph import plain_graph
from onnxq.passes.turn_places import turn_further, turnables
from onnxq.pipeline import build
from onnxq.pipeline.job import Job
from onnxq.pipeline.learned import rotating
from onnxq.qat import has_torch
from onnxq.runtime.session import session_of
from tests.decoders import Style, decoder, prompts
from tests.passes.test_rotate import PLAIN, loaded
from tests.passes.test_turn_places import heads_of

RMS = replace(PLAIN, norm="rms")
OPTIONS: dict[str, Any] = {"rotate": True, "learn_rotation": True, "benchmark": False, "include": ["*"]}
LINE = re.compile(r"--learn-rotation: in (\d+) steps the loss .* went from ([\d.e-]+) to ([\d.e-]+)")


def quantize(style: Style = RMS, **options: Any) -> onnxq.QuantizeResult:
    return onnxq.quantize(decoder(style), calibration=prompts(style, 16), **{**OPTIONS, **options})


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    if has_torch():
        from onnxq.qat.rotations import rotation_learning

        monkeypatch.setattr(rotation_learning, "RotationConfig", partial(rotation_learning.RotationConfig, steps=30))


def losses(warnings: list[str]) -> tuple[float, float]:
    (found,) = filter(None, (LINE.search(line) for line in warnings))
    return float(found[2]), float(found[3])


@pytest.mark.torch
@pytest.mark.parametrize(
    ("style", "options"),
    [
        (RMS, {"preset": "w4", "algorithm": "rtn"}),
        (replace(PLAIN, norm="layer"), {"preset": "w4", "algorithm": "gptq", "sequential": True}),
        (RMS, {"preset": "w8a8-dynamic"}),
        (RMS, {"preset": "w8a8"}),
        (RMS, {"preset": "w4a4"}),
    ],
    ids=["w4", "layer norms, gptq", "dynamic", "static", "tokens"],
)
def test_the_loss_of_rounding_falls(style: Style, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "why_as_drawn", lambda *args: None)
    result = quantize(style, **options)
    before, after = losses(result.warnings)
    assert after < before
    assert result.sqnr_db is not None and result.sqnr_db > 5


def start_of(style: Style) -> tuple[Any, Any, list[Any], Any]:
    """(turned model, module, its matrices, a sample)."""
    from onnxq.core.dtypes import QType
    from onnxq.core.spec import PerBlock, TensorSpec
    from onnxq.passes.rotate import rotate
    from onnxq.qat.rotations.turned_module import NodeRounding, TurnedModule

    feed, model = prompts(style, 1)[0], loaded(decoder(style))
    rotate(model, heads_of(model, feed))
    found = turnables(model, heads_of(model, feed))
    spec = TensorSpec(QType.UINT4, PerBlock(1, 16), symmetric=True)
    layers = {i: NodeRounding(spec, transposed=True) for i, node in enumerate(model.graph) if node.op_type == "MatMul"}
    module = TurnedModule(plain_graph(model), rotating._constants(model, found), layers)
    return model, module, found, feed


@pytest.mark.torch
@pytest.mark.parametrize("style", [RMS, replace(PLAIN, norm="layer")], ids=["rms", "layer"])
def test_what_learned_is_orthogonal_and_leaves_the_floats(style: Style) -> None:
    import torch

    from onnxq.qat.distillation import OutputKind
    from onnxq.qat.parameters import as_tensor
    from onnxq.qat.rotations.rotation_learning import RotationConfig, learn_rotations
    from onnxq.verify import loss

    model, module, found, feed = start_of(style)
    expected = session_of(model, threads=1).run(feed)
    tensors = {name: as_tensor(array) for name, array in feed.items()}
    name = module.graph.outputs[0]
    targets = {name: OutputKind(loss.CLASSES, axis=2)}
    sizes = [(each.size, each.keeps_mean) for each in found]
    samples = prompts(style, 12)
    made = learn_rotations(module, sizes, targets, (samples[:8], samples[8:]), RotationConfig(steps=40, every=5))
    assert made.after < made.before and made.steps == 40
    for matrix, (size, keeps_mean) in zip(made.matrices, sizes, strict=True):
        assert np.abs(matrix @ matrix.T - np.eye(size)).max() < 1e-5
        assert np.abs(matrix - np.eye(size)).max() > 1e-3
        assert not keeps_mean or np.abs(matrix.sum(0) - 1).max() < 1e-9
    with torch.no_grad():  # the module of the matrices is the model that they are put into
        turned = module({**tensors, **module.constants([torch.from_numpy(m) for m in made.matrices], rounded=False)})
    turn_further(found, made.matrices)
    after = session_of(model, threads=1).run(feed)
    for want, got in zip(expected, after, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)
    np.testing.assert_allclose(turned[name].numpy(), after[0], atol=1e-4)


@pytest.mark.torch
def test_a_seed_gives_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "why_as_drawn", lambda *args: None)

    def made(seed: int) -> bytes:
        model = quantize(preset="w4", algorithm="rtn", seed=seed).model
        assert model is not None
        return model.SerializeToString(deterministic=True)

    assert made(3) == made(3) != made(4)


@pytest.mark.torch
def test_the_better_model_is_kept_once_it_is_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = quantize(preset="w4", algorithm="rtn", learn_rotation=None)
    kept = build.why_as_drawn

    def worse(learned: Any, drawn: Any, job: Job) -> str | None:
        return kept(drawn, learned, job)  # the other way round

    monkeypatch.setattr(build, "why_as_drawn", worse)
    result = quantize(preset="w4", algorithm="rtn")
    assert any(re.search("--learn-rotation: not used, since held-out samples have", line) for line in result.warnings)
    assert result.model is not None and plain.model is not None
    assert result.model.SerializeToString() == plain.model.SerializeToString()


def test_it_needs_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxq.qat.has_torch", lambda: False)
    with pytest.raises(onnxq.OnnxqError, match="--learn-rotation: needs PyTorch, which is not installed; pip install"):
        quantize(preset="w4")


@pytest.mark.torch
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preset": "w4", "rotate": None}, "--learn-rotation: is about the matrices of --rotate; use it with --rotate"),
        ({"preset": "w4", "calibration": None}, "--learn-rotation: needs samples to learn from; pass --calibration"),
        ({"preset": "float"}, "--learn-rotation: preset float rounds nothing to integers"),
        ({"preset": "nf4"}, "--learn-rotation: preset nf4 rounds nothing to integers"),
    ],
    ids=["no rotation", "no samples", "float", "tables"],
)
def test_what_cannot_learn_is_one_line(options: dict[str, Any], said: str) -> None:
    given = {"calibration": prompts(RMS, 4), **OPTIONS, **options}
    given = {name: value for name, value in given.items() if value is not None}
    if options["preset"] == "float":
        given.pop("include")
    with pytest.raises(onnxq.RecipeError, match=said):
        onnxq.quantize(decoder(RMS), **given)
