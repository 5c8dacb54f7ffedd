"""Before anything is written: is the model valid, does it load, does it run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from onnxq.data.feeds import Feed
from onnxq.errors import ModelError, VerificationError
from onnxq.graph.files import io
from onnxq.graph.files.checker import check_model, complaints
from onnxq.runtime.session import Session, open_session
from onnxq.runtime.synthetic import runnable_feed

MOST_BYTES = 512 * 2**20
"""Larger models are not written out as the runtime optimizes them, for a look at what it runs."""


def worth_a_look(model: bytes | Path) -> bool:
    """Whether the model is small enough to be written out once more."""
    return io.size_of(model) <= MOST_BYTES


def check(
    model: bytes | Path,
    feed: Feed | None = None,
    *,
    threads: int | None = None,
    run: bool = True,
    save_to: Path | None = None,
    original: bytes | Path | None = None,
) -> tuple[Session, Session]:
    """Run the ONNX checker, then load and run the model with no graph optimizations and with all of them.

    Args:
        model: contents of a model file, or its path.
        feed: arrays by input name; None makes one up.
        threads: threads an operator may use; None lets the runtime choose.
        run: also run it; False where no feed is known that the float model runs on.
        save_to: where to write the model as the runtime optimized it; None does not.
        original: the float model; what the checker says of it too is let pass (outputs without a shape, for one, which
            the runtime takes).

    Returns:
        The sessions that were opened: (with no optimizations, with all).

    Raises:
        VerificationError: the checker or the runtime refused it; the message says at which level and why.
    """
    refusal = _new_refusal(model, original)
    if refusal:
        raise VerificationError(f"quantized model: the ONNX checker refuses it: {refusal}")
    opened: list[Session] = []
    for level, optimize in (("ORT_DISABLE_ALL", False), ("ORT_ENABLE_ALL", True)):
        try:
            session = open_session(
                model,
                optimize=optimize,
                threads=threads,
                label=f"quantized model at {level}",
                save_to=save_to if optimize else None,
            )
            if run:
                feed = feed if feed is not None else runnable_feed(session)
                session.run(feed)
            opened.append(session)
        except ModelError as error:
            raise VerificationError(str(error)) from error
    return opened[0], opened[1]


def _new_refusal(model: bytes | Path, original: bytes | Path | None) -> str:
    """Why the checker refuses the model and not its original; empty where it does not, or refuses both for the same."""
    refusal = _refusal(model)
    if not refusal or original is None:
        return refusal
    ours, theirs = complaints(model), complaints(original)
    if not ours:  # it is about the graph
        return "" if _refusal(original) == refusal else refusal
    for (domain, op_type, said), count in (ours - theirs).items():
        return f"{f'{domain}.' if domain else ''}{op_type}: {said}{f' ({count} times)' if count > 1 else ''}"
    return ""


def _refusal(model: bytes | Path) -> str:
    """Why the ONNX checker refuses a model; empty where it does not."""
    try:
        # it also takes a path, and has to where weights are in a file beside it
        check_model(cast(Any, str(model)) if isinstance(model, Path) else model)
    except ModelError as error:
        return str(error)
    return ""
