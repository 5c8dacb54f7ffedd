"""What a quantization comes to, in a sentence and in a few tiles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from onnxq.report.words import decibels, in_bytes, shares, speed, three_digits, times_faster
from onnxq.verify.loss import BUDGET

GOOD, CHECK = "good", "check"


def verdict(result: Mapping[str, Any]) -> tuple[str, str]:
    """(`GOOD` or `CHECK`, a sentence) of a quantization.

    Args:
        result: what `onnxq.report.results.QuantizeResult.to_dict` gives.
    """
    if why := result.get("refused"):
        return CHECK, f"The quantized model was refused and not written: {'; '.join(why)}."
    if result["preset"] == "float":
        return CHECK, "No quantized candidate was better than the float model, which was returned unchanged."
    gains = [text for text in (_faster(result), _smaller(result)) if text]
    quality, good = _quality(result)
    ratio, grew = _ratio(result), result["size_bytes"]["after"] > result["size_bytes"]["before"]
    good = good and not grew and (ratio is None or round(ratio, 2) >= 0.97)
    what = "The float model, rewritten," if result["preset"] == "cleaned" else "The quantized model"
    said = f"{what} is {' and '.join(gains)} than float" if gains else what
    return (GOOD if good else CHECK), f"{said}{', and ' if gains else ' '}{quality}."


def _faster(result: Mapping[str, Any]) -> str:
    ratio = _ratio(result)
    if ratio is None:
        return ""
    words = speed(ratio, than="")
    return "no faster" if words == "about as fast" else words


def _ratio(result: Mapping[str, Any]) -> float | None:
    times = result.get("latency_ms") or {}
    if "float" in times and "quantized" in times:
        return times_faster(times["float"], times["quantized"])
    ratio = result.get("latency_ratio")
    return None if ratio is None else float(ratio)


def _smaller(result: Mapping[str, Any]) -> str:
    before, after = result["size_bytes"]["before"], result["size_bytes"]["after"]
    if round(before / after, 2) == 1:
        return "no smaller"
    return f"{before / after:.2f}x smaller" if before > after else f"{after / before:.2f}x larger"


def _quality(result: Mapping[str, Any]) -> tuple[str, bool]:
    """How close it is to float in words, and whether that is as good."""
    accuracy, loss, sqnr = result.get("accuracy"), result.get("loss"), result.get("sqnr_db")
    synthetic = not any((output or {}).get("samples") for output in (result.get("outputs") or {}).values())
    if synthetic or _on_synthetic(result):
        return "how close it is to float was not measured on real samples", False
    good = loss is not None and loss <= BUDGET
    parts = []
    if accuracy:
        parts.append(f"its accuracy is {100 * accuracy['quantized']:.2f} % ({100 * accuracy['float']:.2f} % in float)")
    if loss is not None:
        of = "of its decisions are expected to change"
        parts.append(
            f"{shares(loss).replace('<', 'less than')} {of}"
            + (f", within the {shares(BUDGET)} that counts as equal" if good else f", more than {shares(BUDGET)}")
        )
    if not parts:
        parts.append(f"its worst output has a signal-to-noise ratio of {decibels(sqnr)}")
        good = sqnr is not None and sqnr >= 30.0
    return "; ".join(parts), good


def _on_synthetic(result: Mapping[str, Any]) -> bool:
    return any("synthetic sample" in line for line in result.get("warnings") or ())


def tiles(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Size, speed, quality and coverage: ``name``, ``value``, ``detail``, and ``bars`` as shares of the larger one."""
    before, after = result["size_bytes"]["before"], result["size_bytes"]["after"]
    most = max(before, after, 1)
    found = [
        {
            "name": "Size",
            "value": _smaller(result),
            "detail": f"{in_bytes(before)} → {in_bytes(after)}",
            "bars": [before / most, after / most],
        }
    ]
    ratio, times = _ratio(result), result.get("latency_ms") or {}
    if ratio is None:
        found.append({"name": "Speed", "value": "not measured", "detail": "", "bars": []})
    else:
        detail, bars = "", [min(ratio, 1.0), min(1.0, 1.0 / ratio) * min(ratio, 1.0)]
        if "float" in times and "quantized" in times:
            longest = max(times["float"], times["quantized"])
            bars = [times["float"] / longest, times["quantized"] / longest]
            detail = f"{three_digits(times['float'])} ms → {three_digits(times['quantized'])} ms, median"
        found.append({"name": "Speed", "value": speed(ratio, than=""), "detail": detail, "bars": bars})
    found.append(_quality_tile(result))
    total = sum(row["total"] for row in result["coverage"].values())
    done = sum(row["quantized"] for row in result["coverage"].values())
    found.append(
        {
            "name": "Coverage",
            "value": f"{done} of {total} operators",
            "detail": _bits(result) or f"preset {result['preset']}, {result['format'] or 'float activations'}",
            "bars": [done / total] if total else [],
        }
    )
    return found


def _bits(result: Mapping[str, Any]) -> str:
    bits = result.get("bits_per_weight")
    return f"preset {result['preset']}, {bits:.2f} bits a weight" if bits else ""


def _quality_tile(result: Mapping[str, Any]) -> dict[str, Any]:
    sqnr, accuracy, agreement = result.get("sqnr_db"), result.get("accuracy"), result.get("top1_agreement")
    value = "not measured" if sqnr is None else "equal" if sqnr == math.inf else f"{decibels(sqnr)} SQNR"
    details = []
    if accuracy:
        details.append(f"accuracy {100 * accuracy['float']:.2f} % → {100 * accuracy['quantized']:.2f} %")
    elif agreement is not None:
        details.append(f"the same class for {100 * agreement:.1f} %")
    if result.get("loss") is not None:
        details.append(f"{shares(result['loss'])} of decisions change")
    if result.get("perplexity"):
        details.append(f"perplexity {result['perplexity']['float']:.4g} → {result['perplexity']['quantized']:.4g}")
    if _on_synthetic(result):
        details = ["on one synthetic sample only"]
    samples = max((output["samples"] for output in (result.get("outputs") or {}).values()), default=0)
    if samples and not _on_synthetic(result):
        details.append(f"{samples} held-out sample{'s' if samples != 1 else ''}")
    return {"name": "Quality", "value": value, "detail": "; ".join(details), "bars": []}
