"""Names of models and files as a terminal may be given them."""

from __future__ import annotations

_ESCAPED = [*range(32), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
"""Control characters, line and paragraph separators, and marks that turn the direction of the text around."""

_ESCAPES = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _ESCAPED}
_ESCAPES |= {9: "\\t", 10: "\\n", 13: "\\r"}
_IN_LINES = {code: escape for code, escape in _ESCAPES.items() if code != 10}


def printable(text: str, *, lines: bool = False) -> str:
    """Escape what would move the cursor, change colours or break a table.

    Args:
        text: names of nodes and values may hold any character.
        lines: keep line breaks, where the text is several lines by intention.
    """
    return text.translate(_IN_LINES if lines else _ESCAPES)
