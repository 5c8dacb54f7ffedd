"""Every argument of every public function, given wrong: one line of an error that is meant, or the right thing done."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.errors import ModelError, OnnxqError, RecipeError
from tests.graph.build import build, weights

FUNCTIONS: list[Callable[..., object]] = [
    onnxq.quantize, onnxq.calibrate, onnxq.compare, onnxq.diagnose, onnxq.benchmark, onnxq.inspect,
]  # fmt: skip
WRONG: list[object] = [3, 2.5, True, object(), {"a": 1}, [1, 2], b"\x00", "", "\0", {1: {2: 3}}, np.zeros(3), lambda: 1]
TABLE = [(function, name) for function in FUNCTIONS for name in inspect.signature(function).parameters]


def model() -> onnx.ModelProto:
    text = "g (float[N,64] x) => (float[N,64] y) { [one] a = MatMul (x, w) b = Relu (a) [two] y = MatMul (b, v) }"
    return build(text, w=weights(64, 64), v=weights(64, 64, seed=1))


def feeds() -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    return [{"x": generator.standard_normal((1, 64)).astype(np.float32)} for _ in range(6)]


def good(function: Callable[..., object], folder: Path) -> dict[str, object]:
    """Arguments that work."""
    path = folder / "m.onnx"
    onnx.save(model(), path)
    given: dict[str, object] = {
        "quantize": {"model": path, "output": folder / "q.onnx", "calibration": feeds(), "preset": "w8a8"}
        | {"benchmark": False, "threads": 1},
        "calibrate": {"model": path, "output": folder / "s.npz", "calibration": feeds(), "threads": 1},
        "compare": {"float_model": path, "quantized_model": path, "data": feeds(), "threads": 1},
        "diagnose": {"float_model": path, "data": feeds(), "threads": 1},
        "benchmark": {"models": [path], "data": feeds(), "seconds": 0.01, "memory": False},
        "inspect": {"model": path},
    }[function.__name__]  # type: ignore[assignment]
    return dict(given)


@pytest.mark.parametrize(("function", "name"), TABLE, ids=[f"{f.__name__}-{n}" for f, n in TABLE])
def test_a_wrong_argument_is_one_error_in_one_line(
    function: Callable[..., object], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    right = good(function, tmp_path)
    refused = 0
    for wrong in WRONG:
        if name == "seconds" and isinstance(wrong, int | float) and not isinstance(wrong, bool):
            continue  # which is right, and takes that long
        if name == "progress" and callable(wrong):
            continue  # which is right too
        try:
            function(**{**right, name: wrong})
        except OnnxqError as error:
            refused += 1
            assert str(error)
            assert len(str(error)) < 1000
    assert refused, f"{name} takes anything"


def same(first: object, second: object) -> None:
    assert isinstance(first, onnx.ModelProto)
    assert isinstance(second, onnx.ModelProto)
    assert first.SerializeToString() == second.SerializeToString()


def quantized(given: object = None, **options: Any) -> onnx.ModelProto:
    source: Any = model() if given is None else given
    samples = {} if "data" in options else {"calibration": feeds()}
    result = onnxq.quantize(source, benchmark=False, threads=1, **{"preset": "w8a8"} | samples | options)
    assert result.model is not None
    return result.model


def test_clear_forms_are_taken() -> None:
    same(quantized(exclude="one"), quantized(exclude=["one"]))
    same(quantized(exclude={"one"}), quantized(exclude=("one",)))
    same(quantized(include=None), quantized())
    same(quantized(model().SerializeToString()), quantized())
    same(quantized(recipe={"preset": "w8a8", "range": "minmax"}), quantized(range="minmax"))
    rule = {"match": "one", "quantize": False}
    same(quantized(recipe=onnxq.Recipe(rules=(rule,))), quantized(exclude="one"))  # type: ignore[arg-type]
    same(quantized(recipe={"rules": [rule]}), quantized(exclude="one"))
    same(quantized(percentile=np.float32(99.0), range="percentile"), quantized(percentile=99.0, range="percentile"))
    same(quantized(data=feeds()), quantized())


def test_one_pattern_is_not_its_letters() -> None:
    assert onnxq.Recipe(exclude="c*").exclude == ("c*",)  # type: ignore[arg-type]
    assert onnxq.Recipe().override(include="conv").include == ("conv",)


def test_samples_under_both_names_are_refused() -> None:
    with pytest.raises(RecipeError, match="two names of one thing"):
        quantized(calibration=feeds(), data=feeds())


@pytest.mark.parametrize(
    ("module", "said"),
    [("torch.nn.modules.module", "torch.onnx.export"), ("onnxruntime.capi", "the file that the session was made from")],
)
def test_what_is_no_model_is_told_what_to_do(module: str, said: str) -> None:
    kind = type("Thing", (), {"__module__": module})
    with pytest.raises(ModelError, match=said):
        onnxq.inspect(kind())
    with pytest.raises(ModelError, match="not an ONNX model"):
        onnxq.inspect(b"no model")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"percentile": "99"}, "percentile is '99' .str.; it takes a number"),
        ({"rules": [3]}, "rules must be a list of mappings"),
        ({"rules": [{"match": "a", "bits": True}]}, "rule 1: bits is True"),
        ({"smooth": [0.5]}, "smooth is"),
        ({"exclude": [1]}, "is not a list of names"),
        ({"exclude": b"ab"}, "is not a list of names"),
        ({3: 4}, "no key 3"),
        ({"range": None, "bits": 10**5000}, "a number of very many digits"),
    ],
)
def test_a_recipe_of_wrong_types(keys: dict[Any, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        onnxq.Recipe.from_mapping(keys)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(20)
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        BOMB.replace("a: &a", "include: &a"),
        BOMB + "include: *u",
        BOMB + "preset: *u",
        BOMB + "rules: *u",
        "percentile: 2001-13-45",
        "per_channel: !!bool maybe",
        "bits: " + "9" * 5000,
        "include: " + "[" * 5000,
        "include: " + "[" * 400 + "]" * 400,
        "true: 1",
        "2001-01-01: 1",
        "preset: true",
        "preset: 2001-01-01",
        "? [a, b]\n: 1",
        "preset: !!python/object:os.system x",
        "range: \x00",
        "&a [*a]",
        "include: &a [*a]",
        "a0: &a0 [x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
        + "include: *a8",
        "include: [" + ", ".join(f"{{k{i}: [{', '.join(['long' * 30] * 9)}]}}" for i in range(9)) + "]",
    ],
)
def test_hostile_yaml_is_one_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, "utf8")
    with pytest.raises(RecipeError, match=r"recipe\.yaml") as raised:
        onnxq.Recipe.from_file(path)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: onnxq.diagnose("m.onnx", preset="w8"), r"^diagnose: .*unexpected .*'preset'; it takes float_model, "),
        (lambda: onnxq.compare("a.onnx", "b.onnx", [{}]), r"^compare: too many positional .*; it takes .* data=, "),
        (onnxq.quantize, r"^quantize: missing a required argument: 'model'; it takes model, output, .*preset="),
        (onnxq.benchmark, r"^benchmark: missing a required argument: 'models'; it takes"),
    ],
    ids=["unknown", "too many", "missing", "missing all"],
)
def test_arguments_that_do_not_fit_the_function_are_one_line(call: Callable[[], object], said: str) -> None:
    with pytest.raises(onnxq.RecipeError, match=said):
        call()
