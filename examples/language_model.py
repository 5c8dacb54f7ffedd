"""A language model for onnxruntime-genai: the folder quantized, and what both versions say.

python -m examples.language_model FOLDER prompts.txt "Once upon a time"

FOLDER is what ``onnxruntime_genai.models.builder`` writes; prompts.txt has texts of the kind that the model will see.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime_genai as genai

import onnxq


def said(folder: Path, prompt: str, tokens: int = 24) -> str:
    """What a model says behind a prompt, the likeliest token each time."""
    model = genai.Model(str(folder))
    tokenizer = genai.Tokenizer(model)
    start = tokenizer.encode(prompt)
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(start) + tokens, do_sample=False)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(start)
    while not generator.is_done():
        generator.generate_next_token()
    return str(tokenizer.decode(generator.get_sequence(0)[len(start) :]))


def main(folder: Path, prompts: Path, prompt: str, output: Path, preset: str = "w8") -> dict[str, str]:
    """Quantize the folder, say what that came to, and let both versions speak."""
    result = onnxq.quantize_folder(folder, output, calibration=prompts, preset=preset)
    print(result.summary())
    texts = {"float": said(folder, prompt), "quantized": said(output, prompt)}
    for name, text in texts.items():
        print(f"{name}: {text}")
    return texts


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    given = Path(sys.argv[1])
    main(given, Path(sys.argv[2]), sys.argv[3], given.with_name(f"{given.name}.w8"))
