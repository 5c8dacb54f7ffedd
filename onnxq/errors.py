"""Errors a caller can act on: one line that says where, what, got, allowed and remedy.

The command line prints the message of an `OnnxqError` and exits with its ``exit_code``; anything else that reaches
the user is a defect.
"""

from __future__ import annotations


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


class VerificationError(OnnxqError):
    """The quantized model failed verification; nothing was written."""

    exit_code = 3


class MissingExtraError(OnnxqError):
    """An optional dependency is not installed; the message names the extra."""
