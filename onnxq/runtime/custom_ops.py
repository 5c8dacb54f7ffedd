"""Libraries of custom operators, registered in every session that is opened while they are asked for."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeAlias, TypeVar

import onnxruntime

from onnxq.errors import RecipeError

Libraries: TypeAlias = Sequence[str | os.PathLike[str]]
"""Shared libraries that export ONNX Runtime's ``RegisterCustomOps``."""

_P = ParamSpec("_P")
_R = TypeVar("_R")

_registered: list[str] = []
"""Not by thread: sessions are opened in threads of their own too."""


def register(options: onnxruntime.SessionOptions) -> None:
    """Register the libraries that are asked for in a session to be."""
    for path in dict.fromkeys(_registered):
        options.register_custom_ops_library(path)


def registered() -> list[str]:
    """The paths of the libraries that are asked for."""
    return list(dict.fromkeys(_registered))


@contextmanager
def custom_operators(libraries: Libraries) -> Iterator[None]:
    """Register libraries in all sessions that are opened inside.

    Raises:
        RecipeError: a file is missing, or is no such library.
    """
    paths = [_checked(library) for library in _listed(libraries)]
    _registered.extend(paths)
    try:
        yield
    finally:
        for path in paths:
            _registered.remove(path)


def with_custom_ops(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let the keyword ``custom_ops`` of a function name libraries that hold while it runs."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        libraries: object = kwargs.get("custom_ops") or ()
        with custom_operators(libraries):  # type: ignore[arg-type]  # a keyword of the function, checked there
            return function(*args, **kwargs)

    return call


def _listed(libraries: Libraries) -> Libraries:
    return [libraries] if isinstance(libraries, str | os.PathLike) else libraries


def _checked(library: str | os.PathLike[str]) -> str:
    path = Path(library)
    if not path.is_file():
        raise RecipeError(f"--custom-ops {path}: no such file; name the shared library that holds the operators")
    try:
        onnxruntime.SessionOptions().register_custom_ops_library(str(path.resolve()))
    except Exception as error:  # the runtime's exceptions have no common base
        said = " ".join(str(error).split())
        raise RecipeError(
            f"--custom-ops {path}: onnxruntime {onnxruntime.__version__} cannot register it: {said}; build the library "
            "for this system and this version"
        ) from error
    return str(path.resolve())
