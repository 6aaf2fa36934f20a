"""synth's own stages as generators of one step each, like those in `peers`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import peers, tuned
from eval.classifier_training import (
    ClassifierTrainer,
    choose_classifier_precision,
    shuffled_batches,
)
from eval.classifiers import FixedClassifier
from eval.protocols import PROTOCOLS
from synth.data import DIGITS, ImageSet
from synth.gan import GANSampler
from synth.generation import CHUNK, stream_images
from synth.networks import build
from synth.ops.acceleration import keep_freed_memory
from synth.published import RECIPES
from synth.recipes import Recipe
from synth.training import plan_run

CPU = torch.device("cpu")
RECIPE = cast(Recipe, RECIPES["cdcgan"])
Loop = Callable[[Tensor, Tensor], Iterator[None]]


def train(
    images: Tensor, labels: Tensor, precision: str = "auto", device: torch.device = CPU
) -> Iterator[None]:
    keep_freed_memory()  # as every command of synth does
    data = ImageSet(images, labels, DIGITS, "benchmark", "train")
    config = plan_run(RECIPE, "benchmark", data, None, 0, precision, device)
    trainer = config.family.make_trainer(config, data, None, device)
    while True:
        trainer.step()
        yield


def train_fp32(images: Tensor, labels: Tensor) -> Iterator[None]:
    return train(images, labels, "fp32")


def sample(images: Tensor, labels: Tensor, precision: str = "auto") -> Iterator[None]:
    keep_freed_memory()
    data = ImageSet(images, labels, DIGITS, "benchmark", "train")
    config = plan_run(RECIPE, "benchmark", data, None, 0, precision, CPU)
    generator = build(RECIPE, 10, 0)[0].eval().requires_grad_(False)
    out = np.empty((CHUNK, 32, 32, 3), np.uint8)
    for chunk in stream_images(GANSampler(generator, config.precision), 0, 0):
        out[:] = chunk.permute(0, 2, 3, 1).numpy()
        yield


def sample_fp32(images: Tensor, labels: Tensor) -> Iterator[None]:
    return sample(images, labels, "fp32")


def classify(images: Tensor, labels: Tensor, precision: str = "auto") -> Iterator[None]:
    keep_freed_memory()
    protocol = PROTOCOLS["fixed-v1"]
    precision, _ = choose_classifier_precision(precision, CPU, protocol)
    trainer = ClassifierTrainer(protocol, 10, 0, CPU, precision)
    for x, y in shuffled_batches(images, labels, peers.CLASSIFIER_BATCH, 0, CPU):
        trainer.step(x, y)
        yield


def classify_fp32(images: Tensor, labels: Tensor) -> Iterator[None]:
    return classify(images, labels, "fp32")


# stage → contender → (loop, images in a step); "synth" runs as it does by default
STAGES: dict[str, dict[str, tuple[Loop, int]]] = {
    "training": {
        "synth": (train, 128),
        "synth, fp32": (train_fp32, 128),
        "examples loop": (peers.train_examples, 128),
        "notebook loop": (peers.train_notebook, 128),
        "Lightning Fabric": (peers.train_fabric, 128),
        "Keras on torch": (peers.train_keras, 128),
        **tuned.loops(tuned.train, peers.BATCH),
    },
    "sampling": {
        "synth": (sample, CHUNK),
        "synth, fp32": (sample_fp32, CHUNK),
        "batches of 128": (peers.sample_examples, 128),
        "notebook's generate(1000)": (peers.sample_notebook, 1000),
        **tuned.loops(tuned.sample, tuned.SAMPLED),
    },
    "classifier": {
        "synth": (classify, 256),
        "synth, fp32": (classify_fp32, 256),
        "notebook loop": (peers.classify_notebook, 256),
        **tuned.loops(tuned.classify, peers.CLASSIFIER_BATCH),
    },
}


def flops_per_image() -> dict[str, float]:
    """Multiply-adds counted twice, as torch's own counter counts them, per image of each stage."""
    batch = 32
    images = torch.randint(256, (batch, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(10, (batch,))
    nets, optimizers = peers.networks()
    with FlopCounterMode(display=False) as training:
        real = images.float() / 127.5 - 1
        peers.gan_step(nets, optimizers, real, labels, torch.randn(batch, peers.LATENT))
    with FlopCounterMode(display=False) as sampling, torch.no_grad():
        nets[0](torch.randn(batch, peers.LATENT), labels)
    with FlopCounterMode(display=False) as classifier:
        FixedClassifier()(images / 255).sum().backward()
    counters = {"training": training, "sampling": sampling, "classifier": classifier}
    return {stage: counter.get_total_flops() / batch for stage, counter in counters.items()}
