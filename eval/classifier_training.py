"""How a classifier is trained on batches of images. Nothing here reads a test split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from eval.classifiers import CLASSIFIERS, Classifier
from eval.protocols import Protocol
from synth.base.images import SIDE
from synth.data import uint8_from_unit, unit_from_uint8
from synth.ops.acceleration import (
    adam,
    autocast,
    maybe_cuda_graph,
    optimizer_step,
    optimizer_tensors,
)
from synth.ops.augment import augment, draw_numbers
from synth.ops.policies import POLICIES, Policy
from synth.ops.probe import choose_precision

Batches = Iterator[tuple[Tensor, Tensor]]  # uint8 (B, 3, 32, 32), int64 (B,)
SCORING_BATCH = 1000


def train_classifier(
    protocol: Protocol,
    batches: Batches,
    classes: int,
    seed: int,
    device: torch.device,
    precision: str = "fp32",
    progress: Callable[[int], None] = lambda steps: None,
) -> Classifier:
    """Takes the protocol's steps of Adam, and returns the classifier as it is after the last one.

    progress: called with the number of new steps.
    """
    trainer = ClassifierTrainer(protocol, classes, seed, device, precision)
    if protocol.policy != "none":
        batches = augmented_batches(batches, POLICIES.find(protocol.policy), seed)
    images, labels = next(batches)
    step = maybe_cuda_graph(trainer.step, (images.to(device), labels.to(device)), trainer.state)
    for number in range(1, protocol.steps + 1):
        if protocol.schedule == "one-cycle":
            trainer.rate.fill_(one_cycle(number - 1, protocol.steps, protocol.learning_rate))
        step(images.to(device), labels.to(device))
        if number < protocol.steps:
            images, labels = next(batches)
        if number % 20 == 0:
            progress(20)
    return trainer.classifier.eval().requires_grad_(False)


class ClassifierTrainer:
    """A classifier in training. `seed` decides its first weights."""

    def __init__(
        self, protocol: Protocol, classes: int, seed: int, device: torch.device, precision: str
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            size = () if protocol.side == SIDE else (protocol.side,)
            self.classifier = CLASSIFIERS[protocol.classifier](classes, *size)
        self.classifier.to(device).to(memory_format=torch.channels_last)
        self.rate = torch.tensor(protocol.learning_rate, device=device)  # a CUDA graph reads it
        rate = self.rate if protocol.schedule == "one-cycle" else protocol.learning_rate
        self.optimizer = adam(self.classifier, rate, (0.9, 0.999))
        self.device, self.precision = device, precision
        self.label_smoothing = protocol.label_smoothing

    def step(self, images: Tensor, labels: Tensor) -> None:
        with autocast(self.device, self.precision):
            logits = self.classifier(unit_from_uint8(images))
        loss = cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)
        optimizer_step(self.optimizer, loss)

    def state(self) -> dict[str, Tensor]:
        return self.classifier.state_dict() | optimizer_tensors("adam", self.optimizer)


def shuffled_batches(
    images: Tensor, labels: Tensor, batch: int, seed: int, device: torch.device
) -> Batches:
    """Endless batches of images, shuffled again in every pass. A batch can span two passes.

    images: uint8 (N, 3, 32, 32); labels: int64 (N,). Both are moved to `device` once.
    """
    random = torch.Generator().manual_seed(seed)
    images, labels = images.to(device), labels.to(device)
    order = torch.empty(0, dtype=torch.int64)
    while True:
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(len(images), generator=random)])
        picks, order = order[:batch].to(device), order[batch:]
        yield images[picks], labels[picks]


def augmented_batches(batches: Batches, policy: Policy, seed: int) -> Batches:
    """The same batches with augmented images. Each image of each batch has its own numbers."""
    key = np.random.SeedSequence([seed, *b"augment"]).generate_state(1, np.uint64)[0]
    random = torch.Generator().manual_seed(int(key >> np.uint64(1)))
    for images, labels in batches:
        numbers = draw_numbers(len(images), random).to(images.device)
        changed = augment(unit_from_uint8(images), policy, numbers)
        yield uint8_from_unit(changed), labels


def one_cycle(step: int, steps: int, highest: float) -> float:
    """The learning rate of a step, from 0: up for 30 % of the steps, and down for the rest.

    Cosines between highest / 25, `highest` and highest / 250,000: OneCycleLR of PyTorch with its
    defaults, after Smith & Topin 2019 (arXiv:1708.07120).
    """
    top = 0.3 * steps - 1
    up = step <= top
    start, end = (highest / 25, highest) if up else (highest, highest / 25e4)
    share = step / top if up else (step - top) / (steps - 1 - top)
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def predict(classifier: Classifier, images: Tensor) -> Tensor:
    """uint8 images (N, 3, 32, 32) → class probabilities, float32 (N, classes) on the CPU."""
    device = next(classifier.parameters()).device
    with torch.inference_mode():
        parts = [
            classifier(unit_from_uint8(part.to(device))).softmax(1)
            for part in images.split(SCORING_BATCH)
        ]
    return torch.cat(parts).cpu()


def choose_classifier_precision(
    asked: str, device: torch.device, protocol: Protocol
) -> tuple[str, str]:
    """`choose_precision` for training a protocol's classifier."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(
        256, (256, 3, protocol.side, protocol.side), generator=random, dtype=torch.uint8
    )
    labels = torch.randint(10, (256,), generator=random)
    example = images.to(device), labels.to(device)

    def prepare(precision: str) -> Callable[[], None]:
        trainer = ClassifierTrainer(protocol, 10, 0, device, precision)
        step = maybe_cuda_graph(trainer.step, example, trainer.state)
        return lambda: step(*example)

    work = f"classifier of {protocol.hash}"
    return choose_precision(asked, prepare, device, work)
