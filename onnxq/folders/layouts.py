"""What kind of model a folder holds, and which of its files are graphs; found before any work starts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from onnxq.errors import ModelError

GENAI, OPTIMUM, JS, SENTENCES = "onnxruntime-genai", "optimum", "transformers.js", "sentence-transformers"

GENAI_CONFIG, CONFIG, MODULES = "genai_config.json", "config.json", "modules.json"

ENCODER, DECODER, WITH_PAST, MERGED, MODEL, OTHER = "encoder", "decoder", "with past", "merged", "model", "other"
"""What a graph is among the graphs of its folder."""

_ROLES = {
    "encoder_model": ENCODER, "decoder_model": DECODER, "decoder_with_past_model": WITH_PAST,
    "decoder_model_merged": MERGED, "model": MODEL, "decoder": MODEL,
}  # fmt: skip
"""Roles by the names that optimum and transformers.js give."""

_VARIANT = re.compile(
    r"_(fp16|quantized|int8|uint8|q1|q1f16|q2|q2f16|q4|q4f16|bnb4|optimized|O[1-4]|qu?int8_\w+)$", re.IGNORECASE
)
"""Ends of names of graphs that are another form of the one without it."""

_SKIPPED = {".git", ".cache", "__pycache__"}

_OTHER_WEIGHTS = re.compile(
    r"(model|pytorch_model|diffusion_pytorch_model)([-.]\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
    r"|(model|pytorch_model)\.(safetensors|bin)\.index\.json|tf_model\.h5|flax_model\.msgpack|rust_model\.ot"
)
"""Weights of the same model for other frameworks."""


@dataclass(frozen=True)
class GraphFile:
    """One graph of a folder.

    Attributes:
        path: relative to the folder.
        role: what it is among the others.
    """

    path: PurePosixPath
    role: str


@dataclass
class Layout:
    """A folder as a model.

    Attributes:
        folder: where it is.
        kind: the runtime that opens it.
        graphs: those to quantize.
        variants: other forms of the same graphs, which do not go into the result.
        config: what its main configuration says.
    """

    folder: Path
    kind: str
    graphs: list[GraphFile]
    variants: list[PurePosixPath] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)

    def file(self, path: PurePosixPath) -> Path:
        """Where a file of the folder is."""
        return self.folder / path


def layout_of(folder: Path) -> Layout:
    """Find out what a folder holds.

    Raises:
        ModelError: it is empty, of no known kind or of two, or a configuration names a file that is not there.
    """
    files = sorted(files_of(folder), key=str)
    graphs = [path for path in files if path.suffix == ".onnx"]
    if not graphs:
        what = "is empty" if not files else "holds no ONNX model"
        raise ModelError(f"{folder}: {what}; pass a folder of {GENAI}, {OPTIMUM}, {JS} or {SENTENCES}, or an ONNX file")
    names = {str(path) for path in files}
    inner = [path for path in graphs if path.parts[0] == "onnx"]
    outer = [path for path in graphs if len(path.parts) == 1]
    sentences = MODULES in names
    if (
        GENAI_CONFIG in names
    ):  # published folders of it keep the model's config.json: only further graphs speak for optimum
        named = {name for _, name in _filenames(read_json(folder / GENAI_CONFIG), "")}
        outer = [path for path in outer if path.stem in _ROLES and str(path) not in named]
    found = [
        *([GENAI] if GENAI_CONFIG in names else []),
        *([SENTENCES] if sentences else []),
        *([JS] if inner and CONFIG in names and not sentences else []),
        *([OPTIMUM] if outer and CONFIG in names and not sentences else []),
    ]
    if len(found) > 1:
        marks = {GENAI: GENAI_CONFIG, SENTENCES: MODULES}
        marks |= {kind: str(paths[0]) for kind, paths in ((JS, inner), (OPTIMUM, outer)) if paths}
        listed = " and ".join(f"{kind} ({marks[kind]})" for kind in found)
        raise ModelError(
            f"{folder}: is a folder of {listed} at once; pass one that has only one of them, or an ONNX file"
        )
    if not found:
        raise ModelError(
            f"{folder}: has ONNX files, but no {GENAI_CONFIG}, {MODULES} or {CONFIG} that says what they are; pass the "
            f"ONNX file itself, for example {folder / graphs[0]}"
        )
    if found[0] == GENAI:
        return _genai(folder, names)
    chosen = graphs if found[0] == SENTENCES else inner if found[0] == JS else outer
    return _by_names(folder, found[0], chosen)


def files_of(folder: Path) -> Iterator[PurePosixPath]:
    """All files of a folder and the folders in it, relative to it; links count as what they lead to.

    Raises:
        ModelError: it cannot be read.
    """

    def fail(error: OSError) -> None:
        raise ModelError(f"{error.filename or folder}: cannot be read: {error.strerror or error}") from error

    for place, inside, names in os.walk(folder, onerror=fail):
        inside[:] = sorted(name for name in inside if name not in _SKIPPED)
        for name in names:
            yield PurePosixPath((Path(place) / name).relative_to(folder).as_posix())


def is_other_weights(path: PurePosixPath, layout: Layout) -> bool:
    """Whether a file holds the weights of the same model for another framework.

    Modules of sentence-transformers behind the Transformer have such files too, which are needed.
    """
    homes = {graph.path.parent for graph in layout.graphs} | {graph.path.parent.parent for graph in layout.graphs}
    return path.parent in homes and _OTHER_WEIGHTS.fullmatch(path.name) is not None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a configuration.

    Raises:
        ModelError: it cannot be read, or is no JSON object.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is no JSON: {error}; mend it or build the folder anew") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: holds a {type(found).__name__}, not an object; build the folder anew")
    return found


def _genai(folder: Path, names: set[str]) -> Layout:
    """The graphs that genai_config.json names, wherever it does so."""
    config = read_json(folder / GENAI_CONFIG)
    model = config.get("model")
    if not isinstance(model, dict):
        raise ModelError(f"{folder / GENAI_CONFIG}: has no object 'model'; build the folder anew")
    found: dict[str, str] = {}
    for section, filename in _filenames(model, ""):
        if not filename.endswith(".onnx"):
            continue
        if filename not in names:
            raise ModelError(f"{folder / GENAI_CONFIG}: {section} names '{filename}', which is not in {folder}")
        found.setdefault(filename, MODEL if section.startswith("decoder") else OTHER)
    if not found:
        raise ModelError(f"{folder / GENAI_CONFIG}: names no ONNX file; build the folder anew")
    graphs = [GraphFile(PurePosixPath(name), role) for name, role in found.items()]
    return Layout(folder, GENAI, graphs, config=config)


def _filenames(section: Any, place: str) -> Iterator[tuple[str, str]]:
    """Every 'filename' in a configuration, with the section that has it."""
    if isinstance(section, dict):
        for name, entry in section.items():
            if name == "filename" and isinstance(entry, str):
                yield place or "model", entry
            else:
                yield from _filenames(entry, f"{place}.{name}" if place else name)
    elif isinstance(section, list):
        for index, entry in enumerate(section):
            yield from _filenames(entry, f"{place}[{index}]")


def _by_names(folder: Path, kind: str, graphs: list[PurePosixPath]) -> Layout:
    """The graphs of a folder whose runtime finds them by their names."""
    stems = {(path.parent, path.stem) for path in graphs}
    base, variants = [], []
    for path in graphs:
        plain = _VARIANT.sub("", path.stem)
        if plain == path.stem:
            base.append(path)
        elif (path.parent, plain) in stems:
            variants.append(path)
        else:
            raise ModelError(
                f"{folder / path}: is a variant by its name, and its original {plain}.onnx is not there; pass a folder "
                "with the float32 model"
            )
    config = folder / CONFIG
    read = read_json(config) if config.is_file() else {}
    return Layout(folder, kind, [GraphFile(path, _ROLES.get(path.stem, OTHER)) for path in base], variants, read)
