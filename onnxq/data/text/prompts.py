"""Text files as samples: a line or a paragraph each, in the tokens of a tokenizer.json."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.errors import CalibrationError, MissingExtraError

SUFFIXES = (".txt", ".text", ".md")
"""Files that hold text."""

LONGEST = 512
"""Tokens of a sample at most; a longer text is cut there."""

_LIMITS = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len", "max_sequence_length")
"""Where a config.json says how many positions a model has."""

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Prompts:
    """A text file and the tokenizer that it is read with.

    Attributes:
        path: the text.
        tokenizer: the file of the tokenizer.
        config: what the config.json beside the tokenizer says; empty where there is none.
    """

    path: Path
    tokenizer: Path
    config: dict[str, Any]

    def ids(self) -> list[Array]:
        """Token ids of each sample, int64, (S,).

        Raises:
            CalibrationError: the text or the tokenizer cannot be read, or there is not one token.
            MissingExtraError: the library tokenizers is not installed.
        """
        encoder = open_tokenizer(self.tokenizer)
        most = longest(self.config)
        rows = []
        for text in read_text(self.path):
            row = np.array(encoder.encode(text).ids, np.int64)[:most]
            if len(row):
                rows.append(row)
        if not rows:
            raise CalibrationError(
                f"{self.path}: {self.tokenizer} makes not one token of it; pass a text in its script"
            )
        return rows


def is_text(calibration: object) -> bool:
    """Whether calibration data is a file of text, by its name."""
    if not isinstance(calibration, str | os.PathLike):
        return False
    return Path(os.fsdecode(calibration)).suffix.lower() in SUFFIXES


def open_prompts(path: str | os.PathLike[str], beside: Sequence[Path], tokenizer: Path | None) -> Prompts:
    """A text file as samples.

    Args:
        path: the text.
        beside: folders in which a tokenizer.json is looked for, in this order.
        tokenizer: the tokenizer that the user names; None looks for one.

    Raises:
        CalibrationError: there is no such file, or no tokenizer.
    """
    text = Path(path)
    if not text.is_file():
        raise CalibrationError(f"{text}: no such file; pass a text file, a line or a paragraph a sample")
    if tokenizer is None:
        tokenizer = next((folder / TOKENIZER for folder in beside if (folder / TOKENIZER).is_file()), None)
        if tokenizer is None:
            places = " or ".join(str(folder) for folder in dict.fromkeys(beside)) or "the model"
            raise CalibrationError(
                f"{text}: a text needs a tokenizer, and there is no {TOKENIZER} in {places}; name one with --tokenizer"
            )
    if tokenizer.is_dir():
        tokenizer = tokenizer / TOKENIZER
    if not tokenizer.is_file():
        raise CalibrationError(f"{tokenizer}: no such file; --tokenizer takes a {TOKENIZER}, or the folder that has it")
    return Prompts(text, tokenizer, read_config(tokenizer.parent / "config.json"))


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object of a file; empty where there is none, or it is no object."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def longest(config: dict[str, Any]) -> int:
    """Tokens that a sample may have: what the model has positions for, `LONGEST` at most."""
    given = [config.get(name) for name in _LIMITS]
    return min([LONGEST, *(limit for limit in given if isinstance(limit, int) and limit > 0)])


def read_text(path: Path) -> list[str]:
    """The samples of a text: paragraphs where blank lines part them, else lines.

    Raises:
        CalibrationError: it cannot be read, is not UTF-8, or holds nothing.
    """
    try:
        content = path.read_text("utf-8-sig")
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CalibrationError(
            f"{path}: is not UTF-8 at byte {error.start}; convert it, for example with iconv"
        ) from None
    content = content.strip().replace("\r\n", "\n")
    parts = re.split(r"\n[ \t]*\n", content)
    samples = [part.strip() for part in (parts if len(parts) > 1 else content.split("\n"))]
    samples = [sample for sample in samples if sample]
    if not samples:
        raise CalibrationError(f"{path}: holds no text; write a line or a paragraph a sample")
    return samples


def open_tokenizer(path: Path) -> Any:
    """The tokenizer of a file, which neither cuts nor pads.

    Raises:
        CalibrationError: it is damaged, or of a kind that the library does not know.
        MissingExtraError: the library tokenizers is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise MissingExtraError(
            f"{path}: text needs the library tokenizers; pip install 'onnxq[text]', or pass samples as an .npz"
        ) from None
    try:
        found = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise CalibrationError(f"{path}: tokenizers cannot read it: {error}; pass another with --tokenizer") from error
    found.no_padding()
    found.no_truncation()
    return found
