"""Bit packing: integers of 2 or 4 bits side by side in bytes, in the layouts that ONNX and ONNX Runtime read.

ONNX's own element types and MatMulNBits put the first of the elements that share a byte into its lowest bits;
MatMulBnb4, like bitsandbytes, puts it into the highest.
"""

from __future__ import annotations

import sys

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.errors import RecipeError

PACKED_BITS = (2, 4, 8)
"""Widths that divide a byte."""

_TOGETHER = 1 << 16
"""Bytes that are put together at a time: elements that share one are a word, and words are many at once."""


def pack(values: Array, bits: int, *, high_first: bool = False) -> Array:
    """Put whole numbers side by side, along the last axis.

    Args:
        values: whole numbers in 0…2^bits − 1 of any integer type, (…, length).
        bits: 2, 4 or 8.
        high_first: the first element takes the highest bits of its byte instead of the lowest.

    Returns:
        uint8, (…, ceil(length · bits / 8)); what is left of the last byte is 0.

    Raises:
        RecipeError: another width.
    """
    per = _per_byte(bits)
    plain = np.asarray(values).astype(np.uint8, copy=False)
    if per == 1:
        return plain
    rest = -plain.shape[-1] % per
    if rest:
        plain = np.pad(plain, [(0, 0)] * (plain.ndim - 1) + [(0, rest)])
    packed = np.empty((*plain.shape[:-1], plain.shape[-1] // per), np.uint8)
    flat, words = packed.reshape(-1), np.ascontiguousarray(plain).reshape(-1).view(f"<u{per}")
    for start in range(0, flat.size, _TOGETHER):
        part = words[start : start + _TOGETHER]
        found = np.zeros_like(part)
        for place in range(per):
            # from where the element lies in the word to where it belongs in the word's lowest byte
            left = bits * (per - 1 - place if high_first else place) - 8 * place
            found |= part << left if left >= 0 else part >> -left
        flat[start : start + _TOGETHER] = found  # of other bytes nothing is kept
    return packed


def unpack(packed: Array, bits: int, length: int, *, high_first: bool = False) -> Array:
    """Take apart what `pack` put together.

    Args:
        packed: uint8, (…, bytes).
        bits: 2, 4 or 8.
        length: elements along the last axis; padding behind them is dropped.
        high_first: as for `pack`.

    Returns:
        uint8, (…, length).

    Raises:
        RecipeError: another width.
    """
    per = _per_byte(bits)
    plain = np.asarray(packed, np.uint8)
    if per == 1:
        return plain[..., :length]
    values = np.empty((*plain.shape[:-1], plain.shape[-1] * per), np.uint8)
    for place in range(per):
        shift = bits * (per - 1 - place if high_first else place)
        values[..., place::per] = plain >> shift & (1 << bits) - 1
    return values[..., :length]


def pack_blocks(values: Array, bits: int, block: int, fill: Array | int = 0) -> Array:
    """A weight as MatMulNBits reads it.

    Args:
        values: whole numbers in 0…2^bits − 1, (N, K): a row for each output.
        bits: 2, 4 or 8.
        block: elements of a row that share a scale; it packs into whole bytes.
        fill: what the last block of a row is filled up with, one number or one a row; a zero point there makes it 0.

    Returns:
        uint8, (N, ceil(K / block), block · bits / 8).

    References:
        ONNX Runtime, contrib operator MatMulNBits.
    """
    rows, length = values.shape
    plain = np.asarray(values).astype(np.uint8, copy=False)
    short = -length % block
    if short:
        tail = np.broadcast_to(np.asarray(fill, np.uint8).reshape(-1, 1), (rows, short))
        plain = np.concatenate([plain, tail], axis=1)
    return pack(plain, bits).reshape(rows, -1, block * bits // 8)


def unpack_blocks(packed: Array, bits: int, length: int) -> Array:
    """The integers of a weight of MatMulNBits.

    Args:
        packed: uint8, (N, blocks, bytes of a block).
        bits: 2, 4 or 8.
        length: K, elements of a row.

    Returns:
        uint8, (N, K).
    """
    return unpack(packed.reshape(packed.shape[0], -1), bits, length)


def turn_into(out: Array, array: Array) -> None:
    """Write the transpose of each matrix array[:, i] side by side, eight of its rows as one number where they can be.

    Bytes one by one are four times as slow to turn.

    Args:
        out: (columns, up to count · rows); of what does not fit in, the end is left out. Its last axis is contiguous.
        array: of the type of ``out``, contiguous, (rows, count, columns).
    """
    rows, count, columns = array.shape
    if array.itemsize != 1 or rows % 8 or out.shape[1] % 8 or sys.byteorder != "little":
        for index in range(count):
            piece = out[:, index * rows : (index + 1) * rows]
            piece[...] = array[: piece.shape[1], index].T
        return
    words: Array = array.view(np.uint8)
    for kind in (np.uint16, np.uint32, np.uint64):
        pairs = words.reshape(words.shape[0] // 2, 2, count, columns)
        joined = pairs[:, 1].astype(kind)
        joined <<= 8 * words.itemsize
        joined |= pairs[:, 0]
        words = joined
    wide = out.view(np.uint64)
    for index in range(count):
        piece = wide[:, index * rows // 8 : (index + 1) * rows // 8]
        piece[...] = words[: piece.shape[1], index].T


def _per_byte(bits: int) -> int:
    if bits not in PACKED_BITS:
        raise RecipeError(f"packing: {bits} bits do not divide a byte; use {', '.join(map(str, PACKED_BITS))}")
    return 8 // bits
