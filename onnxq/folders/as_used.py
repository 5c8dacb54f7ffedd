"""The graphs of a folder as one language model, so that each is calibrated and timed on what the others give it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from onnxq.core.dtypes import Array
from onnxq.data.text.language_inputs import takes_text
from onnxq.data.text.language_run import AFTER, ENCODER, FIRST, LanguageGraph, LanguageModel, vocabulary_of
from onnxq.data.text.prompts import longest
from onnxq.errors import CalibrationError
from onnxq.folders import layouts
from onnxq.folders.layouts import GENAI, GraphFile, Layout
from onnxq.request.used_as import UsedAs, part_of
from onnxq.runtime.session import open_session

_PARTS: Mapping[str, tuple[str, ...]] = {
    layouts.ENCODER: (ENCODER,),
    layouts.DECODER: (FIRST,),
    layouts.WITH_PAST: (AFTER,),
    layouts.MERGED: (FIRST, AFTER),
    layouts.MODEL: (FIRST, AFTER),
}


@dataclass(frozen=True)
class Ensemble:
    """Which graphs run together, and what each does.

    Attributes:
        first: runs the prompt.
        after: runs what comes after it; None where ``first`` does so itself.
        encoder: of an encoder–decoder.
    """

    first: GraphFile
    after: GraphFile | None = None
    encoder: GraphFile | None = None

    @property
    def graphs(self) -> list[GraphFile]:
        """All of them."""
        return [graph for graph in (self.encoder, self.first, self.after) if graph is not None]


def ensemble_of(layout: Layout, graph: GraphFile) -> Ensemble | None:
    """The graphs with which a graph of a folder runs; None where that is not known."""
    by_role = {other.role: other for other in layout.graphs if other.path.parent == graph.path.parent}
    encoder = by_role.get(layouts.ENCODER)
    if graph.role == layouts.MODEL:
        return Ensemble(graph)
    if graph.role == layouts.MERGED:
        return Ensemble(graph, encoder=encoder)
    first, after = by_role.get(layouts.DECODER), by_role.get(layouts.WITH_PAST)
    if graph.role == layouts.ENCODER and first is None:
        first = by_role.get(layouts.MERGED)
        return Ensemble(first, encoder=graph) if first is not None else None
    if graph.role in (layouts.ENCODER, layouts.DECODER, layouts.WITH_PAST) and first is not None:
        return Ensemble(first, after, encoder)
    return None


def open_ensemble(
    layout: Layout, found: Ensemble, place: Callable[[PurePosixPath], Path], threads: int | None
) -> LanguageModel:
    """Open the graphs of an ensemble.

    Args:
        layout: of the float model.
        found: which graphs.
        place: where the file of a graph is.
        threads: threads an operator may use.

    Raises:
        ModelError: the runtime cannot load one.
        CalibrationError: an input of one cannot be made from text.
    """

    def part(graph: GraphFile | None) -> LanguageGraph | None:
        if graph is None:
            return None
        return part_of(open_session(place(graph.path), threads=threads), str(layout.file(graph.path)))

    first = part(found.first)
    assert first is not None
    return LanguageModel(first, part(found.after), part(found.encoder), _start(layout.config))


def used_in(layout: Layout, graph: GraphFile, rows: Sequence[Array], threads: int | None) -> UsedAs | None:
    """How a graph is used in its folder; None where it is no part of a language model of text.

    Raises:
        ModelError: the runtime cannot load a graph.
        CalibrationError: an input of a decoder cannot be made from text.
    """
    found = ensemble_of(layout, graph)
    if found is None:
        return None
    if found.graphs == [graph] and not _takes_text(layout, graph):
        return None
    model = open_ensemble(layout, found, layout.file, threads)
    logits = model.inputs[FIRST].logits
    vocabulary = layout.config.get("vocab_size") or vocabulary_of(model.parts[FIRST].outputs, logits) or 1
    return UsedAs(model, _PARTS[graph.role], rows, int(vocabulary), longest(flat(layout)))


def _takes_text(layout: Layout, graph: GraphFile) -> bool:
    session = open_session(layout.file(graph.path), optimize=False)
    return takes_text(session.input_specs)


def flat(layout: Layout) -> dict[str, Any]:
    """What the configuration says of lengths, under the names of a config.json."""
    if layout.kind != GENAI:
        return layout.config
    return {"max_position_embeddings": layout.config.get("model", {}).get("context_length")}


def _start(config: Mapping[str, Any]) -> int:
    """The token that a decoder behind an encoder begins with."""
    for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        if isinstance(config.get(name), int):
            return int(config[name])
    return 0


def check_caches(layout: Layout, graph: GraphFile, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Find out before the work starts whether genai_config.json names the caches that a decoder has.

    Raises:
        CalibrationError: a name that it gives is none of the graph's.
    """
    if layout.kind != GENAI or graph.role != layouts.MODEL:
        return
    decoder = layout.config["model"].get("decoder", {})
    layers = decoder.get("num_hidden_layers")
    for section, known in (("inputs", inputs), ("outputs", outputs)):
        for key, name in (decoder.get(section) or {}).items():
            if not isinstance(name, str) or "%d" not in name or not isinstance(layers, int):
                continue
            missing = [name % index for index in range(layers) if name % index not in known]
            if missing and len(missing) == layers:  # layers of another kind may have caches of another name
                caches = [text for text in known if any(ch.isdigit() for ch in text)][:3]
                raise CalibrationError(
                    f"{layout.folder / layouts.GENAI_CONFIG}: model.decoder.{section}.{key} names the cache "
                    f"'{missing[0]}', which {layout.file(graph.path)} does not have; it has "
                    f"{', '.join(caches) or 'none'}; put its names there"
                )
