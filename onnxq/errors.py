"""Errors a caller can act on: one line that says where, what, got, allowed and remedy.

The command line prints the message of an `OnnxqError` and exits with its ``exit_code``; anything else that reaches
the user is a defect.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class OnnxqError(Exception):
    """Base of every error that onnxq raises on purpose."""

    exit_code = 1
    """Exit status of the command line: 2 usage, 1 the work failed, 3 verification failed."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class ModelError(OnnxqError):
    """The model file or graph cannot be used."""


class RecipeError(OnnxqError):
    """Options, presets or recipes that make no sense, alone or for this model."""

    exit_code = 2


class CalibrationError(OnnxqError):
    """Calibration data or statistics that do not fit the model."""


class TargetError(OnnxqError):
    """The target cannot run what was asked for."""

    exit_code = 2


class EngineError(OnnxqError):
    """An engine elsewhere is not there, has ended, or refuses a model."""


class VerificationError(OnnxqError):
    """The quantized model failed verification; nothing was written."""

    exit_code = 3


class MissingExtraError(OnnxqError):
    """An optional dependency is not installed; the message names the extra."""


def closest(
    name: object, known: Iterable[str], *, synonyms: Mapping[str, str] | None = None, cutoff: float = 0.6
) -> str | None:
    """The known name that was probably meant.

    Args:
        name: what was given.
        known: the names there are.
        synonyms: what other names stand for, in lower case; they win over likeness.
        cutoff: likeness in 0…1 from which a name is taken.

    Returns:
        None where no name is like it.
    """
    names = {entry.lower(): entry for entry in known}
    text = str(name).lower()[:200]
    meant = (synonyms or {}).get(text.replace("_", "-"))
    if meant in names.values():
        return meant
    near = difflib.get_close_matches(text, names, n=1, cutoff=cutoff)
    return names[near[0]] if near else None


def there_are(name: object, known: Iterable[str], *, synonyms: Mapping[str, str] | None = None) -> str:
    """The end of a message about an unknown name: what was probably meant, and what there is."""
    listed = list(known)
    near = closest(name, listed, synonyms=synonyms)
    return f"{f'did you mean {near!r}? There' if near else 'there'} are {', '.join(listed)}"
