"""The fixed classifier trained on the real training split: labeller, feature space, GAN-test.

Always the same network for the same images, so its weights are kept in the cache folder.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from pathlib import Path
from types import ModuleType

import safetensors.torch
import torch
from safetensors import SafetensorError

import eval.classifier_training
from eval.classifier_training import train_classifier
from eval.classifiers import FixedClassifier
from eval.protocols import PROTOCOLS, Protocol
from eval.score import disk_batches
from synth.base.errors import SynthError
from synth.base.files import atomic_file
from synth.base.progress import progress_bar, say
from synth.data import ImageSet, cache_folder
from synth.environment import describe_environment
from synth.ops.native import kernel_sources

SEED = 0


def real_protocol(protocol: Protocol) -> Protocol:
    """What the classifier behind a protocol's figures is trained by: the protocol itself, where
    that trains the fixed classifier on a set; else `fixed-v1`, so that figures under a stream or
    another network are in the same space."""
    own = protocol.data == "disk" and protocol.classifier == "fixed"
    return protocol if own else PROTOCOLS["fixed-v1"]


def real_classifier(
    real: ImageSet, protocol: Protocol, device: torch.device, precision: str
) -> FixedClassifier:
    """The fixed classifier, trained on all of `real` by the protocol with seed 0.

    It is read from the cache when it was trained before, by this code on this kind of machine. A
    cache that is damaged or cannot be written costs the time to train again.
    """
    path = cache_folder() / "classifiers" / f"{_key(real, protocol, device, precision)}.safetensors"
    known = _read(path, len(real.classes))
    if known is not None:
        return known.to(device)
    with progress_bar("train on the real training split", protocol.steps, "steps") as advance:
        classifier = train_classifier(
            disk_batches(protocol, real, device)(SEED),
            protocol.steps,
            len(real.classes),
            SEED,
            device,
            precision,
            advance,
        )
    assert isinstance(classifier, FixedClassifier)
    weights = {name: value.cpu().contiguous() for name, value in classifier.state_dict().items()}
    try:
        with atomic_file(path) as temporary:
            safetensors.torch.save_file(weights, temporary)
    except SynthError as error:
        say(f"not kept for the next time: {error}")
    return classifier


def _key(real: ImageSet, protocol: Protocol, device: torch.device, precision: str) -> str:
    """Of everything that the weights follow from, to the last bit."""
    environment = describe_environment(device)
    value = {
        "protocol": protocol.hash,
        "images": real.fingerprint,
        "seed": SEED,
        "precision": precision,
        **{key: environment[key] for key in ("torch", "device", "threads", "kernels")},
        "source": source_hash(),
    }
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def source_hash() -> str:
    """sha256 of the code that trains: every module of synth that the training reaches through its
    imports, and the C sources of the kernels. Raises RuntimeError where none is found."""
    used = sorted(path for path in _reached(eval.classifier_training) if path.is_file())
    if not used or not kernel_sources():
        raise RuntimeError("the real classifier's cache key found no source to depend on")
    digest = hashlib.sha256()
    for path in (*used, *kernel_sources()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _reached(start: ModuleType) -> set[Path]:
    """Files of the modules that `start` imports from synth and eval, directly or through others."""
    found: dict[str, Path] = {}
    waiting = [start.__name__]
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        ours = name.partition(".")[0] in ("synth", "eval")
        file = getattr(module, "__file__", None)
        if ours and file and name not in found:
            found[name] = Path(file)
            waiting += _imports(found[name])
    return set(found.values())


def _imports(path: Path) -> list[str]:
    """The modules that a Python file names in its import statements, at any depth."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


def _read(path: Path, classes: int) -> FixedClassifier | None:
    if not path.exists():
        return None
    classifier = FixedClassifier(classes)
    try:
        classifier.load_state_dict(safetensors.torch.load_file(path))
    except (SafetensorError, RuntimeError, OSError):
        return None  # damaged: trained again
    return classifier.to(memory_format=torch.channels_last).eval().requires_grad_(False)
