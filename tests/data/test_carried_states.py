"""Samples without states are completed by what the float model leaves, as if they were fed by hand."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxq.data import carried_states
from onnxq.data.carried_states import Recurrence
from onnxq.data.readers import Reader, open_reader, split
from onnxq.errors import CalibrationError, RecipeError
from onnxq.runtime.session import open_session
from tests.recurrent_models import HIDDEN, WIDTH, Feed, drawn, fed_by_hand, fsmn, growing, gru, lstm

ZERO = np.zeros((1, 1, HIDDEN), np.float32)
UNNAMED = ("s1", "s2", "o1", "o2")


class Carrying:
    """A model whose runs are counted."""

    def __init__(self, model: onnx.ModelProto, asked: Mapping[str, str] | None = None) -> None:
        self.session = open_session(model.SerializeToString(), threads=1)
        self.runs = 0
        self.recurrence = Recurrence(self.session.output_specs, self._run, asked or {})

    def _run(self, feed: Feed, outputs: Sequence[str]) -> list[Any]:
        self.runs += 1
        return self.session.run(feed, outputs)

    def open(self, samples: object) -> Reader:
        return open_reader(samples, self.session.input_specs, recurrence=self.recurrence)


def same(left: Sequence[Feed] | Reader, right: Sequence[Feed]) -> None:
    left = list(left)
    assert len(left) == len(right)
    for got, want in zip(left, right, strict=True):
        assert set(got) == set(want)
        for name in want:
            np.testing.assert_array_equal(got[name], want[name], err_msg=name)


CASES = {
    "h, hn": (gru(), {"hn": "h"}, {"h": ZERO}, (1, WIDTH), {}),
    "state, stateN": (gru("state", "stateN"), {"stateN": "state"}, {"state": ZERO}, (1, WIDTH), {}),
    "of a fixed batch": (gru(batch=1), {"hn": "h"}, {"h": ZERO}, (1, WIDTH), {}),
    "of an unnamed batch": (gru(batch=None), {"hn": "h"}, {"h": ZERO}, (1, WIDTH), {}),
    "of several items": (gru(), {"hn": "h"}, {"h": np.zeros((1, 3, HIDDEN), np.float32)}, (3, WIDTH), {}),
    "by shape": (gru("a", "b"), {"b": "a"}, {"a": ZERO}, (1, WIDTH), {}),
    "h0, c0": (lstm(), {"hn": "h0", "cn": "c0"}, {"h0": ZERO, "c0": ZERO}, (1, WIDTH), {}),
    "named by the user": (
        lstm(UNNAMED), {"o1": "s1", "o2": "s2"}, {"s1": ZERO, "s2": ZERO}, (1, WIDTH), {"o1": "s1", "o2": "s2"},
    ),
    "caches": (
        fsmn(), {"out_cache0": "in_cache0", "out_cache1": "in_cache1"},
        {f"in_cache{i}": np.zeros((1, 8, 3), np.float32) for i in range(2)}, (1, 8, 5), {},
    ),
    "caches of an open length": (
        fsmn(length="K"), {"out_cache0": "in_cache0", "out_cache1": "in_cache1"},
        {f"in_cache{i}": np.zeros((1, 8, 3), np.float32) for i in range(2)}, (1, 8, 5), {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_states_are_fed_as_by_hand(case: str) -> None:
    model, pairs, zeros, shape, asked = CASES[case]
    samples = drawn(9, shape)
    reader = Carrying(model, asked).open(samples)
    same(reader, fed_by_hand(model, samples, pairs, zeros))
    assert reader.states == pairs
    assert len(reader.notes) == 1
    assert "carried from one sample to the next" in reader.notes[0]


def test_every_form_of_samples_is_one_sequence(tmp_path: Path) -> None:
    samples = drawn(6)
    expected = fed_by_hand(gru(), samples, {"hn": "h"}, {"h": ZERO})
    np.savez(tmp_path / "all.npz", x=np.concatenate([sample["x"] for sample in samples]))
    for form in ("npz", "npy"):
        (tmp_path / form).mkdir()
        for i, sample in enumerate(samples):
            place = tmp_path / form / f"{i:04d}.{form}"
            np.save(place, sample["x"]) if form == "npy" else np.savez(place, x=sample["x"])  # type: ignore[func-returns-value]

    class NextReader:
        def __init__(self) -> None:
            self.rewind()

        def rewind(self) -> None:
            self.left = iter(samples)

        def get_next(self) -> Feed | None:
            return next(self.left, None)

    forms: list[object] = [
        tmp_path / "all.npz", tmp_path / "npz", tmp_path / "npy", samples, iter(samples), lambda: iter(samples),
        NextReader(), [sample["x"] for sample in samples], [(sample["x"],) for sample in samples],
    ]  # fmt: skip
    readers = [Carrying(gru()).open(form) for form in forms]
    for reader in readers:
        same(reader, expected)
        same(reader, expected)
    assert len({reader.hash for reader in readers}) == 1


def test_parts_see_what_the_whole_sees_in_any_order_and_run_nothing_again() -> None:
    samples = drawn(10)
    expected = fed_by_hand(gru(), samples, {"hn": "h"}, {"h": ZERO})
    model = Carrying(gru())
    reader = model.open(samples)
    used, held_out = split(reader)
    same(held_out, expected[8:])
    same(used, expected[:8])
    runs = model.runs
    for part, want in ((held_out, expected[8:]), (used, expected[:8]), (reader, expected), (held_out, expected[8:])):
        same(part, want)
        assert part.states == {"hn": "h"}
    assert model.runs == runs <= len(samples) + 2


def test_reading_twice_gives_the_same_bits_where_nothing_may_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carried_states, "_KEPT_BYTES", 0)
    samples = drawn(10)
    expected = fed_by_hand(gru(), samples, {"hn": "h"}, {"h": ZERO})
    used, held_out = split(Carrying(gru()).open(samples))
    for _ in range(2):
        same(held_out, expected[8:])
        same(used, expected[:8])


def test_a_sample_that_holds_the_state_starts_a_new_sequence() -> None:
    samples = drawn(6)
    samples[3]["h"] = np.full((1, 1, HIDDEN), 0.5, np.float32)
    reader = Carrying(gru()).open(samples)
    same(reader, fed_by_hand(gru(), samples, {"hn": "h"}, {"h": ZERO}))
    same(reader.part(4, 6), list(reader)[4:])
    assert reader.notes[0].endswith("and starts at zeros")
    samples[0]["h"] = np.full((1, 1, HIDDEN), -0.5, np.float32)
    reader = Carrying(gru()).open(iter(samples))
    assert reader.notes[0].endswith("and starts as the first sample says")
    same(reader.part(2, 6), fed_by_hand(gru(), samples, {"hn": "h"}, {})[2:])


def test_states_that_every_sample_holds_are_used_as_they_are_unless_the_user_says_otherwise() -> None:
    samples = drawn(6)
    for i, sample in enumerate(samples):
        sample["h"] = np.full((1, 1, HIDDEN), i / 10 - 0.3, np.float32)
    model = Carrying(gru())
    reader = model.open(samples)
    same(reader, samples)
    same(reader.part(3, 6), samples[3:])
    assert (model.runs, reader.notes, reader.states) == (0, [], {"hn": "h"})

    asked = Carrying(gru(), {"hn": "h"}).open(samples)
    same(asked, fed_by_hand(gru(), [samples[0], *drawn(6)[1:]], {"hn": "h"}, {}))
    assert "starts as the first sample says" in asked.notes[0]
    del samples[2]["h"]  # not every one now: each that holds it starts a sequence
    same(Carrying(gru(), {"hn": "h"}).open(samples), fed_by_hand(gru(), samples, {"hn": "h"}, {}))


def test_another_batch_size_starts_anew() -> None:
    samples = [*drawn(3, (4, WIDTH)), *drawn(2, (1, WIDTH))]
    found = list(Carrying(gru()).open(samples))
    whole = fed_by_hand(gru(), samples[:3], {"hn": "h"}, {"h": np.zeros((1, 4, HIDDEN), np.float32)})
    same(found, [*whole, *fed_by_hand(gru(), samples[3:], {"hn": "h"}, {"h": ZERO})])


def test_a_state_that_grows_starts_empty_in_each_sample_unless_it_is_asked_for() -> None:
    samples = drawn(4, (1, 3, 8))
    reader = Carrying(growing()).open(samples)
    empty = np.zeros((1, 0, 8), np.float32)
    same(reader, [{**sample, "past_key_values.0.key": empty} for sample in samples])
    assert "each sample starts with an empty one" in reader.notes[0]
    pairs = {"present.0.key": "past_key_values.0.key"}
    asked = Carrying(growing(), pairs).open(samples)
    same(asked, fed_by_hand(growing(), samples, pairs, {"past_key_values.0.key": empty}))


def test_what_is_missing_and_is_no_state_is_said(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"input 's1' is missing.*--state OUTPUT=s1 says which output"):
        Carrying(lstm(UNNAMED)).open(drawn(2))
    with pytest.raises(CalibrationError, match="input 'x' is missing"):
        Carrying(gru()).open([{"h": ZERO}])
    with pytest.raises(CalibrationError, match=r"no input 'hh'.*did you mean 'h'"):
        Carrying(gru()).open([{**drawn(1)[0], "hh": ZERO}])
    with pytest.raises(RecipeError, match="the model has no output 'hm'"):
        Carrying(gru(), {"hm": "h"}).open(drawn(2))
    np.savez(tmp_path / "a.npz", h=np.zeros((4, 1, 1, HIDDEN), np.float32))
    with pytest.raises(CalibrationError, match="input 'x' is missing"):
        Carrying(gru()).open(tmp_path / "a.npz")


def test_zeros_that_the_model_does_not_run_with_are_said() -> None:
    def refuse(feed: Feed, outputs: Sequence[str]) -> list[Any]:
        return open_session(gru(batch=2).SerializeToString()).run(feed, outputs)

    session = open_session(gru().SerializeToString())
    recurrence = Recurrence(session.output_specs, refuse)
    with pytest.raises(CalibrationError, match=r"input 'h' .* is missing, and the model does not run with zeros"):
        open_reader(drawn(2), session.input_specs, recurrence=recurrence)


def test_memory_does_not_grow_with_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carried_states, "_KEPT_BYTES", 1 << 16)
    length = 20000

    def run(feed: Feed, outputs: Sequence[str]) -> list[Any]:
        return [feed["h"] + feed["x"].sum()]

    inputs = open_session(gru().SerializeToString()).input_specs
    recurrence = Recurrence(open_session(gru().SerializeToString()).output_specs, run)
    specs = [inputs[0], carried_states.replace(inputs[1], shape=(1, length))]
    outputs = [recurrence.outputs[0], carried_states.replace(recurrence.outputs[1], shape=(1, length))]

    def stream(count: int) -> Iterator[Feed]:
        return ({"x": np.full((1, WIDTH), i, np.float32)} for i in range(count))

    def peak(count: int) -> int:
        reader = open_reader(stream(count), specs, recurrence=Recurrence(outputs, run))
        tracemalloc.start()
        for _ in itertools.chain(reader, reader):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    states = 180 * 4 * length  # bytes of those that are between, if they were kept
    assert peak(200) < peak(20) + states // 20
