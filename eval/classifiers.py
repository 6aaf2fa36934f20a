"""The classifiers that score training sets, in the table `CLASSIFIERS`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synth.base.images import SIDE
from synth.base.registry import Registry
from synth.ops.layers import Conv2d, Sequential


def _convolution(narrow: int, wide: int, bias: bool = False) -> list[nn.Module]:
    return [Conv2d(narrow, wide, 3, padding=1, bias=bias), nn.BatchNorm2d(wide)]


class FixedClassifier(nn.Module):
    """Images (B, 3, side, side) in [0, 1] → logits (B, classes). It has 122,890 parameters for
    32×32. For 64×64 a fourth block as the third one halves the map once more.

    The network is that of svhn-synthesis's `hackathon_evaluation.ipynb` (EESTech AI Marathon 2024).
    """

    def __init__(self, classes: int = 10, side: int = SIDE) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = (3, 32, 64, 64, 64) if side == 64 else (3, 32, 64, 64)
        for narrow, wide in pairwise(widths):
            convolution = _convolution(narrow, wide, bias=True)
            layers += [*convolution, nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.features = Sequential(*layers)
        last = side >> (len(widths) - 1)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(64 * last * last, 64), nn.ReLU(), nn.Linear(64, classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images.contiguous(memory_format=torch.channels_last))
        logits: Tensor = self.head(x)
        return logits


WIDTHS = (16, 32, 64)
BLOCKS = 3  # in each of the three stages: 6·3 + 2 = 20 layers


class ResNet20(nn.Module):
    """Images (B, 3, side, side) in [0, 1] → logits (B, classes). It has 269,722 parameters for
    every side.

    ResNet-20 of He et al. 2016, arXiv:1512.03385, section 4.2, with its initialisation and with
    shortcuts that have no parameters (option A). It differs from the paper in two ways:
    - 2×2 max-pooling follows the first convolution, as in the paper's networks for larger images.
      The stages work on maps of 16, 8 and 4 pixels a side, in a third of the time.
    - Max-pooling halves the maps between stages. The paper takes every second pixel, which loses
      too much on such small maps: 59 % instead of 67 % accuracy on held-out digits of the training
      split, after 400 steps on a part of SVHN (means of two seeds).
    """

    def __init__(self, classes: int = 10, side: int = SIDE) -> None:
        super().__init__()
        first = _convolution(3, WIDTHS[0])
        self.stem = Sequential(*first, nn.ReLU(inplace=True), nn.MaxPool2d(2))
        widths = [WIDTHS[0], *(wide for wide in WIDTHS for _ in range(BLOCKS))]
        self.blocks = nn.Sequential(*(_Block(*pair) for pair in pairwise(widths)))
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], classes)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        logits: Tensor = self.head(self.blocks(x))
        return logits


class _Block(nn.Module):
    """ReLU(shortcut(x) + residual(x)). If there are more channels out than in, x is max-pooled
    first, and the shortcut has zeros in the new channels."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.new = wide - narrow
        first, second = _convolution(narrow, wide), _convolution(wide, wide)
        self.residual = Sequential(*first, nn.ReLU(inplace=True), *second)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.new:
            x = F.max_pool2d(x, 2)
            shortcut = F.pad(x, (0, 0, 0, 0, 0, self.new))
        return F.relu(self.residual(x) + shortcut)


Classifier = FixedClassifier | ResNet20
# Number of classes, and side of the images where it is not 32 → network
CLASSIFIERS: Registry[Callable[..., Classifier]] = Registry(
    "classifier", "eval.classifiers", entries={"fixed": FixedClassifier, "resnet20": ResNet20}
)
