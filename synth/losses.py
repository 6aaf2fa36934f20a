"""Adversarial losses on logits (Goodfellow et al. 2014, arXiv:1406.2661)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def real_loss(logits: Tensor) -> Tensor:
    """Cross-entropy of logits (B,) against "real"; on fakes it is the generator's loss, the
    non-saturating one with flipped labels."""
    return binary_cross_entropy_with_logits(logits, torch.ones_like(logits))


def fake_loss(logits: Tensor) -> Tensor:
    """Cross-entropy of logits (B,) against "fake"."""
    return binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))


def discriminator_loss(real: Tensor, fake: Tensor, reduction: Literal["mean", "sum"]) -> Tensor:
    """Both halves, as their mean, or as their sum (twice the gradient)."""
    total = real_loss(real) + fake_loss(fake)
    return total / 2 if reduction == "mean" else total
