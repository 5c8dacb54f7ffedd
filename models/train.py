"""Train a network on scikit-learn's digits and write its ONNX file, calibration samples and test samples.

    python models/train.py digits_resnet      # or digits_dsconv, digits_mlp, or all

Needs torch, scikit-learn and onnx; takes a minute or two a network on one core. Repeated runs on one machine and one
version of torch write the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import nn

import digits
from export import Exporter
from networks import Classifier, perceptron, residual, separable

BATCH = 60


@dataclass(frozen=True)
class Network:
    """How one network is built, fed and trained."""

    build: Callable[[], Classifier | nn.Sequential]
    prepare: digits.Prepare
    input_name: str
    sample_shape: tuple[int, ...]
    epochs: int
    learning_rate: float
    fold: bool
    """Whether BatchNormalization is folded into the convolutions on export."""


NETWORKS = {
    "digits_resnet": Network(residual, digits.as_image, "image", (1, 16, 16), 20, 4e-3, fold=False),
    "digits_dsconv": Network(separable, digits.as_image, "image", (1, 16, 16), 24, 6e-3, fold=True),
    "digits_mlp": Network(perceptron, digits.as_vector, "pixels", (64,), 60, 2e-3, fold=True),
}


def shifted(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each (8, 8) image moved by -1, 0 or 1 pixels in both directions, zeros at the edge."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    moves = rng.integers(0, 3, (len(images), 2))
    return np.stack([image[y : y + 8, x : x + 8] for image, (y, x) in zip(padded, moves, strict=True)])


def train(network: Network) -> tuple[Classifier | nn.Sequential, float]:
    """Train on the training part, with random shifts, and score the test part.

    Returns:
        The network in evaluation mode and its test accuracy.
    """
    torch.manual_seed(digits.SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    rng = np.random.default_rng(digits.SEED)
    data = digits.split()
    model = network.build()
    steps = network.epochs * (len(data.train_labels) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=network.learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, network.learning_rate, total_steps=steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    for epoch in range(network.epochs):
        images = network.prepare(shifted(data.train_images, rng))
        for chosen in np.split(rng.permutation(len(images)), len(images) // BATCH):
            optimizer.zero_grad()
            loss = loss_of(model(torch.from_numpy(images[chosen])), torch.from_numpy(data.train_labels[chosen]))
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1:3} loss {loss.item():.4f}", file=sys.stderr)
    model.eval()
    with torch.inference_mode():
        answers = model(torch.from_numpy(network.prepare(data.test_images))).argmax(1).numpy()
    return model, float((answers == data.test_labels).mean())


def write(stem: str) -> None:
    """Train the named network and write its three files."""
    network = NETWORKS[stem]
    model, accuracy = train(network)
    exporter = Exporter(fold=network.fold)
    if isinstance(model, Classifier):
        exporter.classifier(model)
    else:
        exporter.perceptron(model)
    path = digits.HERE / f"{stem}.onnx"
    onnx.save(exporter.model(stem, network.input_name, network.sample_shape), path)
    written = [path, *digits.write_samples(stem, network.input_name, network.prepare)]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{stem}: test accuracy {accuracy:.4f}, {parameters} parameters")
    for file in written:
        print(f"  {file.relative_to(digits.HERE.parent)}: {file.stat().st_size} bytes")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train the networks in models/; see models/README.md.")
    parser.add_argument("network", choices=[*NETWORKS, "all"])
    chosen = parser.parse_args().network
    for stem in NETWORKS if chosen == "all" else [chosen]:
        write(stem)


if __name__ == "__main__":
    main()
