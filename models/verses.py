"""The text of every language network here, one split for all: a Bible, one verse a line, ``Gen1:1 In the beginning …``.

The caller gives the file; README.md says where these models' text, the King James Version, comes from. Whole chapters
are kept apart: a tenth of the chapters of each group of books, drawn at random, are the test part, the others are the
training part. Nothing in the test part is ever trained or calibrated on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent

SEED = 20240917
TEST_EVERY = 10
VERSE = re.compile(r"(\d?[A-Z][A-Za-z]*)(\d+):(\d+) (.+)")
# The label of a verse is the place of its group here. Acts is with the Gospels, Daniel with the Prophets.
GROUPS = {
    "law": "Ge Exo Lev Num Deu",
    "history": "Josh Jdgs Ruth 1Sm 2Sm 1Ki 2Ki 1Chr 2Chr Ezra Neh Est",
    "poetry": "Job Psa Prv Eccl SSol",
    "prophets": "Isa Jer Lam Eze Dan Hos Joel Amos Obad Jonah Mic Nahum Hab Zep Hag Zec Mal",
    "gospels": "Mat Mark Luke John Acts",
    "letters": "Rom 1Cor 2Cor Gal Eph Phi Col 1Th 2Th 1Tim 2Tim Titus Phmn Heb Jas 1Pet 2Pet 1Jn 2Jn 3Jn Jude Rev",
}
LABEL = {book: label for label, books in enumerate(GROUPS.values()) for book in books.split()}


@dataclass(frozen=True)
class Part:
    """Verses in the order of the text: the words of each, its group as a label (n,) int64, and its chapter."""

    verses: list[str]
    labels: np.ndarray
    chapters: list[str]

    def running(self) -> str:
        """All of it as one text: a newline after each verse, one more after each chapter."""
        lines: list[str] = []
        for verse, chapter, following in zip(self.verses, self.chapters, [*self.chapters[1:], ""], strict=True):
            lines.append(f"{verse}\n" if chapter == following else f"{verse}\n\n")
        return "".join(lines)


def split(path: Path) -> tuple[Part, Part]:
    """The training part and the test part of the text in that file."""
    parsed = [found for line in path.read_text(encoding="ascii").splitlines() if (found := VERSE.fullmatch(line))]
    unknown = {found[1] for found in parsed} - set(LABEL)
    if not parsed or unknown:
        raise SystemExit(f"{path}: expected lines as 'Ge1:1 In the beginning', got books {sorted(unknown) or 'none'}")
    chapters = list(dict.fromkeys((found[1], found[2]) for found in parsed))
    rng = np.random.default_rng(SEED)
    test: set[tuple[str, str]] = set()
    for label in range(len(GROUPS)):
        group = [chapter for chapter in chapters if LABEL[chapter[0]] == label]
        drawn = rng.permutation(len(group))[: round(len(group) / TEST_EVERY)]
        test.update(group[index] for index in drawn)
    return (
        _part([found for found in parsed if (found[1], found[2]) not in test]),
        _part([found for found in parsed if (found[1], found[2]) in test]),
    )


def _part(parsed: list[re.Match[str]]) -> Part:
    labels = np.array([LABEL[found[1]] for found in parsed], np.int64)
    return Part([found[4] for found in parsed], labels, [f"{found[1]}{found[2]}" for found in parsed])
