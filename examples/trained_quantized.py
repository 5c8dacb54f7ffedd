"""Quantization-aware training of a PyTorch network, to 8-bit activations with 8-bit and with 4-bit weights.

python -m examples.trained_quantized
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

import onnxq
from models.networks import residual
from onnxq import qat

ROOT = Path(__file__).resolve().parents[1]


def fit(network: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, *, epochs: int, rate: float) -> None:
    """A training loop as yours: it knows nothing of quantization."""
    optimizer = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(images) // 32))
    network.train()
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
        for part in order.split(32):
            optimizer.zero_grad()
            functional.cross_entropy(network(images[part]), labels[part]).backward()
            optimizer.step()
            schedule.step()
    network.eval()


def accuracy(network: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images whose class is found."""
    with torch.no_grad():
        return float((network(images).argmax(1) == labels).float().mean())


def main(folder: Path, *, epochs: int = 8) -> dict[str, tuple[float, onnxq.QuantizeResult | None]]:
    """Train a float network, then a copy of it for each form, and write that."""
    torch.manual_seed(0)
    data, test = np.load(ROOT / "calibration_data" / "digits_resnet.npz"), ROOT / "models" / "digits_resnet.test.npz"
    images, labels = torch.from_numpy(data["image"]), torch.from_numpy(data["labels"]).long()
    held_out = np.load(test)
    unseen = torch.from_numpy(held_out["image"]), torch.from_numpy(held_out["labels"]).long()

    network = residual()
    fit(network, images, labels, epochs=epochs, rate=0.003)
    found: dict[str, tuple[float, onnxq.QuantizeResult | None]] = {"float": (accuracy(network, *unseen), None)}
    for bits in (8, 4):
        # prepare() trains the parameters of the module that it is given: a copy leaves the float network as it is
        prepared = qat.prepare(
            copy.deepcopy(network),
            images[:64],  # ranges begin with what these images give, so let them be real ones
            recipe={"preset": "w8a8", "bits": bits},
            input_names=["image"],
            output_names=["logits"],
        )
        fit(prepared, images, labels, epochs=max(epochs // 2, 1), rate=0.001)
        result = qat.export(prepared, folder / f"digits.w{bits}a8.onnx", calibration=test)
        found[f"w{bits}a8"] = accuracy(prepared, *unseen), result
        print(result.summary())
    for name, (share, _) in found.items():
        print(f"{name}: {100 * share:.1f} % of {len(unseen[0])} images")
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
