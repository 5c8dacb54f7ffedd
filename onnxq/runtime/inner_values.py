"""Inner values of a model, sample by sample."""

from __future__ import annotations

from collections.abc import Iterable

from onnxq.core.dtypes import Array
from onnxq.data.feeds import Feed
from onnxq.graph.views.outputs import Model, only_outputs
from onnxq.runtime.session import Session, session_of


class InnerValues:
    """A model of which only some values are computed."""

    def __init__(self, model: Model, names: Iterable[str], threads: int | None = None) -> None:
        """Open it.

        Args:
            model: unchanged.
            names: of its values; its inputs may be among them, unknown ones are left out.
            threads: threads an operator may use.

        Raises:
            ModelError: the runtime cannot load it.
        """
        self._names = list(dict.fromkeys(names))
        cut = only_outputs(model, self._names)
        self._fetch = [value.name or "" for value in cut.graph.outputs]
        self._session: Session | None = session_of(cut, threads=threads) if self._fetch else None
        self._takes = {spec.name for spec in self._session.input_specs} if self._session is not None else set()

    def of(self, feed: Feed) -> dict[str, Array]:
        """The values of one sample by name.

        Raises:
            ModelError: the runtime fails on it.
        """
        got: dict[str, Array] = {}
        if self._session is not None:
            taken = {name: array for name, array in feed.items() if name in self._takes}
            got = dict(zip(self._fetch, self._session.run(taken, self._fetch), strict=True))
        return got | {name: feed[name] for name in self._names if name in feed and name not in got}
