"""Configurations of runtimes, brought up to date with what became of the graphs."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from onnxq.errors import ModelError
from onnxq.recipe.presets import PRESETS
from onnxq.recipe.recipe import Recipe

JS_SUFFIXES = {
    "fp32": "", "fp16": "_fp16", "int8": "_int8", "uint8": "_uint8", "q8": "_quantized", "q4": "_q4", "q2": "_q2",
    "q4f16": "_q4f16", "q2f16": "_q2f16", "bnb4": "_bnb4",
}  # fmt: skip
"""What transformers.js puts behind the name of a graph, by what its option ``dtype`` calls the form (4.3)."""

_JS_SECTION = "transformers.js_config"

_FULL, _HALF = "fp32", "fp16"


def updated_genai_config(config: Mapping[str, Any], decoder: Mapping[str, Any]) -> dict[str, Any]:
    """A genai_config.json whose section ``model.decoder`` has other entries; all else stays as it was.

    Quantized weights change nothing that this file speaks of: the names of inputs and outputs and of the file stay.
    What changes types, such as a quantized cache, says so here.

    Args:
        config: what the file holds.
        decoder: entries of ``model.decoder``, new ones and those that replace others.

    Raises:
        ModelError: the file has no such section.
    """
    found = copy.deepcopy(dict(config))
    section = found.get("model", {}).get("decoder")
    if not isinstance(section, dict):
        raise ModelError("genai_config.json: has no section model.decoder; build the folder anew")
    section.update(decoder)
    return found


def decoder_entries(config: Mapping[str, Any], kv_cache: str | None) -> dict[str, Any]:
    """What a form of the caches changes of ``model.decoder`` in a genai_config.json (onnxruntime-genai 0.18).

    The runtime takes the type of a cache from the graph, and the length of its last axis from ``head_size`` where the
    graph leaves it open; two numbers of 4 bits are one byte there.

    Args:
        config: what the file holds.
        kv_cache: "int8", "int4" or "float"; None where caches stayed as they were.
    """
    size = config.get("model", {}).get("decoder", {}).get("head_size")
    return {"head_size": size // 2} if kv_cache == "int4" and isinstance(size, int) else {}


def updated_js_config(config: Mapping[str, Any], dtypes: Mapping[str, str]) -> dict[str, Any]:
    """A config.json that names the form of each graph, so that transformers.js opens it without being told.

    Weights are in the graphs themselves, whatever the configuration said of the float ones.

    Args:
        config: what the file holds.
        dtypes: the form of each graph, by its name without suffix.
    """
    found = copy.deepcopy(dict(config))
    section = dict(found.get(_JS_SECTION) or {})
    forms = set(dtypes.values())
    section["dtype"] = forms.pop() if len(forms) == 1 else dict(dtypes)
    if section.get("use_external_data_format"):
        section["use_external_data_format"] = False
    found[_JS_SECTION] = section
    return found


def js_dtype(preset: str, recipe: Recipe, halves: bool) -> str:
    """What transformers.js calls a form.

    Args:
        preset: of the result; "mixed" where layers have several forms, "float" where it stayed float.
        recipe: the user's, which may ask for other bits than the preset's.
        halves: the graph computes in float16.
    """
    if preset == "float":
        return _HALF if halves else _FULL
    known = PRESETS.get(preset)
    if known is None or known.weights not in ("blocks", "codebook"):
        return "q8"
    bits = recipe.bits or known.bits
    if bits >= 8:
        return "q8"
    if known.codebook in ("nf4", "fp4"):
        return "bnb4"
    short = "q2" if bits == 2 else "q4"
    return f"{short}f16" if halves else short


def js_name(path: PurePosixPath, dtype: str) -> PurePosixPath:
    """The file of a graph in a form."""
    return path.with_name(f"{path.stem}{JS_SUFFIXES[dtype]}{path.suffix}")
