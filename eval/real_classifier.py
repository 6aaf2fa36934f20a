"""The fixed classifier trained on the real training split: *real*, teacher, labeller, feature
space, GAN-test.

The same images always give the same network, so its weights are kept in a cache folder, with the
hash of what the file holds. `synth verify` never reads that of the user: it gives an empty one.
"""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import torch

from eval.classifier_training import choose_classifier_precision, predict, train_classifier
from eval.classifiers import FixedClassifier
from eval.protocols import PROTOCOLS, Protocol, protocol_for
from eval.scoring import disk_batches
from synth.base.errors import SynthError
from synth.base.files import cache_folder
from synth.base.locks import clear_leftovers, task
from synth.base.progress import progress_bar, say
from synth.checkpoints import load_tensors, save_tensors
from synth.data import ImageSet, load_training_images, unit_from_uint8
from synth.environment import MACHINE, describe_environment
from synth.generation import Classify
from synth.ops.augment import augment
from synth.ops.layers import Conv2d
from synth.ops.native import kernel_sources
from synth.runs import Run
from synth.training import check_same_images

LABELLER_PROTOCOL = "fixed-v1"


def real_protocol(protocol: Protocol) -> Protocol:
    """What the classifier behind a protocol's figures is trained by: the protocol itself, where
    that trains the fixed classifier on a set; else `fixed-v1`, so that figures under a stream or
    another network are in the same space."""
    own = protocol.data == "disk" and protocol.classifier == "fixed"
    return protocol if own else protocol_for("fixed-v1", protocol.side)


def real_classifier(
    real: ImageSet,
    protocol: Protocol,
    device: torch.device,
    precision: str,
    cache: Path | None = None,
    seed: int = 0,
) -> FixedClassifier:
    """The fixed classifier, trained on all of `real` by the protocol. That of seed 0 labels,
    teaches and measures.

    It is read from the cache when it was trained before, by this code on this kind of machine. If
    another process trains it now, it waits. A cache that is damaged or cannot be written costs the
    time to train again. cache: None is that of the user.
    """
    cache = cache or cache_folder()
    path = cache / "classifiers" / f"{_key(real, protocol, device, precision, seed)}.safetensors"
    clear_leftovers(path.parent)  # of a process that was killed; where all is known, nobody writes
    with ExitStack() as stack:
        with suppress(SynthError):  # a cache that cannot be written has no locks
            stack.enter_context(task(cache, "the real classifier", path.stem, wait=True))
        return _read_or_train(path, real, protocol, device, precision, seed)


def _read_or_train(
    path: Path, real: ImageSet, protocol: Protocol, device: torch.device, precision: str, seed: int
) -> FixedClassifier:
    classes, batches = len(real.classes), disk_batches(protocol, real, device)(seed)
    known = _read(path, classes, protocol.side)
    if known is not None:
        return known.to(device)
    title = f"train on the real training split, seed {seed}"
    with progress_bar(title, protocol.steps, "steps") as advance:
        classifier = train_classifier(protocol, batches, classes, seed, device, precision, advance)
    assert isinstance(classifier, FixedClassifier)
    try:
        save_tensors(path, classifier.state_dict(), {})
    except SynthError as error:
        say(f"not kept for the next time: {error}")
    return classifier


def train_classify(
    real: ImageSet,
    protocol: Protocol,
    device: torch.device,
    precision: str,
    cache: Path | None = None,
) -> Classify:
    """The fixed classifier, to label or reject a generator's images."""
    precision, _ = choose_classifier_precision(precision, device, protocol)
    return partial(predict, real_classifier(real, protocol, device, precision, cache))


def classify_for(run: Run, protocol: str, data_root: Path | None, device: torch.device) -> Classify:
    """The classifier that labels or rejects images of `run`. It is trained on the run's images and
    in the run's precision, so that the set follows from what its manifest says."""
    real = load_training_images(run.config.dataset_key, data_root)
    check_same_images(run, real)
    return train_classify(real, PROTOCOLS.find(protocol), device, run.config.precision)


def _key(
    real: ImageSet, protocol: Protocol, device: torch.device, precision: str, seed: int
) -> str:
    """Of everything that the weights follow from, to the last bit."""
    environment = describe_environment(device)
    value = {
        "protocol": protocol.hash,
        "images": real.fingerprint,
        "seed": seed,
        "precision": precision,
        **{key: environment[key] for key in (*MACHINE, "threads")},
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "source": source_hash(),
    }
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def source_hash() -> str:
    """sha256 of the code that the weights follow from. Raises RuntimeError where none is found."""
    sources = _sources()
    if not sources:
        raise RuntimeError("the real classifier's cache key found no source to depend on")
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()


def _sources() -> set[Path]:
    """Files of the modules that define what trains, of the fast layers, and of their kernels.

    They are found through the imported objects, so that a module can move.
    """
    names = {
        used.__module__ for used in (train_classifier, FixedClassifier, unit_from_uint8, augment)
    }
    layers = Conv2d.__module__.rpartition(".")[0]
    names |= {name for name in sys.modules if name.startswith(f"{layers}.")}
    return {*(Path(str(sys.modules[name].__file__)) for name in names), *kernel_sources()}


def _read(path: Path, classes: int, side: int) -> FixedClassifier | None:
    """None if the file is missing, damaged or not what was written: it is then trained again."""
    try:
        classifier = FixedClassifier(classes, side)
        classifier.load_state_dict(load_tensors(path)[0])
    except (SynthError, RuntimeError):
        return None
    return classifier.to(memory_format=torch.channels_last).eval().requires_grad_(False)
