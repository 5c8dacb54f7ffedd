"""Callables of the user's own code, named as ``module:callable``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnxq.errors import OnnxqError


def import_callable(module: str, name: str, where: str, error: type[OnnxqError], what: str) -> Callable[..., Any]:
    """Import a callable; modules of the working folder are found too.

    Args:
        module: dotted name of the module.
        name: of the callable, dotted where it lies deeper.
        where: what messages begin with.
        error: raised where that fails.
        what: what the callable should be, in words.
    """
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as problem:  # the module is the user's own code
        raise error(f"{where}: cannot be imported: {type(problem).__name__}: {problem}") from problem
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    if not callable(found):
        raise error(f"{where}: is a {type(found).__name__}, not {what}")
    return found  # type: ignore[no-any-return]
