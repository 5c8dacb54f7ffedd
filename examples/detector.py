"""A detector in int8, with the boxes of both models drawn side by side.

pip install torch onnxscript Pillow
python -m examples.detector before_and_after.png
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image, ImageDraw

import onnxq
from examples.making.shapes import scene, trained


def overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of one box with others."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = (high - low).clip(0).prod(1)
    return shared / ((box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - shared)


def detect(session: onnxruntime.InferenceSession, picture: np.ndarray) -> np.ndarray:
    """Boxes that the model is sure of, each object once."""
    boxes, scores = (output[0] for output in session.run(["boxes", "scores"], {"image": picture[None]}))
    kept: list[np.ndarray] = []
    for index in scores.argsort()[::-1]:
        if scores[index] > 0.5 and (not kept or overlap(boxes[index], np.array(kept)).max() < 0.4):
            kept.append(boxes[index])
    return np.array(kept).reshape(-1, 4)


def draw(picture: np.ndarray, boxes: np.ndarray, colour: str) -> Image.Image:
    """The picture four times as large, with its boxes."""
    image = Image.fromarray((picture[0] * 255).astype(np.uint8)).convert("RGB").resize((256, 256))
    for left, top, right, bottom in boxes * 4:
        ImageDraw.Draw(image).rectangle([left, top, right, bottom], outline=colour, width=2)
    return image


def main(image: Path, folder: Path) -> dict[str, float]:
    """Export, quantize, detect with both, draw."""
    model = folder / "detector.onnx"
    example = torch.from_numpy(scene(0)[0][None])
    torch.onnx.export(
        trained(),
        (example,),
        model,
        input_names=["image"],
        output_names=["boxes", "scores"],
        dynamo=True,
        verbose=False,
    )

    feeds = [{"image": scene(seed)[0][None]} for seed in range(1000, 1100)]
    result = onnxq.quantize(model, folder / "detector.int8.onnx", calibration=feeds, preset="w8a8")
    print(result.summary(), "\n")

    # Figures of tensors say little about boxes: count the objects that the int8 model finds where float does.
    sessions = [
        onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"]) for file in (model, result.output)
    ]
    found = matched = 0
    rows = []
    for seed in range(2000, 2050):
        picture, _ = scene(seed)
        before, after = (detect(session, picture) for session in sessions)
        found += len(before)
        matched += sum(len(after) > 0 and overlap(box, after).max() > 0.7 for box in before)
        if len(before) > 1 and len(rows) < 3:
            rows.append((draw(picture, before, "lime"), draw(picture, after, "orange")))
    sheet = Image.new("RGB", (516, 260 * len(rows)), "white")
    for index, (left, right) in enumerate(rows):
        sheet.paste(left, (0, 260 * index))
        sheet.paste(right, (260, 260 * index))
    sheet.save(image)
    print(f"{matched} of {found} objects of the float model are found by the int8 model too; see {image}")
    return {"found": found, "matched": matched}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else "before_and_after.png"), Path(temporary))
