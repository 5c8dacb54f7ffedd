"""A model on an engine elsewhere, in the form of a session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxq.data.feeds import Feed
from onnxq.errors import ModelError
from onnxq.runtime.engines.engine import Engine
from onnxq.runtime.session import Session


class EngineSession(Session):
    """Runs on an engine; names and types of inputs and outputs are those of the session here."""

    def __init__(self, here: Session, engine: Engine) -> None:
        """Take a model there.

        Args:
            here: opened from a file or its contents.
            engine: runs it.
        """
        super().__init__(here._session, here.label)
        if here.source is None:
            raise ModelError(f"{here.label}: a session without a file cannot be run on another engine")
        self._model, self._engine = here.source, engine

    def run(self, feed: Feed, outputs: Sequence[str] | None = None, *, seconds: float | None = None) -> list[Any]:
        """As of a session; time is not bounded.

        Raises:
            EngineError: the engine refused the model or the feed, or has gone.
        """
        (found,) = self._engine.run(self._model, [feed])
        by_name = dict(zip(self.output_names, found, strict=True))
        return [by_name[name] for name in (self.output_names if outputs is None else outputs)]
