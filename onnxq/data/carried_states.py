"""Samples of a recurrent model that do not hold its states: each is completed by what the sample before it left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed, InputSpec, check_feed
from onnxq.data.sources import Source
from onnxq.errors import CalibrationError, ModelError

RunModel: TypeAlias = Callable[[Feed, Sequence[str]], Sequence[Any]]
"""Runs the float model on a feed and gives the outputs of these names."""

_KEPT_BYTES = 32 << 20
"""States of samples that were read once are kept up to this size, so that reading again runs nothing."""

_PAST = ("past", "cache")


@dataclass(frozen=True)
class Recurrence:
    """What is needed to carry states from one sample to the next.

    Attributes:
        outputs: of the model.
        run: runs the float model.
        asked: pairs of output and input that the user named.
    """

    outputs: Sequence[InputSpec]
    run: RunModel
    asked: Mapping[str, str] = field(default_factory=dict)


class CarriedSource:
    """Samples completed by the states that the float model had reached, in the order of the samples.

    A state that a sample lacks is what the float model gave for the sample before. It starts at zeros, and starts anew
    where a sample has another batch size. A sample that holds the state is used as it is and so starts a new sequence;
    if all of them hold it and the user asks for carrying, only the first one's counts. A state that grows with each
    call, as the past keys of a decoder, is carried only if that is asked for: else each sample starts with an empty
    one.

    One sample and its states are in memory, and at most `_KEPT_BYTES` of states of other samples.

    Attributes:
        notes: what a user should know.
    """

    def __init__(
        self, source: Source, inputs: Sequence[InputSpec], pairs: Mapping[str, str], recurrence: Recurrence
    ) -> None:
        """Complete the samples of a source.

        Args:
            source: samples that may lack states.
            inputs: what the model takes.
            pairs: input by output.
            recurrence: runs the model.
        """
        self.notes = list(source.notes)
        self._source, self._inputs, self._run = source, list(inputs), recurrence.run
        self._outputs = {name: output for output, name in pairs.items()}
        self._asked = set(recurrence.asked.values())
        self._specs = {spec.name: spec for spec in inputs if spec.name in self._outputs}
        self._loose = [replace(spec, optional=spec.name in self._specs) for spec in inputs]
        self._kept: dict[int, Feed] = {}
        self._kept_bytes = 0
        self._zeros: dict[str, tuple[int | None, ...]] = {}
        self._growing: set[str] = set()
        self._ignored: set[str] | None = None if self._asked else set()

    @property
    def count(self) -> int | None:
        """Feeds; None where that is not known yet."""
        return self._source.count

    def labels(self, start: int, stop: int | None) -> Array | None:
        """Labels of those samples."""
        return self._source.labels(start, stop)

    def feeds(self, start: int, stop: int | None) -> Iterator[Feed]:
        """The samples ``start`` to ``stop``, complete; the same bits at each reading.

        Raises:
            CalibrationError: a sample does not fit, or no state can be made up or carried for it.
            ModelError: the float model cannot be run on a sample.
        """
        if stop is not None and start >= stop:
            return
        first = start
        if start not in self._kept and any(self._missing(sample) for sample in self._read(start, start + 1)):
            first = max((index for index in self._kept if index < start), default=0)
        before: Feed | None = None
        for index, given in enumerate(self._read(first, stop), first):
            states = self._states(index, given, before, keep=index == start)
            both = {**states, **given}
            before = {spec.name: both[spec.name] for spec in self._inputs}
            if index >= start:
                yield dict(before)

    def describe(self) -> None:
        """Say in the notes what is carried, from the first two samples."""
        held = [set(given) for given in self._read(0, 2)]
        missing = [name for name in self._specs if any(name not in names for names in held)]
        if not missing:
            return
        for _ in self.feeds(0, len(held)):
            pass
        carried = [name for name in missing if name not in self._growing or name in self._asked]
        fresh = [name for name in missing if name not in carried]
        for begun, names in (
            ("at zeros", [name for name in carried if name not in held[0]]),
            ("as the first sample says", [name for name in carried if name in held[0]]),
        ):
            if names:
                self.notes.append(
                    f"samples: {_listed('input', names)} {_are(names)} carried from one sample to the next "
                    f"({', '.join(f'{self._outputs[name]} → {name}' for name in names[:3])}), in their order, "
                    f"and start{'s' if len(names) == 1 else ''} {begun}"
                )
        if fresh:
            self.notes.append(
                f"samples: {_listed('input', fresh)} {_are(fresh)} not in the data and grow"
                f"{'s' if len(fresh) == 1 else ''} with each call, so each sample starts with an empty one; "
                f"--state {self._outputs[fresh[0]]}={fresh[0]} carries it on"
            )

    def _read(self, start: int, stop: int | None) -> Iterator[Feed]:
        """Samples as they are, without the states that the user wants carried although every sample holds them."""
        ignored = self._states_to_ignore()
        for index, sample in enumerate(self._source.feeds(start, stop), start):
            given = check_feed(sample, self._loose, f"calibration sample {index}")
            yield given if index == 0 or not ignored else {n: a for n, a in given.items() if n not in ignored}

    def _states_to_ignore(self) -> set[str]:
        if self._ignored is None:
            everywhere = set(self._asked)
            for index, sample in enumerate(self._source.feeds(0, None)):
                everywhere &= set(check_feed(sample, self._loose, f"calibration sample {index}"))
                if not everywhere:
                    break
            self._ignored = everywhere
        return self._ignored

    def _missing(self, given: Feed) -> list[str]:
        return [name for name in self._specs if name not in given]

    def _states(self, index: int, given: Feed, before: Feed | None, *, keep: bool) -> Feed:
        """The states that a sample lacks."""
        missing = self._missing(given)
        if not missing:
            return {}
        found = self._kept.get(index)
        if found is None:
            found = {} if before is None else self._carried(missing, given, before)
            rest = [name for name in missing if name not in found]
            found |= self._started(rest, {**given, **found})
            size = sum(array.nbytes for array in found.values())
            if keep or self._kept_bytes + size <= _KEPT_BYTES:
                self._kept[index] = found
                self._kept_bytes += size
        return found

    def _carried(self, missing: Sequence[str], given: Feed, before: Feed) -> Feed:
        """What the sample before left, where this one goes on from it."""
        names = [name for name in missing if name in self._asked or name not in self._growing]
        if not names:
            return {}
        arrays = self._run(before, [self._outputs[name] for name in names])
        found = {name: np.asarray(array) for name, array in zip(names, arrays, strict=True)}
        for name, array in found.items():
            array.flags.writeable = False  # it is handed out at each reading
            spec = self._specs[name]
            fixed = array.dtype == spec.dtype and _fits(array.shape, spec)
            if name in self._asked and not fixed:
                raise CalibrationError(
                    f"--state {self._outputs[name]}={name}: the output is {array.dtype} {array.shape}, the input takes "
                    f"{spec.dtype} {spec.shape_text}; name another pair"
                )
            if not fixed or not self._goes_on(name, array, given):
                return {}
        return {n: array for n, array in found.items() if n in self._asked or array.shape == before[n].shape}

    def _goes_on(self, name: str, array: Array, given: Feed) -> bool:
        """Whether a state has the batch size of a sample."""
        spec = self._specs[name]
        settled = self._zeros.get(name)
        known = self._lengths(spec, given, guess=settled is not None)
        own = settled if settled is not None else [None] * len(known)
        axes = zip(known, array.shape, own, strict=False)
        return all(length in (None, got) or fixed is not None for length, got, fixed in axes)

    def _started(self, names: Sequence[str], feed: Feed) -> Feed:
        """Zeros for states at the start of a sequence; the lengths of open axes are found once, by running."""
        if any(name not in self._zeros for name in names):
            self._find_lengths(names, feed)
        shapes = {}
        for name in names:
            known = self._lengths(self._specs[name], feed)
            shapes[name] = tuple(
                length if length is not None else from_feed or 0
                for length, from_feed in zip(self._zeros[name], known, strict=True)
            )
        return self._made(shapes)

    def _made(self, shapes: Mapping[str, tuple[int, ...]]) -> Feed:
        return {name: np.zeros(shape, self._specs[name].dtype) for name, shape in shapes.items()}

    def _find_lengths(self, names: Sequence[str], feed: Feed) -> None:
        """Try lengths for the open axes, and take those that the state has after one call if they last."""
        outputs = [self._outputs[name] for name in names]
        failure: ModelError | None = None
        tried: list[dict[str, tuple[int, ...]]] = []
        for other in (1, 0):
            shapes = {name: self._guess(self._specs[name], feed, other) for name in names}
            if shapes in tried:
                continue
            tried.append(shapes)
            try:
                after = self._run({**feed, **self._made(shapes)}, outputs)
            except ModelError as error:
                failure = failure or error
                continue
            left = {name: tuple(np.shape(array)) for name, array in zip(names, after, strict=True)}
            grown = {name for name in names if left[name] != shapes[name]}
            if grown and all(_fits(left[name], self._specs[name]) for name in grown):
                longer = {name: left[name] for name in names}
                try:
                    after = self._run({**feed, **self._made(longer)}, outputs)
                    grown = {
                        name
                        for name, array in zip(names, after, strict=True)
                        if tuple(np.shape(array)) != longer[name] or self._begins_empty(name, shapes[name])
                    }
                    shapes = {name: shapes[name] if name in grown else longer[name] for name in names}
                except ModelError:
                    pass  # it does not take what it gave: such a state starts anew in each sample
            self._growing |= grown
            for name in names:
                known = self._lengths(self._specs[name], feed)
                self._zeros[name] = tuple(
                    None if length == from_feed and not isinstance(dim, int) else length
                    for length, from_feed, dim in zip(shapes[name], known, self._specs[name].shape, strict=True)
                )
            return
        spec = self._specs[names[0]]
        raise CalibrationError(
            f"calibration data: input '{spec.name}' {spec.shape_text} is missing, and the model does not run "
            f"with zeros in it ({failure}); pass it in the first sample"
        )

    def _begins_empty(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a state has an axis of past tokens and the model takes none of them.

        With a mask of the new tokens alone, attention in one operator puts these in the place of older ones, and a
        cache seems to have one length for good.
        """
        dims = zip(self._specs[name].shape, shape, strict=False)
        return any(length == 0 and isinstance(dim, str) and "past" in dim.lower() for dim, length in dims)

    def _guess(self, spec: InputSpec, feed: Feed, other: int) -> tuple[int, ...]:
        known = self._lengths(spec, feed)
        return tuple(
            length if length is not None else 1 - other if _is_past(dim) else other
            for length, dim in zip(known, spec.shape, strict=True)
        )

    def _lengths(self, spec: InputSpec, feed: Feed, *, guess: bool = True) -> tuple[int | None, ...]:
        """Lengths of a state that its declaration and the other inputs of a sample say; None for those they do not.

        An axis has the length that one of its name has in another input. The first that is open and has no such name is
        taken for the batch of the others with ``guess``, unless its name says that it is a past.
        """
        lengths: dict[str, int] = {}
        batch: int | None = None
        for other in self._inputs:
            if other.name in self._specs or other.name not in feed or not other.shape:
                continue
            array = feed[other.name]
            lengths = {d: n for d, n in zip(other.shape, array.shape, strict=True) if isinstance(d, str)} | lengths
            if batch is None and array.ndim > 1:
                batch = array.shape[0]
        found = [dim if isinstance(dim, int) else lengths.get(dim or "") for dim in spec.shape]
        axis = next((i for i, dim in enumerate(spec.shape) if not isinstance(dim, int)), None)
        if guess and axis is not None and found[axis] is None and not _is_past(spec.shape[axis]):
            found[axis] = batch
        return tuple(found)


def _fits(shape: tuple[int, ...], spec: InputSpec) -> bool:
    """Whether an array of that shape has the rank and the fixed lengths of an input."""
    if not spec.shape:
        return True
    return len(shape) == len(spec.shape) and all(
        not isinstance(dim, int) or dim == length for dim, length in zip(spec.shape, shape, strict=True)
    )


def _is_past(dim: object) -> bool:
    return isinstance(dim, str) and any(word in dim.lower() for word in _PAST)


def _listed(what: str, names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what}{'s' if len(names) > 1 else ''} {shown}{more}"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
