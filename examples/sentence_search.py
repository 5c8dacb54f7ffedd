"""A sentence encoder in int8, and a search with it: are the answers those of the float model?

    python examples/sentence_search.py

The encoder is models/text_encoder.onnx without its classifier: a sentence in, a vector out. Yours goes in its place.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx.utils
import onnxruntime

import onnxq

MODELS = Path(__file__).resolve().parents[1] / "models"


def embed(model: Path, feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Vectors of length 1, a row a sentence."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    rows = np.concatenate([session.run(None, feed)[0] for feed in feeds])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def main(folder: Path) -> dict[str, float]:
    """Quantize, search with both models, and print the first answers."""
    model = folder / "encoder.onnx"
    # The vector is what the classifier reads: the mean of the last layer over what is not padding.
    onnx.utils.extract_model(MODELS / "text_encoder.onnx", model, ["input_ids", "attention_mask"], ["div_3"])

    # Samples as in use: real sentences, padded, with their masks. Padding is left out of the statistics by itself.
    data = np.load(MODELS / "text_encoder.test.npz")
    feeds = [
        {"input_ids": data["input_ids"][i : i + 1], "attention_mask": data["attention_mask"][i : i + 1]}
        for i in range(len(data["input_ids"]))
    ]
    result = onnxq.quantize(model, folder / "encoder.int8.onnx", calibration=feeds[:100], preset="w8a8")
    print(result.summary(), "\n")

    # The test that counts: the same library, the same questions, the nearest sentence by either model.
    library, questions = feeds[100:500], feeds[500:]
    answers = []
    for file in (model, Path(result.output)):
        similarity = embed(file, questions) @ embed(file, library).T
        answers.append(similarity.argsort(axis=1)[:, ::-1][:, :10])
    pieces = json.loads((MODELS / "text.vocab.json").read_text(encoding="utf-8"))

    def text(feed: dict[str, np.ndarray]) -> str:
        return "".join(pieces[i] for i in feed["input_ids"][0] if i).strip()

    for number in range(3):
        print("question", text(questions[number]))
        print("float   ", text(library[answers[0][number][0]]))
        print("int8    ", text(library[answers[1][number][0]]), "\n")
    same = float((answers[0][:, 0] == answers[1][:, 0]).mean())
    shared = float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*answers, strict=True)]))
    print(f"{same:.0%} of the first answers are the same, and {shared:.0%} of the first ten")
    return {"same": same, "shared": shared, "sqnr_db": result.sqnr_db}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
