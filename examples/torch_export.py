"""From PyTorch to int8 in one script: export with torch.onnx and dynamo, quantize, verify.

pip install torch onnxscript
python examples/torch_export.py digits.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

import onnxq

DATA = Path(__file__).resolve().parents[1] / "calibration_data" / "digits_resnet.npz"


def trained(images: torch.Tensor, labels: torch.Tensor) -> torch.nn.Module:
    """Yours goes here. It has to be in eval mode, so that BatchNormalization is a constant factor."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more do not pay for a network as small as this
    layers: list[torch.nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 32), (32, 64)):
        layers += [
            torch.nn.Conv2d(inputs, outputs, 3, padding=1),
            torch.nn.BatchNorm2d(outputs, momentum=0.3),
            torch.nn.ReLU(),
        ]
    layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 10)]
    network = torch.nn.Sequential(*layers)
    optimizer = torch.optim.Adam(network.parameters(), 0.005)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network.eval()


def main(output: Path) -> onnxq.QuantizeResult:
    """Export and quantize; no float file is needed in between."""
    data = np.load(DATA)
    network = trained(torch.from_numpy(data["image"]), torch.from_numpy(data["labels"]).long())

    # A free batch dimension lets samples be fed in batches, and the model be used in any.
    program = torch.onnx.export(
        network,
        (torch.from_numpy(data["image"][:2]),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None

    # The samples are prepared as for inference; 'labels' would be left out where there are none. A DataLoader does too.
    result = onnxq.quantize(program.model_proto, output, calibration=DATA, preset="w8a8")
    print(result.summary())
    for node, op_type, reason in result.kept_float:
        print(f"float: {op_type} {node}: {reason}")
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "digits.onnx"))
