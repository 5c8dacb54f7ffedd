"""Sessions of models that draw random numbers, in which they draw the same ones: else two draws would be compared."""

from __future__ import annotations

import weakref

from onnxq.errors import OnnxqError
from onnxq.graph.views.draws import may_draw, still_copy
from onnxq.runtime.session import Session, session_of

_KNOWN: weakref.WeakKeyDictionary[Session, tuple[Session, str] | None] = weakref.WeakKeyDictionary()
"""What was found for sessions that are open; None for those that draw nothing."""


def held_still(session: Session) -> tuple[Session, str]:
    """A session whose draws depend on the names in its model alone.

    Args:
        session: open; what it draws itself does not change.

    Returns:
        (session, node): the one given, and an empty name, where the model draws nothing; otherwise one of a copy, and a
        node that draws.
    """
    if session.source is None or not may_draw(session.source):
        return session, ""
    if session not in _KNOWN:
        _KNOWN[session] = _copied(session)
    return _KNOWN[session] or (session, "")


def note(node: str) -> str:
    """What to say of a model that draws."""
    return (
        f"the model draws random numbers ({node}), so that no two of its runs give the same: it was compared with "
        "float on the same draws; the file goes on drawing its own"
    )


def _copied(session: Session) -> tuple[Session, str] | None:
    assert session.source is not None
    try:
        found = still_copy(session.source)
        if found is None:
            return None
        model, node = found
        still = session_of(model, optimize=session.optimize, threads=session.threads, label=session.label)
    except OnnxqError:  # it runs, and how it is built is beyond what can be copied
        return None
    return still, node
