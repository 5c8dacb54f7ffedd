"""The way of a folder: looked at, its graphs quantized one after the other, written whole."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from onnxq.core import scratch, staging
from onnxq.core.dtypes import Array
from onnxq.data.text.language_inputs import UnknownCacheError, language_inputs, may_be_cached, takes_text
from onnxq.data.text.language_run import FIRST
from onnxq.data.text.own_texts import own_texts
from onnxq.data.text.prompts import is_text, open_prompts
from onnxq.data.text.text_samples import TextSamples
from onnxq.errors import CalibrationError, OnnxqError, RecipeError, there_are
from onnxq.folders import as_used, configs, layouts
from onnxq.folders.beside import one_each, own_name
from onnxq.folders.graph_recipes import recipe_for
from onnxq.folders.layouts import JS, GraphFile, Layout
from onnxq.folders.pages import places_of, write_pages
from onnxq.graph.files.interface import interface_of, nodes_of
from onnxq.graph.files.io import weight_files
from onnxq.graph.files.saving import copy, write_text
from onnxq.pipeline.clock import Progress
from onnxq.pipeline.planning import NothingToQuantizeError
from onnxq.recipe.arguments import checked
from onnxq.recipe.recipe import Recipe
from onnxq.recipe.unused import refuse_unused
from onnxq.recipe.values import WORKLOADS
from onnxq.report.folder_results import FolderResult, GraphResult
from onnxq.request.quantizing import quantize_by
from onnxq.request.report_of_run import command_of_run
from onnxq.request.run_options import Options, split_options
from onnxq.request.used_as import UsedAs, check_generate
from onnxq.runtime.custom_ops import Libraries, with_custom_ops
from onnxq.verify.language.generation import Generated, compare_generated

_OF_ONE_GRAPH = {"statistics": "--stats", "states": "--state"}
"""Options of a run that are of one graph, as the command line has them."""


@dataclass
class _Work:
    """One folder on its way.

    Attributes:
        layout: what came in.
        given: how to quantize.
        options: of the runs.
        rows: token ids of texts; empty without.
        place: the folder that is being filled.
        target: where it goes.
        nodes: operators by name of the node, of each graph; read where the recipe names nodes or operators.
        pages: where the page of each graph goes; empty where none was asked for.
        searches: where what each graph's search has measured is kept, until its model is there.
        drafts: a folder for pages that are not yet what they will be.
    """

    layout: Layout
    given: Recipe
    options: Options
    rows: Sequence[Array]
    place: Path
    target: Path
    nodes: dict[str, dict[str, str]]
    pages: dict[str, Path]
    searches: dict[str, Path]
    drafts: Path


@checked
@with_custom_ops
def quantize_folder(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    custom_ops: Libraries = (),
    **options: Any,
) -> FolderResult:
    """Quantize every graph of a folder, and write a folder that the same runtime opens.

    Folders of onnxruntime-genai, optimum, transformers.js and sentence-transformers are known. Tokenizers and other
    companions are copied, configurations brought up to date; weights for other frameworks are left out.

    Args:
        folder: what to quantize; never changed.
        output: the folder to write, absent or empty unless ``force`` is given; None writes ``<folder>.<preset>`` beside
            it. It is complete or not there, whatever ends the call.
        custom_ops: libraries of custom operators that onnxruntime needs to run the graphs.
        options: as for `onnxq.quantize`. ``calibration`` is a text file, a line or a paragraph a sample, read with the
            folder's tokenizer; or, for a folder of one graph, what `onnxq.quantize` takes.

    Returns:
        The result of each graph, and what the graphs do together.

    Raises:
        ModelError: the folder cannot be used; said before the work starts.
        RecipeError: options that make no sense, or that are of single files.
        CalibrationError: a text or a tokenizer that cannot be used, or caches with unknown names.
        VerificationError: a graph failed verification; nothing was written.
        OnnxqError: the output cannot be written.
    """
    started = time.monotonic()
    given, run = _split(options)
    refuse_unused(given if run.generate is None else given.override(seed=Recipe().seed))
    check_generate(run.generate, run.calibration)
    source = Path(folder)
    target = source.resolve().parent / f"{source.resolve().name}.{given.preset}" if output is None else Path(output)
    layout = layouts.layout_of(source)
    staging.check_folder(target, source, force=run.force)
    for name, option in _OF_ONE_GRAPH.items():
        if getattr(run, name) and len(layout.graphs) > 1:
            raise RecipeError(
                f"{option}: is of one graph, and {source} has {len(layout.graphs)}; quantize its files one by one"
            )
    pages = {} if run.report is None else places_of(run.report, layout, target)
    searches = one_each("--search-state", run.search_state or f"{target}.search.json", layout, target)
    rows = _rows(layout, run)
    _check(layout, rows, run.workload)
    if run.generate is not None:
        rows, run = _written(layout, run.generate, given.seed, run.threads), replace(run, generate=None)
    if given.kv_cache in ("int8", "int4") and layout.kind != layouts.GENAI:
        raise RecipeError(
            f"--kv-cache {given.kv_cache}: {layout.kind} begins with float caches, which such a model does not take; "
            "it is for folders of onnxruntime-genai, or for single files"
        )
    with scratch.folder() as drafts, staging.staged_folder(target) as place:
        named = bool(given.include or given.exclude or given.rules or given.op_types)
        nodes = {str(graph.path): nodes_of(layout.file(graph.path)) for graph in layout.graphs} if named else {}
        work = _Work(layout, given, run, rows, place, target, nodes, pages, searches, drafts)
        result = FolderResult(source, target, layout.kind, [])
        for graph in layout.graphs:
            result.graphs.append(_quantized(work, graph))
        if all(graph.result is None for graph in result.graphs):
            raise RecipeError(f"{source}: no graph was quantized: {result.graphs[0].reason}")
        _finish(work, result)
    result.seconds = time.monotonic() - started
    write_pages(result, pages, command_of_run(source, output, given, run))
    return result


def _split(options: Mapping[str, Any]) -> tuple[Recipe, Options]:
    """Options by where they go: into the recipe, or into each run."""
    if options.get("external_data"):
        raise RecipeError("--external-data: is of one ONNX file; pass the file instead of its folder")
    return split_options("quantize_folder", options)


def _rows(layout: Layout, options: Options) -> list[Array]:
    """Token ids of the calibration text; nothing where there is no text.

    Raises:
        CalibrationError: it cannot be used, or is no text although the folder has several graphs.
    """
    given = options.calibration
    if isinstance(given, str | os.PathLike) and is_text(given):
        tokenizer = None if options.tokenizer is None else Path(options.tokenizer)
        prompts = open_prompts(given, [layout.folder], tokenizer)
        return replace(prompts, config=prompts.config | as_used.flat(layout)).ids()
    if options.tokenizer is not None:
        raise CalibrationError(
            f"--tokenizer {options.tokenizer}: only goes with a text; pass --calibration prompts.txt"
        )
    if given is not None and len(layout.graphs) > 1:
        raise CalibrationError(
            f"--calibration {given}: {layout.folder} has {len(layout.graphs)} graphs of different inputs; pass "
            "a text file, a line or a paragraph a sample"
        )
    return []


def _written(layout: Layout, count: int, seed: int, threads: int | None) -> list[Array]:
    """Texts that the graphs of a folder write themselves; errors as of `own_texts`."""
    for graph in layout.graphs:
        used = as_used.used_in(layout, graph, (), threads)
        if used is not None and FIRST in used.parts:
            return own_texts(used.model, count, used.most, seed)
    raise CalibrationError(f"--generate: {layout.folder} has no graph that is a language model; pass --calibration")


def _check(layout: Layout, rows: Sequence[Array], workload: str | None) -> None:
    """What cannot be done is said before the work starts.

    Raises:
        RecipeError: there is no such workload, or none of a model without a cache.
        ModelError: a graph cannot be read.
        CalibrationError: a cache has names that nothing pairs, or no graph takes the text.
    """
    if workload is not None and workload not in WORKLOADS:
        raise RecipeError(f"--workload {workload}: {there_are(workload, WORKLOADS)}")
    takers, cached = 0, False
    for graph in layout.graphs:
        inputs, outputs = interface_of(layout.file(graph.path))
        as_used.check_caches(layout, graph, [spec.name for spec in inputs], [spec.name for spec in outputs])
        found = as_used.ensemble_of(layout, graph)
        before = [] if found is None else interface_of(layout.file(found.first.path))[1]
        if not takes_text(inputs):
            continue
        cached |= may_be_cached(inputs, outputs)
        try:
            language_inputs(inputs, outputs, str(layout.file(graph.path)), before=before)
            takers += 1
        except UnknownCacheError:
            raise
        except CalibrationError:
            if rows:
                raise
    if workload is not None and not cached:
        raise RecipeError(f"--workload {workload}: is of language models with a cache, and {layout.folder} has none")
    if rows and not takers:
        raise CalibrationError(f"{layout.folder}: no graph takes token ids, so a text is no calibration data for it")


def _quantized(work: _Work, graph: GraphFile) -> GraphResult:
    """One graph, quantized into the folder that is being filled; copied where there is nothing to quantize."""
    layout, options = work.layout, work.options
    source, target = layout.file(graph.path), work.place / graph.path
    recipe, left_out = recipe_for(work.given, str(graph.path), work.nodes) if work.nodes else (work.given, "")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if left_out:
            raise NothingToQuantizeError(left_out)
        used = None
        if work.rows or options.benchmark:
            used = _used(work, graph)
        calibration = options.calibration
        if work.rows:
            calibration = None if used is None else TextSamples(work.rows, used.model, used.parts)
        run = replace(
            options,
            calibration=calibration,
            tokenizer=None,
            used=used,
            search_state=work.searches[str(graph.path)],
            kept_as=own_name(work.target, layout, graph.path),
            workload=options.workload if used is not None and used.model.cached else None,
            progress=_progress(options, graph),
            # what a page shows is gathered; the page itself is written when all graphs are done
            report=work.drafts / f"{graph.path.as_posix().replace('/', '-')}.html" if work.pages else None,
        )
        result = quantize_by(recipe, source, target, run)
        result.report = None
    except NothingToQuantizeError as error:
        copy(source, target)
        return GraphResult(str(graph.path), str(graph.path), None, str(error))
    except OnnxqError as error:
        text = str(error)
        raise type(error)(text if str(source) in text else f"{source}: {text}") from error
    result.warnings = [f"{graph.path}: {line}" if len(layout.graphs) > 1 else line for line in result.warnings]
    written = _named(work, graph, result.preset)
    if written != graph.path:
        target.rename(work.place / written)
    result.output = work.target / written
    return GraphResult(str(graph.path), str(written), result)


def _used(work: _Work, graph: GraphFile) -> UsedAs | None:
    """How a graph is used; None where that is not known, which matters only where there is a text or a workload."""
    try:
        return as_used.used_in(work.layout, graph, work.rows, work.options.threads)
    except UnknownCacheError:
        raise
    except CalibrationError:
        if work.rows or work.options.workload is not None:
            raise
        return None


def _with_weights(path: Path) -> list[Path]:
    return [path.resolve(), *weight_files(path)]


def _progress(options: Options, graph: GraphFile) -> Progress | None:
    """The user's progress, with the name of the graph in front of each step."""
    given = options.progress
    if given is None:
        return None
    return lambda step, done, total: given(f"{graph.path}: {step}", done, total)


def _named(work: _Work, graph: GraphFile, preset: str) -> PurePosixPath:
    """The file that a graph becomes: in transformers.js its name says its form.

    Raises:
        OnnxqError: its weights stand beside it, under a name that this runtime does not look for.
    """
    if work.layout.kind != JS:
        return graph.path
    if weight_files(work.place / graph.path):
        raise OnnxqError(
            f"{work.layout.file(graph.path)}: is above 2 GB when quantized, and transformers.js would not find its "
            "weights; quantize to fewer bits, such as --preset w4"
        )
    return configs.js_name(graph.path, _dtype(work, graph, preset))


def _dtype(work: _Work, graph: GraphFile, preset: str) -> str:
    inputs, outputs = interface_of(work.layout.file(graph.path))
    halves = any(spec.dtype == np.float16 for spec in (*inputs, *outputs))
    return configs.js_dtype(preset, work.given, halves)


def _finish(work: _Work, result: FolderResult) -> None:
    """Copy what goes with the graphs, bring configurations up to date, and look at what the graphs do together."""
    layout = work.layout
    used = {file for graph in layout.graphs for file in _with_weights(layout.file(graph.path))}
    variants = {file for path in layout.variants for file in _with_weights(layout.file(path))}
    for path in sorted(layouts.files_of(layout.folder), key=str):
        file = layout.file(path)
        if file.resolve() in used:
            continue
        if file.resolve() in variants or layouts.is_other_weights(path, layout):
            result.left_out.append(str(path))
            continue
        staging.copy_file(file, work.place / path)
        result.copied.append(str(path))
    if layout.kind == JS:
        _update_js(work, result)
    elif layout.kind == layouts.GENAI:
        _update_genai(work, result)
    result.hints = [_hint(layout, result)]
    result.warnings = [line for graph in result.graphs if graph.result is not None for line in graph.result.warnings]
    if work.rows:
        result.generated = _generated(work, result)


def _update_js(work: _Work, result: FolderResult) -> None:
    """Let config.json name the form of each graph."""
    dtypes = {}
    for graph, done in zip(work.layout.graphs, result.graphs, strict=True):
        preset = "float" if done.result is None else done.result.preset
        dtypes[graph.path.stem] = _dtype(work, graph, preset)
    updated = configs.updated_js_config(work.layout.config, dtypes)
    write_text(work.place / layouts.CONFIG, json.dumps(updated, indent=2, ensure_ascii=False) + "\n")
    result.copied.remove(layouts.CONFIG)
    result.updated.append(layouts.CONFIG)


def _update_genai(work: _Work, result: FolderResult) -> None:
    """Let genai_config.json describe the caches as they are now."""
    entries = configs.decoder_entries(work.layout.config, work.given.kv_cache)
    if entries:
        updated = configs.updated_genai_config(work.layout.config, entries)
        write_text(work.place / layouts.GENAI_CONFIG, json.dumps(updated, indent=4, ensure_ascii=False) + "\n")
        result.copied.remove(layouts.GENAI_CONFIG)
        result.updated.append(layouts.GENAI_CONFIG)


def _hint(layout: Layout, result: FolderResult) -> str:
    """How the folder is opened."""
    place = result.output
    if layout.kind == layouts.GENAI:
        return f"onnxruntime_genai.Model({str(place)!r})"
    if layout.kind == JS:
        forms = {graph.output for graph in result.graphs}
        return f"transformers.js finds {', '.join(sorted(forms))}: config.json names the dtype"
    if layout.kind == layouts.SENTENCES:
        return f"SentenceTransformer({str(place)!r}, backend='onnx')"
    return f"{_optimum_class(layout, result)}.from_pretrained({str(place)!r})"


def _optimum_class(layout: Layout, result: FolderResult) -> str:
    """The class of optimum that opens a folder: by its graphs, else by the architecture that config.json names."""
    if any(graph.role == layouts.ENCODER for graph in layout.graphs):
        return "ORTModelForSeq2SeqLM"
    if any(graph.result is not None and graph.result.workload is not None for graph in result.graphs):
        return "ORTModelForCausalLM"
    named = layout.config.get("architectures")
    task = str(named[0]).rpartition("For")[2] if isinstance(named, list) and named and "For" in str(named[0]) else ""
    return f"ORTModelFor{task or 'FeatureExtraction'}"


def _generated(work: _Work, result: FolderResult) -> Generated | None:
    """How the quantized graphs together follow what the float model generates; of the first that do so."""
    outputs = {graph.source: graph.output for graph in result.graphs}
    for graph in work.layout.graphs:
        found = as_used.ensemble_of(work.layout, graph)
        reference = _used(work, graph) if found is not None else None
        if found is None or reference is None or not reference.model.cached:
            continue
        quantized = as_used.open_ensemble(
            work.layout, found, lambda path: work.place / outputs[str(path)], work.options.threads
        )
        return compare_generated(reference.model, quantized, work.rows)
    return None
