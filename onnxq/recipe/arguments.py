"""What each argument of the public functions may be, as data, and one error for what is none of it."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from onnxq.errors import CalibrationError, ModelError, OnnxqError, RecipeError
from onnxq.recipe.values import plain, shown

P = ParamSpec("P")
R = TypeVar("R")

_SAMPLES = ("calibration", "data")
"""Two names of one argument: every function that takes one takes it under either."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check and settle the arguments of a public function before it runs.

    Numbers of numpy become plain ones; the bytes of a model pass; samples may be called ``calibration`` or ``data``.

    Raises:
        OnnxqError: names the function, the argument, what was given and what it takes.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        own = next((name for name in _SAMPLES if name in signature.parameters), None)
        other = next((name for name in _SAMPLES if name != own and name in kwargs), None)
        if own is not None and other is not None:
            if kwargs.get(own) is not None:
                raise RecipeError(f"{function.__name__}: calibration and data are two names of one thing; pass one")
            kwargs[own] = kwargs.pop(other)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise RecipeError(f"{function.__name__}: {error}; it takes {_named(signature)}") from None
        for name, value in bound.arguments.items():
            check = _CHECKS.get(name)
            if check is not None and (value is not None or signature.parameters[name].default is not None):
                bound.arguments[name] = check(f"{function.__name__}: {name}", plain(value))
            elif signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = _checked_options(function.__name__, value)
        return function(*bound.args, **bound.kwargs)

    return call


def _named(signature: inspect.Signature) -> str:
    """The parameters of a function, as a call writes them."""
    forms: dict[Any, str] = {
        inspect.Parameter.KEYWORD_ONLY: "{}=",
        inspect.Parameter.VAR_POSITIONAL: "*{}",
        inspect.Parameter.VAR_KEYWORD: "**{}",
    }
    return ", ".join(forms.get(given.kind, "{}").format(given.name) for given in signature.parameters.values())


def _checked_options(function: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that a function takes as they are, checked and settled like named ones; None stands for none given.

    Raises:
        OnnxqError: as for `checked`.
    """
    found = {}
    for name, value in options.items():
        check = _CHECKS.get(name)
        settled = plain(value)
        found[name] = settled if check is None or settled is None else check(f"{function}: {name}", settled)
    return found


def _refuse(where: str, value: object, takes: str, error: type[OnnxqError] = RecipeError) -> OnnxqError:
    return error(f"{where} is {shown(value)} ({type(value).__name__}); it takes {takes}")


def _flag(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refuse(where, value, "True or False")
    return value


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise _refuse(where, value, "a number")
    return value


def _seconds(where: str, value: Any) -> float:
    if _number(where, value) < 0:
        raise _refuse(where, value, "a number of seconds, 0 or more")
    return float(value)


def _count(where: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _refuse(where, value, "a whole number")
    return value


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _refuse(where, value, "text")
    return value


def _path(where: str, value: Any) -> Any:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value) or "\0" in os.fsdecode(value):
        raise _refuse(where, value, "the path of a file")
    return value


def _statistics(where: str, value: Any) -> Any:
    if isinstance(value, str | os.PathLike):
        return _path(where, value)
    if not callable(getattr(value, "save", None)) or not hasattr(value, "model_hash"):
        raise _refuse(where, value, "Statistics, or the path of a file that calibrate wrote", CalibrationError)
    return value


def _callable(where: str, value: Any) -> Any:
    if not callable(value):
        raise _refuse(where, value, "a function")
    return value


def _text_or_callable(where: str, value: Any) -> Any:
    return value if callable(value) else _text(where, value)


def _states(where: str, value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise _refuse(where, value, "a dict from outputs to the inputs that they go back into")
    return {_text(f"{where}: output", output): _text(f"{where}[{output!r}]", name) for output, name in value.items()}


def _model(where: str, value: Any) -> Any:
    if isinstance(value, str | os.PathLike):
        return _path(where, value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if type(value).__name__ == "ModelProto" and hasattr(value, "SerializeToString"):
        return value
    kinds = [base.__module__.partition(".")[0] for base in type(value).__mro__]
    remedy = "it takes the path of an ONNX file, its bytes, or an onnx.ModelProto"
    if "torch" in kinds:
        remedy = f"export it first (torch.onnx.export); {remedy}"
    elif "onnxruntime" in kinds:
        remedy = f"pass the file that the session was made from; {remedy}"
    raise ModelError(f"{where} is a {type(value).__name__}; {remedy}")


def _models(where: str, value: Any) -> list[Any]:
    if isinstance(value, str | os.PathLike):
        value = [value]
    if not isinstance(value, list | tuple):
        raise _refuse(where, value, "the paths of ONNX files", ModelError)
    return [_path(f"{where}[{i}]", entry) for i, entry in enumerate(value)]


def _paths(where: str, value: Any) -> list[Any]:
    listed = [value] if isinstance(value, str | os.PathLike) else value
    if not isinstance(listed, list | tuple):
        raise _refuse(where, value, "paths of files")
    return [_path(f"{where}[{i}]", entry) for i, entry in enumerate(listed)]


def _place(where: str, value: Any) -> Any:
    if type(value).__name__ != "RunsOn":
        raise _refuse(where, value, 'an onnxq.RunsOn, such as RunsOn(device="ssh pi@kitchen")')
    return value


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "model": _model, "float_model": _model, "quantized_model": _model, "models": _models,
    "first": _model, "second": _model, "schemes": _flag,
    "output": _path, "custom_ops": _paths, "recipe_out": _path, "search_state": _path, "report": _path,
    "save_tensors": _path,
    "statistics": _statistics,
    "states": _states, "engine_python": _path, "runs_on": _place, "to": _path, "tokenizer": _path, "workload": _text,
    "generate": _count,
    "target": _text, "provider": _text, "engine": _text, "ray_address": _text,
    "metric": _text_or_callable, "progress": _callable,
    "threads": _count, "seconds": _seconds, "budget": _seconds,
    "external_data": _flag,
    "force": _flag, "benchmark": _flag, "resume": _flag, "cache": _flag, "moments": _flag, "memory": _flag,
}  # fmt: skip
"""By name of the argument. Those of a recipe are checked where a recipe is made, samples where they are read."""
