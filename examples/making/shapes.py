"""A small detector, trained in seconds, and scenes for it: bright and dark rectangles on noise.

The network is as larger detectors are: convolutions, and for each cell of a grid a score and a box.
"""

from __future__ import annotations

import numpy as np
import torch

SIDE, CELL = 64, 8


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture (1, SIDE, SIDE) from 0 to 1, and the boxes in it (n, 4): left, top, right, bottom."""
    rng = np.random.default_rng(seed)
    picture = 0.5 + 0.05 * rng.standard_normal((SIDE, SIDE))
    boxes = []
    for column, row in [(0, 0), (32, 0), (0, 32), (32, 32)]:  # at most one in each quarter, so that none overlap
        if rng.random() < 0.6:
            width, height = rng.integers(10, 22, 2)
            left, top = column + rng.integers(1, 31 - width), row + rng.integers(1, 31 - height)
            picture[top : top + height, left : left + width] += rng.choice([-0.35, 0.35])
            boxes.append([left, top, left + width, top + height])
    return picture[None].astype(np.float32).clip(0, 1), np.array(boxes, np.float32).reshape(-1, 4)


class Detector(torch.nn.Module):
    """Pictures (batch, 1, SIDE, SIDE) to boxes (batch, cells, 4) and scores (batch, cells)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = []
        for inputs, outputs, stride in [(1, 16, 2), (16, 32, 2), (32, 48, 2), (48, 48, 1), (48, 48, 1)]:
            layers += [torch.nn.Conv2d(inputs, outputs, 3, stride, 1), torch.nn.BatchNorm2d(outputs), torch.nn.ReLU()]
        self.body = torch.nn.Sequential(*layers, torch.nn.Conv2d(48, 5, 1))
        steps = torch.arange(SIDE // CELL) * CELL + CELL / 2
        x, y = torch.meshgrid(steps, steps, indexing="xy")
        self.register_buffer("centres", torch.stack([x, y], -1).reshape(1, -1, 2))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Distances from the centre of a cell to the four sides of its box make the box."""
        found = self.body(image).flatten(2).transpose(1, 2)
        sides = torch.nn.functional.softplus(found[..., :4]) * CELL
        boxes = torch.cat([self.centres - sides[..., :2], self.centres + sides[..., 2:]], -1)
        return boxes, found[..., 4].sigmoid()


def trained(steps: int = 150) -> Detector:
    """A cell answers for the box that its centre lies in."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more do not pay for a network as small as this
    network = Detector()
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    scenes = [scene(seed) for seed in range(300)]
    pictures = torch.from_numpy(np.stack([picture for picture, _ in scenes]))
    centres = network.centres[0]
    truth = torch.zeros(len(scenes), len(centres), 4)
    for index, (_, boxes) in enumerate(scenes):
        for box in torch.from_numpy(boxes):
            truth[index, ((centres > box[:2]) & (centres < box[2:])).all(1)] = box
    inside = truth[..., 2] > 0
    for step in range(steps):
        picked = torch.arange(step * 32, step * 32 + 32) % len(scenes)
        boxes, scores = network(pictures[picked])
        error = torch.nn.functional.l1_loss(boxes[inside[picked]], truth[picked][inside[picked]]) / CELL
        loss = error + torch.nn.functional.binary_cross_entropy(scores, inside[picked].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()
