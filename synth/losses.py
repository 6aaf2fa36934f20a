"""The losses of the family `gan`."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from synth.networks import Judged
from synth.ops.parallel import total
from synth.recipes import Recipe

SURE = 0.9  # a teacher that gives a fake's label this probability says nothing more about it


def real_loss(logits: Tensor) -> Tensor:
    """Cross-entropy of logits (B,) with the target "real". On fakes it is the non-saturating loss
    of the generator (Goodfellow et al. 2014, arXiv:1406.2661)."""
    return binary_cross_entropy_with_logits(logits, torch.ones_like(logits))


def fake_loss(logits: Tensor) -> Tensor:
    """Cross-entropy of logits (B,) with the target "fake"."""
    return binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))


def discriminator_loss(real: Tensor, fake: Tensor, reduction: Literal["mean", "sum"]) -> Tensor:
    """The mean or the sum of the losses on real and on fake logits."""
    total = real_loss(real) + fake_loss(fake)
    return total / 2 if reduction == "mean" else total


def real_class_loss(scores: Tensor | None, labels: Tensor, dual: bool) -> Tensor | float:
    """The loss of a head with 2·K classes, (B, 2·K), on real images; 0 without such a head.

    dual: P, the first K, classifies real images, and Q, the last K, fakes (P2GAN). Otherwise it is
    one classifier: class y of real images is y, and that of fakes is K + y (ADC-GAN).
    """
    if scores is None:
        return 0.0
    if dual:
        return cross_entropy(scores.float().chunk(2, 1)[0], labels)
    return cross_entropy(scores.float(), labels) / 2


def fake_class_loss(scores: Tensor | None, labels: Tensor, dual: bool) -> Tensor | float:
    """The same on fakes."""
    if scores is None:
        return 0.0
    if dual:
        return cross_entropy(scores.float().chunk(2, 1)[1], labels)
    return cross_entropy(scores.float(), labels + scores.shape[1] // 2) / 2


def generator_loss(
    judged: Judged, on_real: Judged, labels: Tensor, classes: int, recipe: Recipe
) -> Tensor:
    """The loss of the generator, from what the discriminator says of its fakes.

    The generator of ADC-GAN raises log C(y, real) - log C(y, fake), with a weight of 1.
    """
    loss = real_loss(judged.logits.float())
    if judged.classes is not None and recipe.discriminator.label == "adc":
        scores = judged.classes.float()
        right, fake = (cross_entropy(scores, labels + shift) for shift in (0, classes))
        loss = loss + right - fake
    if judged.classes is not None and recipe.training.class_weight:
        own_classifier = judged.classes.float().chunk(2, 1)[0]
        loss = loss + recipe.training.class_weight * cross_entropy(own_classifier, labels)
    if recipe.training.feature_matching:
        own, real = (_class_means(each.features, labels, classes) for each in (judged, on_real))
        loss = loss + recipe.training.feature_matching * (own - real).square().mean()
    return loss


def _class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(K, D): the mean features of each class in the batch, 0 for a class without an image."""
    members = one_hot(labels, classes).float()
    counts = total(members.sum(0))
    return total(members.T @ features.float()) / counts.clamp(min=1)[:, None]


def teacher_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The teacher's cross-entropy on fakes, 0 for those that it is sure of already."""
    losses = cross_entropy(logits.float(), labels, reduction="none")
    return (losses * (losses > -math.log(SURE))).mean()
