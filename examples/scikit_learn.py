"""A classifier of scikit-learn to ONNX by skl2onnx, and to int8.

pip install scikit-learn skl2onnx
python examples/scikit_learn.py digits.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

import onnxq


def main(output: Path) -> onnxq.QuantizeResult:
    """Train, convert, quantize."""
    pixels, digits = load_digits(return_X_y=True)
    pixels = (pixels / 16).astype(np.float32)
    x_train, x_test, y_train, _ = train_test_split(pixels, digits, random_state=0)
    network = MLPClassifier(hidden_layer_sizes=(128, 64), max_iter=30, early_stopping=True, random_state=0)
    network.fit(x_train, y_train)

    # zipmap=False: probabilities as one tensor, which can be compared, instead of a list of dicts.
    model = to_onnx(network, x_train[:1], options={"zipmap": False}, target_opset=18)

    # Samples for ranges come from the training set; the test set stays for the comparison below.
    result = onnxq.quantize(model, output, calibration=x_train[:200], preset="w8a8")
    print(result.summary())

    comparison = onnxq.compare(model, output, calibration=x_test)
    print(f"\non {len(x_test)} digits that neither training nor calibration saw:")
    print(comparison.summary())
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "digits.onnx"))
