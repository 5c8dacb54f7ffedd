"""What a result comes to, as pairs of a name and a phrase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxq.report.words import (
    cell,
    change_of_size,
    decibels,
    in_bytes,
    latency,
    shares,
    speed,
    three_digits,
    times_faster,
)

_NAMED = 4
"""Names that a fact has room for."""


def quantization_facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures of a quantization as pairs of a name and a phrase.

    Args:
        result: what `onnxq.report.results.QuantizeResult.to_dict` gives.
    """
    how = result["format"] or ("dynamic" if result.get("at_inference") else "weights only")
    if result.get("float_type"):
        how = f"{result['float_type']}{', ' + how if result.get('bits_per_weight') else ''}"
    if result["preset"] == "float":
        how = "as it was"
    if result["preset"] == "cleaned":
        how = "float, rewritten"
    facts = [
        ("preset", f"{result['preset']} ({how}, for {result['target']}), in {result['seconds']:.1f} s"),
        ("size", change_of_size(result["size_bytes"]["before"], result["size_bytes"]["after"])),
        *(
            [("weights", f"{result['bits_per_weight']:.2f} bits each, scales included")]
            if result.get("bits_per_weight")
            else []
        ),
        *_caches(result.get("caches") or {}),
        *_trained(result.get("trained")),
        *_finetuned(result.get("finetuned")),
        *([("learned", result["reconstructed"]["words"])] if result.get("reconstructed") else []),
        *_outliers(result.get("at_inference") or ()),
        ("latency", latency(result) + _workload(result)),
        *_phases(result),
        ("SQNR", decibels(result["sqnr_db"]) + _over_samples(result.get("outputs") or {})),
    ]
    if result.get("float_type"):
        facts += _differences(result.get("outputs") or {})
    if result["top1_agreement"] is not None:
        several = len(result.get("outputs") or {}) > 1 and result.get("class_output")
        where = f", output {result['class_output']}" if several else ""
        facts.append(("top-1", f"agrees with the float model on {100 * result['top1_agreement']:.1f} %{where}"))
    facts += _loss(result)
    accuracy = result.get("accuracy")
    if accuracy:
        facts.append(("accuracy", f"{100 * accuracy['float']:.2f} % -> {100 * accuracy['quantized']:.2f} %"))
    return facts + token_facts(result) + generated_fact(result)


def _differences(outputs: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Mean and largest difference of the output that differs most, for its size."""
    real = {name: o for name, o in outputs.items() if o["sqnr_db"] is not None and o.get("mean_abs_error") is not None}
    if not real:
        return []
    worst = min(real, key=lambda name: float(real[name]["sqnr_db"]))
    found = real[worst]
    return [("difference", f"mean {cell(found['mean_abs_error'])}, largest {cell(found['max_abs_error'])} ({worst})")]


def _loss(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The share of decisions that is expected to change, and the output that it is of."""
    loss, outputs = result.get("loss"), result.get("outputs") or {}
    worst = next((name for name, output in outputs.items() if output.get("loss") == loss), None)
    if loss is None or worst is None:
        return []
    where = f" of output {worst}" if len(outputs) > 1 else ""
    return [("loss", f"{shares(loss)} of decisions{where} ({outputs[worst]['kind']})")]


def _caches(caches: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What caches of keys and values hold, and what that takes."""
    if not caches:
        return []
    before, after = caches["bytes_a_token"]["before"], caches["bytes_a_token"]["after"]
    size = f"{before:,} bytes a token" if before == after else f"{before:,} -> {after:,} bytes a token"
    found = [("caches", f"{caches['form']}, {size}")]
    if caches.get("steps"):
        found.append(("judged", f"with its own caches, the last {caches['steps']} tokens of each sample one by one"))
    return found


def _trained(trained: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What was kept of a model's training, and what was added to it."""
    if trained is None:
        return []
    kept, given, added = trained["kept"], trained["given"], trained["added"]
    names = added["activations"]
    shown = f" ({', '.join(names[:_NAMED])}{', …' if len(names) > _NAMED else ''})" if names else ""
    return [
        (
            "kept",
            f"{kept['activations']} of {given['activations']} trained scales of activations, "
            f"{kept['weights']} of {given['weights']} of weights",
        ),
        ("added", f"scales of {len(names)} activations{shown}, int32 biases of {added['biases']} layers"),
    ]


def _finetuned(facts: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What learning end to end changed."""
    if not facts:
        return []
    loss, found = facts["loss"], facts["sqnr_db"]
    db = "" if None in found.values() else f", SQNR {found['before']:.1f} -> {found['after']:.1f} dB"
    return [("finetuned", f"{facts['epochs']} epochs, loss {loss['before']:.3g} -> {loss['after']:.3g}{db}")]


def _outliers(nodes: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The share of channels that layers compute in float, where some do."""
    split = [node for node in nodes if node.get("outlier_channels")]
    if not split:
        return []
    products = [node for node in nodes if node["form"] in ("token", "split")]
    share = sum(node["outlier_channels"] for node in split) / sum(node["channels"] for node in split)
    return [("outliers", f"{share:.2%} of the input channels of {len(split)} of {len(products)} layers stay float")]


def token_facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Perplexity and agreement over tokens, and the drift of a model with states, where they are known."""
    facts = []
    perplexity, agreement = result.get("perplexity"), result.get("token_agreement")
    if perplexity:
        change = 100 * (perplexity["quantized"] / perplexity["float"] - 1)
        facts.append(("perplexity", f"{perplexity['float']:.4g} -> {perplexity['quantized']:.4g} ({change:+.2f} %)"))
    if agreement is not None:
        apart = result.get("token_divergence")
        more = "" if apart is None else f", divergence {apart:.3g} nats"
        facts.append(("tokens", f"the same one most likely for {100 * agreement:.1f} %{more}"))
    drift = result.get("free_running_loss")
    if drift is not None:
        facts.append(("drift", f"on its own states a loss of {100 * drift:.2g} % at the end of the samples"))
    return facts


def _workload(result: Mapping[str, Any]) -> str:
    """What the latency of a language model is of, where that is more than one pass."""
    counted = [phase for phase in (result.get("workload") or {}).get("phases", ()) if phase["passes"]]
    if not counted or result["latency_ratio"] is None:
        return ""
    passes = [phase["passes"] for phase in counted]
    if passes == [1]:
        return f", {counted[0]['name']}"
    into = next((phase["tokens"] for phase in counted if not phase["past"]), 0)
    return f", a {result['workload']['name']} of {into} tokens in, {passes[-1]} out"


def _phases(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The latency of each kind of pass of a language model."""
    facts = []
    for phase in (result.get("workload") or {}).get("phases", ()):
        if "float_ms" in phase:
            tokens = f"{phase['tokens']} token{'s' if phase['tokens'] != 1 else ''}"
            behind = f" behind {phase['past']}" if phase["past"] else ""
            faster = speed(times_faster(phase["float_ms"], phase["quantized_ms"]))
            before, after = three_digits(phase["float_ms"]), three_digits(phase["quantized_ms"])
            facts.append((phase["name"], f"{before} ms -> {after} ms, {faster} ({tokens}{behind})"))
    return facts


def generated_fact(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the quantized model follows what the float model generates."""
    found = result.get("generated")
    if not found:
        return []
    before, after = found["perplexity"]["float"], found["perplexity"]["quantized"]
    return [
        (
            "generated",
            f"the same token for {100 * found['agreement']:.1f} % of {found['tokens']} with its own cache, perplexity "
            f"{before:.4g} -> {after:.4g}, divergence {found['divergence']:.3g} nats",
        )
    ]


def _over_samples(outputs: Mapping[str, Mapping[str, Any]]) -> str:
    """How many samples an SQNR is over, and which of several outputs it is of."""
    real = {name: output for name, output in outputs.items() if output["sqnr_db"] is not None}
    if not real:
        return ""
    worst = min(real, key=lambda name: float(real[name]["sqnr_db"]))
    count = real[worst]["samples"]
    samples = f"over {count} sample{'s' if count != 1 else ''}"
    return f" {samples}" if len(real) == 1 else f" {samples}, worst of {len(real)} outputs ({worst})"


def inspection_facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Facts of a model as pairs of a name and a phrase; a list takes one pair an entry, the later ones unnamed.

    Args:
        result: what `onnxq.report.results.Inspection.to_dict` gives.
    """
    facts = []
    for name, value in result["facts"].items():
        shown = name.removesuffix("_bytes").replace("_", " ")
        if name == "quantized":
            facts.append((shown, ", ".join(value) or "nothing"))
        elif isinstance(value, (list, tuple)):
            facts.extend((shown if not i else "", cell(entry)) for i, entry in enumerate(value))
        else:
            facts.append((shown, in_bytes(value) if name == "size_bytes" else cell(value)))
    return facts


def seconds_by_step(result: Mapping[str, Any]) -> str:
    """What each step took, the longest first; steps of less than a hundredth of a second are left out."""
    steps = sorted((result.get("seconds_by_step") or {}).items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in steps if seconds >= 0.01)
