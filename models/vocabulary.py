"""Byte-pair encoding: a vocabulary learnt from a text, kept as a list of strings in ``text.vocab.json``.

Piece 0 is padding, pieces 1 to 96 are the newline and the printable ASCII characters, the rest are merged from two
earlier pieces each (Sennrich et al., *Neural Machine Translation of Rare Words with Subword Units*, 2016). Ids below 97
are a vocabulary of characters. Joining the strings of some ids gives back their text.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

CHARACTERS = ["\n", *map(chr, range(32, 127))]
PADDING = 0
CHARACTER_PIECES = 1 + len(CHARACTERS)
# Merges stay within a word and the space before it, or within one sign.
WORD = re.compile(r" ?[A-Za-z]+|[^A-Za-z]")


class Vocabulary:
    """Encodes and decodes text.

    Args:
        pieces: the string of each id.
    """

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces
        self.ids = {piece: index for index, piece in enumerate(pieces) if index != PADDING}
        self._known: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, text: str) -> list[int]:
        """The ids of a text of the characters above."""
        return [index for word in WORD.findall(text) for index in self._word(word)]

    def characters(self, text: str) -> list[int]:
        """The ids of a text, one a character."""
        return [self.ids[character] for character in text]

    def decode(self, ids: list[int]) -> str:
        """The text of some ids; padding is left out."""
        return "".join(self.pieces[index] for index in ids if index != PADDING)

    def _word(self, word: str) -> list[int]:
        if word not in self._known:
            parts = list(word)
            while True:
                joined = [(self.ids.get(a + b, len(self)), at) for at, (a, b) in enumerate(pairwise(parts))]
                first, at = min(joined, default=(len(self), 0))
                if first == len(self):
                    break
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            self._known[word] = [self.ids[part] for part in parts]
        return self._known[word]

    def save(self, path: Path) -> None:
        """Write the pieces as JSON."""
        path.write_text(json.dumps(self.pieces, indent=0) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what ``save`` wrote."""
        return cls(json.loads(path.read_text(encoding="utf-8")))


def learn(text: str, size: int) -> Vocabulary:
    """Merge the most frequent pair of neighbours, of equals the first by code, until there are ``size`` pieces."""
    words = [(list(word), count) for word, count in sorted(Counter(WORD.findall(text)).items())]
    pairs: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[int]] = {}
    for number, (parts, count) in enumerate(words):
        for pair in pairwise(parts):
            pairs[pair] += count
            where.setdefault(pair, set()).add(number)
    pieces = ["<pad>", *CHARACTERS]
    while len(pieces) < size:
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if "".join(best) not in pieces:
            pieces.append("".join(best))
        for number in sorted(where.pop(best)):
            parts, count = words[number]
            for pair in pairwise(parts):
                pairs[pair] -= count
            at = 0
            while at < len(parts) - 1:
                if (parts[at], parts[at + 1]) == best:
                    parts[at : at + 2] = ["".join(best)]
                at += 1
            for pair in pairwise(parts):
                pairs[pair] += count
                where.setdefault(pair, set()).add(number)
        del pairs[best]
    return Vocabulary(pieces)
