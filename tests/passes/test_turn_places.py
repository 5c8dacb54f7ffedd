"""Further matrices go where those of a rotation are, and the model computes what it computed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxq.graph.attention.plain_attention import RunFacts
from onnxq.graph.files import io
from onnxq.graph.prepare import prepare
from onnxq.passes.rotate import rotate
from onnxq.passes.turn_places import turn_further, turnables, turned_along
from onnxq.passes.value_heads import value_heads
from onnxq.runtime.probe import probe
from onnxq.runtime.session import session_of
from tests.decoders import Style, decoder, prompts
from tests.passes.test_rotate import PLAIN


def heads_of(model, feed):
    return value_heads(model, RunFacts({name: info.shape for name, info in probe(model, feed).items()}))[0]


def orthogonal(size: int, keeps_mean: bool, rng: np.random.Generator) -> np.ndarray:
    if not keeps_mean:
        return np.linalg.qr(rng.standard_normal((size, size)))[0]
    basis = np.linalg.qr(np.concatenate([np.ones((size, 1)), rng.standard_normal((size, size - 1))], 1))[0][:, 1:]
    return basis @ orthogonal(size - 1, False, rng) @ basis.T + 1 / size


@pytest.mark.parametrize(
    "style",
    [PLAIN, replace(PLAIN, norm="rms"), replace(PLAIN, norm="layer"), replace(PLAIN, kv_heads=4, blocks=1)],
    ids=str,
)
def test_float_outputs_stay(style: Style) -> None:
    feed = prompts(style, 1)[0]
    model = io.load(decoder(style))
    prepare(model)
    expected = session_of(model, threads=1).run(feed)
    rotate(model, heads_of(model, feed))
    found = turnables(model, heads_of(model, feed))
    assert [each.size for each in found] == [32, *[8] * style.blocks]
    assert [each.keeps_mean for each in found] == [style.norm == "layer", *[False] * style.blocks]
    before = {value.name: value.const_value.numpy().copy() for value in model.graph.initializers.values()}
    rng = np.random.default_rng(0)
    turn_further(found, [orthogonal(each.size, each.keeps_mean, rng) for each in found])
    changed = {
        value.name
        for value in model.graph.initializers.values()
        if not np.array_equal(value.const_value.numpy(), before[value.name])
    }
    assert len(changed) == len({id(p.node.inputs[p.position]) for each in found for p in each.places})
    for want, got in zip(expected, session_of(model, threads=1).run(feed), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_each_part_of_an_axis_is_turned_alike() -> None:
    rng = np.random.default_rng(0)
    array, matrix = rng.standard_normal((3, 8)), rng.standard_normal((4, 4))
    expected = np.concatenate([array[:, :4] @ matrix, array[:, 4:] @ matrix], axis=1)
    np.testing.assert_allclose(turned_along(array, 1, matrix), expected)
    np.testing.assert_allclose(turned_along(array.T, 0, matrix), expected.T)
