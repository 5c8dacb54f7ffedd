"""Which output of a recurrent or streaming model is the next call's input: by name, by shape, or as the user says."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from onnxq.data.feeds import Dim
from onnxq.errors import RecipeError, closest


class Described(Protocol):
    """An input or an output: what it is called and what it holds."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """Element type; None where it is not known, which agrees with all."""

    @property
    def shape(self) -> Sequence[Dim]:
        """Lengths, names of open axes, or None; () where the rank is not known."""


@dataclass(frozen=True)
class Tensor:
    """An input or an output of a graph."""

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[Dim, ...]


_TIME = frozenset("in input inp out output new next past present prev previous cur current last old n t".split())
_NO_STATES = "bUSO"


def state_pairs(
    inputs: Sequence[Described], outputs: Sequence[Described], given: Collection[str] | None = None
) -> dict[str, str]:
    """The input that each state output goes back into at the next call, by name of the output.

    The two have names that differ by a word for time or direction (h and hn, state and stateN, in_cache0 and
    out_cache0, past.0.key and present.0.key), the same type, and shapes that agree where both are known. Where no two
    names pair, an input that the samples do not hold is paired by type and shape: with the only output that has them,
    if no other such input has them too. Masks and booleans are no states.

    Args:
        inputs: of the model.
        outputs: of the model.
        given: names of the inputs that the samples hold; None pairs by name alone, since an answer may well have the
            shape of a question.

    Returns:
        Nothing where no input or no output would be left besides: an image and the image made of it are no state.
    """
    found = _by_name(inputs, outputs)
    if not found and given is not None:
        found = _by_shape([spec for spec in inputs if spec.name not in given], outputs)
    return found if len(found) < min(len(inputs), len(outputs)) else {}


def possible_states(inputs: Sequence[Described], outputs: Sequence[Described]) -> set[str]:
    """Inputs that `state_pairs` may pair, whatever the samples hold."""
    named = state_pairs(inputs, outputs)
    if named or len(inputs) < 2 or len(outputs) < 2:
        return set(named.values())
    return {spec.name for spec in inputs if any(_alike(spec, output) for output in outputs)}


def with_asked(
    pairs: Mapping[str, str], asked: Mapping[str, str], inputs: Sequence[Described], outputs: Sequence[Described]
) -> dict[str, str]:
    """The pairs that the user names, and those found that do not contradict them.

    Raises:
        RecipeError: no such input or output, one input for two outputs, or types or shapes that do not agree.
    """
    by_name = {spec.name: spec for spec in inputs}, {spec.name: spec for spec in outputs}
    for output, name in asked.items():
        where = f"--state {output}={name}"
        for what, wanted, known in (("output", output, by_name[1]), ("input", name, by_name[0])):
            if wanted not in known:
                near = closest(wanted, known, cutoff=0.4)
                hint = f"did you mean '{near}'? " if near else ""
                listed = ", ".join(f"'{entry}'" for entry in known) or "none"
                raise RecipeError(f"{where}: the model has no {what} '{wanted}'; {hint}its {what}s are {listed}")
        before, after = by_name[0][name], by_name[1][output]
        if before.dtype is not None and after.dtype is not None and before.dtype != after.dtype:
            raise RecipeError(f"{where}: the output is {after.dtype}, the input takes {before.dtype}; name others")
        if not _agree(_dims(before), _dims(after)):
            raise RecipeError(
                f"{where}: the output has shape {tuple(after.shape)}, the input takes {tuple(before.shape)}; "
                "name another pair"
            )
    if len(set(asked.values())) < len(asked):
        twice = next(name for name in asked.values() if list(asked.values()).count(name) > 1)
        raise RecipeError(f"--state: input '{twice}' is named for two outputs; one goes into it")
    taken = set(asked.values())
    return {**{out: name for out, name in pairs.items() if out not in asked and name not in taken}, **asked}


def _by_name(inputs: Sequence[Described], outputs: Sequence[Described]) -> dict[str, str]:
    found: dict[str, str] = {}
    free = {spec.name: spec for spec in inputs if _may_be_state(spec)}
    for output in outputs:
        stem = _stem(output.name)
        for name, spec in free.items():
            same_name = stem and stem == _stem(name) and name != output.name
            if same_name and _same_type(spec, output) and _agree(_dims(spec), _dims(output)):
                found[output.name] = name
                del free[name]
                break
    return found


def _by_shape(inputs: Sequence[Described], outputs: Sequence[Described]) -> dict[str, str]:
    """Pairs of which neither has another candidate; equal shapes go before those that merely agree."""
    found: dict[str, str] = {}
    for exact in (True, False):
        left = [spec for spec in inputs if spec.name not in found.values()]
        open_ = [output for output in outputs if output.name not in found]
        for spec in left:
            fits = [o for o in open_ if _alike(spec, o) and (not exact or tuple(spec.shape) == tuple(o.shape))]
            if len(fits) == 1 and sum(_alike(other, fits[0]) for other in left) == 1:
                found[fits[0].name] = spec.name
    return found


def _alike(spec: Described, output: Described) -> bool:
    """Same known type and rank, an axis of one fixed length in both, and no axis of different ones."""
    left, right = _dims(spec), _dims(output)
    return (
        _may_be_state(spec)
        and spec.dtype is not None
        and spec.dtype == output.dtype
        and len(left) == len(right) > 0
        and _agree(left, right)
        and any(a is not None and a == b for a, b in zip(left, right, strict=True))
    )


def _may_be_state(spec: Described) -> bool:
    return "mask" not in spec.name.lower() and (spec.dtype is None or spec.dtype.kind not in _NO_STATES)


def _same_type(spec: Described, output: Described) -> bool:
    return spec.dtype is None or output.dtype is None or spec.dtype == output.dtype


def _stem(name: str) -> str:
    """A name without what says that it is an input or an output, before or after: empty where nothing is left."""
    words = re.findall(r"[a-z]+|\d+", re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name).lower())
    kept = [word for word in words if word not in _TIME]
    if words[:1] in (["past"], ["present"]) and kept[:2] in (["key", "values"], ["key", "value"]) and len(kept) > 2:
        kept = kept[2:]  # past_key_values.0.key and present.0.key
    kept = [word[:-1] if len(word) > 1 and word in ("hn", "cn", "hnn") else word for word in kept]
    kept = [re.sub(r"^(in|out|new|next|past|present|prev)(?=[a-z]{3,}$)|(?<=[a-z]{3})(in|out)$", "", w) for w in kept]
    kept = [re.sub(r"^([hc])0$", r"\1", word) for word in kept]
    if kept[-1:] == ["0"] and kept[:-1] in (["h"], ["c"]):
        kept = kept[:-1]
    return " ".join(word for word in kept if word)


def _agree(left: Sequence[int | None], right: Sequence[int | None]) -> bool:
    if not left or not right:
        return True
    return len(left) == len(right) and all(a is None or b is None or a == b for a, b in zip(left, right, strict=True))


def _dims(spec: Described) -> list[int | None]:
    return [dim if isinstance(dim, int) and dim > 0 else None for dim in spec.shape]
