"""A streaming model of speech activity, whose state goes from call to call, in int8.

    python examples/speech_activity.py

Samples need not hold states: what the model leaves at one sample goes into the next, when calibrating and when judging.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import onnxq
from examples.making.voice import listen, recording, save


def main(folder: Path) -> dict[str, float]:
    """Quantize, then listen to a recording with both models."""
    model = folder / "voice.onnx"
    save(model)  # yours in its place

    # In the order in which they follow one another. States are found by their names: hn goes to h, cn to c. Where
    # names do not tell, say states={"output": "input"}.
    sound, _ = recording(seed=10, chunks=200)
    feeds = [{"sound": chunk[None]} for chunk in sound]
    result = onnxq.quantize(model, folder / "voice.int8.onnx", calibration=feeds, preset="w8a8")
    print(result.summary(), "\n")

    sound, active = recording(seed=11, chunks=200)
    before, _ = listen(model, sound)
    after, _ = listen(result.output, sound)
    print("truth", "".join("#" if now else "." for now in active[:100]))
    print("float", "".join("#" if now > 0.5 else "." for now in before[:100]))
    print("int8 ", "".join("#" if now > 0.5 else "." for now in after[:100]))
    same = float(((before > 0.5) == (after > 0.5)).mean())
    right = [float(((said > 0.5) == active).mean()) for said in (before, after)]
    print(f"{same:.1%} of the decisions are the same; right are {right[0]:.1%} and {right[1]:.1%}")
    return {"same": same, "float": right[0], "int8": right[1]}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
