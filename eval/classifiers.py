"""The classifiers that data sets are scored by, in the table `CLASSIFIERS`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synth.base.registry import Registry
from synth.ops.layers import Conv2d, Sequential


class FixedClassifier(nn.Module):
    """Images (B, 3, 32, 32) in [0, 1] → logits (B, classes).

    The network of svhn-synthesis's `hackathon_evaluation.ipynb` (EESTech AI Marathon 2024): three
    times convolution, BatchNorm, ReLU, max-pool; two linear layers; 122,890 parameters.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for narrow, wide in ((3, 32), (32, 64), (64, 64)):
            layers += [
                Conv2d(narrow, wide, 3, padding=1),
                nn.BatchNorm2d(wide),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
        self.features = Sequential(*layers)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(64 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.features(images.contiguous(memory_format=torch.channels_last))
        logits: Tensor = self.head(x)
        return logits


WIDTHS = (16, 32, 64)
BLOCKS = 3  # in each of the three stages: 6·3 + 2 = 20 layers


class ResNet20(nn.Module):
    """Images (B, 3, 32, 32) in [0, 1] → logits (B, classes).

    ResNet-20 of He et al. 2016, arXiv:1512.03385, section 4.2, with its parameter-free shortcuts
    (option A) and its initialisation; 269,722 parameters. Two things differ from the paper. The
    first convolution is followed by 2×2 max-pooling, as in its networks for larger images: the
    stages work on maps of 16, 8 and 4 pixels a side, not 32, 16 and 8, at a third of the time. And
    max-pooling halves the maps between stages where the paper takes every second pixel: so small,
    these would lose too much (of held-out digits of a part of SVHN's training split, 67 % are right
    after 400 steps on the rest rather than 59 %, means of two seeds).
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = Sequential(
            Conv2d(3, WIDTHS[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTHS[0]),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )
        blocks = []
        narrow = WIDTHS[0]
        for wide in WIDTHS:
            for _ in range(BLOCKS):
                blocks.append(_Block(narrow, wide))
                narrow = wide
        self.blocks = nn.Sequential(*blocks)
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
    """ReLU(x + residual(x)); where there are new channels, x is max-pooled first, and the shortcut
    holds zeros for them."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.new = wide - narrow
        self.residual = Sequential(
            Conv2d(narrow, wide, 3, padding=1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(inplace=True),
            Conv2d(wide, wide, 3, padding=1, bias=False),
            nn.BatchNorm2d(wide),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.new:
            x = F.max_pool2d(x, 2)
        shortcut = F.pad(x, (0, 0, 0, 0, 0, self.new)) if self.new else x
        return F.relu(self.residual(x) + shortcut)


Classifier = FixedClassifier | ResNet20
CLASSIFIERS: Registry[Callable[[int], Classifier]] = Registry(  # number of classes → network
    "classifier", "eval.classifiers", {"fixed": FixedClassifier, "resnet20": ResNet20}
)
