"""Data as other libraries give it is taken; damaged and hostile data is one line, soon and in little memory."""

from __future__ import annotations

import random
import resource
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.data.feeds import InputSpec, check_feed
from onnxq.data.readers import Reader, open_reader
from onnxq.errors import CalibrationError, OnnxqError

X = InputSpec("x", np.dtype(np.float32), ("N", 4))
Y = InputSpec("y", np.dtype(np.float32), ("N", 4))


class Tensor:
    """What torch's tensors do: no array while gradients flow to them."""

    shape = (1, 4)

    def __init__(self, *, requires_grad: bool = True) -> None:
        self.requires_grad = requires_grad

    def detach(self) -> Tensor:
        return Tensor(requires_grad=False)

    def cpu(self) -> Tensor:
        return self

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad")
        return np.ones((1, 4), np.float32)


def array() -> np.ndarray[Any, Any]:
    return np.ones((1, 4), np.float32)


@pytest.mark.parametrize(
    "sample",
    [
        {"x": Tensor()},
        {"x": array(), "label": 3, "id": "a"},
        (array(), 3),
        [array(), array()],
        (Tensor(), Tensor()),
        ({"x": array()}, 3),
        array(),
        Tensor(),
    ],
)
def test_samples_as_loaders_give_them(sample: object) -> None:
    feed = check_feed(sample, [X], "sample 0")
    assert list(feed) == ["x"]
    np.testing.assert_array_equal(feed["x"], array())


def test_arrays_are_taken_in_the_order_of_the_inputs() -> None:
    feed = check_feed((array(), 2 * array(), 5), [X, Y], "sample 0")
    np.testing.assert_array_equal(feed["y"], 2 * array())
    with pytest.raises(CalibrationError, match="is a tuple, not a dict"):
        check_feed((array(), 3), [X, Y], "sample 0")


def test_what_makes_no_array_is_said() -> None:
    with pytest.raises(CalibrationError, match="input 'x' is a list that makes no array"):
        check_feed({"x": [[1.0], [1.0, 2.0]]}, [X], "sample 0")


def leaves() -> Iterator[dict[str, Any]]:
    yield {"x": array()}
    raise SystemExit(0)


def leaves_at_once() -> list[dict[str, Any]]:
    raise SystemExit


@pytest.mark.parametrize("source", [leaves, leaves(), leaves_at_once])
def test_leaving_the_program_is_a_failure_of_the_reader(source: object) -> None:
    with pytest.raises(CalibrationError, match="raised SystemExit"):
        list(open_reader(source, [X]))


def npz(folder: Path, header: bytes, body: bytes = b"", name: str = "x") -> Path:
    """An .npz whose array has that header."""
    path = folder / "d.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body)
        if name != "x":
            good = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4), }\n"
            archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(good).to_bytes(2, "little") + good + bytes(32))
    return path


def header(shape: str, *, fortran: bool = False, kind: str = "<f4") -> bytes:
    return f"{{'descr': '{kind}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n".encode()


HEADERS: dict[str, bytes] = {
    "huge": header("(4611686018427387904, 4)"), "huge-fortran": header("(10, 9999999999999)", fortran=True),
    "overflow": header(f"({10**40}, 4)"), "negative": header("(-1, 4)"), "cut": header("(2, 4)")[:30],
    "open": b"{'descr': (((\n", "empty": b"", "deep": b"(" * 3000, "code": b"__import__('os')\n", "text": header("'a'"),
    "float": header("(1.5, 4)"), "kind": header("(2, 4)", kind="<q9"),
    "unicode": header("(2, 4)", kind="<U999999999"), "nul": b"\x00" * 40, "scalar": header("()"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["x", "labels"])
@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_lie(case: str, name: str, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CalibrationError, match=r"d\.npz"):
        reader = open_reader(npz(tmp_path, HEADERS[case], bytes(32), name), [X])
        list(reader)
        _ = reader.labels
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_of_very_many_samples_the_first_are_used(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "many.npz", x=np.zeros((3_000_000, 4), np.float32)[:, :4])
    reader: Reader = open_reader(tmp_path / "many.npz", [X])
    assert reader.count_feeds() == 1 << 16
    assert "the first 65536 of 3000000 samples are used" in reader.notes[0]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_damage_to_a_file_is_one_line(save: Callable[..., None], tmp_path: Path) -> None:
    good, bad, chance = tmp_path / "good.npz", tmp_path / "bad.npz", random.Random(0)
    save(good, x=np.ones((5, 4), np.float32), labels=np.arange(5))
    content = good.read_bytes()
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(chance.randrange(1, 5)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        bad.write_bytes(damaged[: chance.randrange(len(damaged))] if chance.random() < 0.2 else damaged)
        try:
            reader = open_reader(bad, [X])
            list(reader)
            _ = reader.labels
        except OnnxqError as error:
            assert "\n" not in str(error)
