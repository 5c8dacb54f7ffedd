"""Copies of models that draw random numbers, in which they draw the same ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq.graph.files import io
from onnxq.graph.views.draws import drawing_nodes, may_draw, still_copy, without_draws
from tests.graph.build import build, session

X = np.random.default_rng(0).random((400, 8), np.float32)
BODIES = {
    "RandomNormalLike": "a = RandomNormalLike <scale = 2.0, mean = 1.0> (x) \n y = Identity (a)",
    "RandomUniformLike": "a = RandomUniformLike <low = -2.0, high = 1.0> (x) \n y = Identity (a)",
    "RandomNormal": "a = RandomNormal <shape = [300, 8]> () \n y = Identity (a)",
    "RandomUniform": "a = RandomUniform <shape = [300, 8], low = 4.0, high = 8.0> () \n y = Identity (a)",
    "Bernoulli": "a = Bernoulli (x) \n y = Identity (a)",
    "Dropout": "a = Dropout (x, ratio, training) \n y = Identity (a)",
    "Multinomial": "l = Log (x) \n a = Multinomial <sample_size = 300> (l) \n y = Cast <to = 1> (a)",
    "If": "c = Greater (one, zero) \n y = If (c) <then_branch = t () => (float[N, 8] p) { p = RandomNormalLike (x) },"
    " else_branch = e () => (float[N, 8] q) { q = Identity (x) }>",
}
CONSTANTS = {
    "ratio": np.float32(0.3),
    "training": np.array(True),
    "one": np.array([1], np.float32),
    "zero": np.zeros(1, np.float32),
}


def model(body: str, **more: np.ndarray):  # type: ignore[no-untyped-def]
    used = {name: np.asarray(array) for name, array in {**CONSTANTS, **more}.items() if name in body}
    return build(f"g (float[N, 8] x) => (float[N, M] y) {{ {body} }}", **used)


@pytest.mark.parametrize("name", BODIES)
def test_two_copies_draw_the_same_of_the_same_distribution(name: str) -> None:
    proto = model(BODIES[name])
    loaded = io.load(proto)
    before = io.to_bytes(loaded)
    assert may_draw(before)
    assert len(drawing_nodes(loaded)) == 1
    copies = [io.to_bytes(without_draws(io.load(proto))) for _ in range(2)]
    first, again = session(copies[0]).run(None, {"x": X})[0], session(copies[1]).run(None, {"x": X})[0]
    np.testing.assert_array_equal(first, again)
    running = session(copies[0])
    np.testing.assert_array_equal(running.run(None, {"x": X})[0], running.run(None, {"x": X})[0])
    drawn = session(before).run(None, {"x": X})[0]
    assert drawn.shape == first.shape
    assert float(first.mean()) == pytest.approx(float(drawn.mean()), abs=0.15 * float(drawn.std()) + 0.05)
    assert float(first.std()) == pytest.approx(float(drawn.std()), rel=0.1)
    assert io.to_bytes(loaded) == before
    assert drawing_nodes(without_draws(io.load(proto))) == []


def test_nodes_draw_independently_and_shapes_may_differ() -> None:
    body = "a = RandomNormalLike (x) \n b = RandomNormalLike (x) \n y = Concat <axis = 1> (a, b)"
    running = session(io.to_bytes(without_draws(io.load(model(body)))))
    for rows in (1, 400):
        both = running.run(None, {"x": X[:rows]})[0]
        assert both.shape == (rows, 16)
    assert abs(np.corrcoef(both[:, :8].ravel(), both[:, 8:].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize(
    "body",
    [
        "y = Identity (x)",
        "y = Dropout (x)",
        "y = Dropout (x, ratio, off)",
    ],
)
def test_what_draws_nothing_stays(body: str) -> None:
    proto = model(body, off=np.array(False))
    assert drawing_nodes(io.load(proto)) == []
    assert still_copy(proto.SerializeToString()) is None


def test_files_are_looked_into(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model(BODIES["RandomNormalLike"]).SerializeToString())
    assert may_draw(path)
    found = still_copy(path)
    assert found is not None
    assert found[1].startswith("RandomNormalLike ")
    path.write_bytes(model("y = Identity (x)").SerializeToString())
    assert not may_draw(path)
    assert not may_draw(tmp_path / "none.onnx")
    (tmp_path / "empty").touch()
    assert not may_draw(tmp_path / "empty")
