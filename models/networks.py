"""The networks, in torch. What each is for a quantizer: README.md."""

from __future__ import annotations

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, each with BatchNormalization, and a shortcut (1 x 1 where the shape changes)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU()
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels_in, h, w) -> (n, channels_out, h / stride, w / stride)."""
        kept = x if self.shortcut is None else self.shortcut(x)
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + kept)


class SeparableBlock(nn.Module):
    """Depthwise 3 x 3 with Relu6, pointwise 1 x 1 with SiLU."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels_in, channels_in, 3, stride, 1, groups=channels_in, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.relu6 = nn.ReLU6()
        self.pointwise = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.silu = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels_in, h, w) -> (n, channels_out, h / stride, w / stride)."""
        return self.silu(self.bn2(self.pointwise(self.relu6(self.bn1(self.depthwise(x))))))


class Classifier(nn.Module):
    """A stem, blocks, the mean over the image and one linear layer."""

    def __init__(self, stem: list[nn.Module], blocks: list[nn.Module], channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*stem)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 1, 16, 16) -> logits (n, 10)."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def residual() -> Classifier:
    """Three stages of 32, 64 and 64 channels on 16, 8 and 8 pixels."""
    stem = [nn.Conv2d(1, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    return Classifier(stem, [ResidualBlock(32, 32, 1), ResidualBlock(32, 64, 2), ResidualBlock(64, 64, 1)], 64)


def separable() -> Classifier:
    """Five separable blocks of 64 to 192 channels on 16, then 8 pixels."""
    stem = [nn.Conv2d(1, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
    widths = [(32, 64, 1), (64, 128, 1), (128, 128, 2), (128, 128, 1), (128, 192, 1)]
    return Classifier(stem, [SeparableBlock(*width) for width in widths], 192)


def perceptron() -> nn.Sequential:
    """64 -> 512 -> 256 -> 10 with Relu."""
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10))
