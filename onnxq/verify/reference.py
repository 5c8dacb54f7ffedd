"""The float model of several comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxq.data.feeds import Feed
from onnxq.runtime.session import Session
from onnxq.verify.still import held_still


class Reference:
    """A float model, and what it gave for the feeds that it has seen, as far as memory goes.

    Attributes:
        session: runs it; its random draws, if it has any, are the same in each run.
        drawing: a node that draws random numbers; empty where none does.
    """

    def __init__(self, session: Session, *, most_bytes: int = 2**27) -> None:
        """Start with nothing seen.

        Args:
            session: of the float model, open.
            most_bytes: what is remembered at most.
        """
        self.session, self.drawing = held_still(session)
        self._left = most_bytes
        self._seen: dict[int, tuple[Feed, dict[str, Any]]] = {}

    def run(self, feed: Feed) -> dict[str, Any]:
        """The outputs by name; a feed is known again if it is the same object.

        Raises:
            ModelError: the runtime refused the feed or failed.
        """
        known = self._seen.get(id(feed))
        if known is not None:
            return known[1]
        names = self.session.output_names
        outputs = dict(zip(names, self.session.run(feed, names), strict=True))
        arrays = [array for array in outputs.values() if isinstance(array, np.ndarray)]
        size = sum(array.nbytes for array in arrays)
        if len(arrays) == len(outputs) and size <= self._left:
            self._left -= size
            self._seen[id(feed)] = feed, outputs  # the feed lives on, so that no other object gets its number
        return outputs
