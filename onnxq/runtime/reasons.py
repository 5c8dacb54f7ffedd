"""What ONNX Runtime's error messages say, without the C++ around it."""

from __future__ import annotations

import re

_PREFIX = re.compile(r"\[ONNXRuntimeError\]\s*:\s*\d+\s*:\s*[A-Z_]+\s*:?\s*")
_SOURCE = re.compile(r"(?:[\w./\\-]*/)?[\w-]+\.(?:cc|h|hpp|cpp|cu|cuh):\d+\s*")
_CUSTOM = re.compile(r"([\w.\-]*):([\w.\-]+)\(-?\d+\) is not a registered function/op")
_UNKNOWN = re.compile(r"No Op registered for ([\w.\-]+) with domain_version of (\d+)")
_LIMIT = 400
_WORD = re.compile(r"\S{200,}")
_READ = 20_000
"""Characters of a message that are looked at; some print a whole graph."""


def reason(error: BaseException) -> str:
    """The message of an error from ONNX Runtime as one line: no error code, file, function or line break.

    An operator that the runtime does not know is named with its domain.
    """
    text = _WORD.sub(lambda found: f"{found[0][:76]}...", " ".join(str(error).split()))[:_READ]
    if found := _CUSTOM.search(text):
        domain = found[1] or "ai.onnx"
        return f"operator '{found[2]}' of domain '{domain}' is not available in it; name its library with --custom-ops"
    if found := _UNKNOWN.search(text):
        return f"operator '{found[1]}' does not exist in operator set {found[2]}"
    text = _PREFIX.sub("", text)
    while found := _SOURCE.search(text):
        text = text[: found.start()] + _without_signature(text[found.end() :])
    text = text.strip().rstrip(".:;")
    if len(text) > _LIMIT:
        text = text[:_LIMIT].rsplit(" ", 1)[0] + " …"
    return text or type(error).__name__


def _without_signature(text: str) -> str:
    """Cut ``onnxruntime::Status onnxruntime::f(args) const [with T = …]`` or a bare function name off the front."""
    opening = text.find("(")
    if "::" not in text[: opening if opening >= 0 else len(text)]:
        # helper.h:59 Compute <message>: one bare name
        head, _, rest = text.partition(" ")
        return rest if head.isidentifier() and rest else text
    while opening >= 0:
        depth, end = 0, opening
        for end in range(opening, len(text)):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            if depth == 0:
                break
        rest = text[end + 1 :].removeprefix(">").lstrip()  # the > of a lambda's <lambda(args)>
        if rest.startswith("::") or (rest.startswith("(") and text[opening : end + 1] == "()"):  # lambdas, operator()()
            opening = text.find("(", end + 1)
            continue
        for word in ("const", "noexcept"):
            rest = rest.removeprefix(word).lstrip()
        if rest.startswith("[with "):
            rest = rest.partition("]")[2].lstrip()
        return rest
    return text
