"""Frozen, versioned protocols: how a classifier is trained before it is scored.

A change of anything in a protocol is a new protocol with a new name.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from synth.base.errors import UsageError


@dataclass(frozen=True)
class Protocol:
    """How a classifier is trained before it is scored; its name stands for all of it."""

    name: str
    data: Literal["disk", "stream"]  # a finished data set, or fresh samples with uniform labels
    steps: int
    batch: int
    seeds: int
    classifier: str = "fixed"  # a name in eval.classifier_training.CLASSIFIERS
    optimizer: str = "adam, learning rate 1e-3"
    augmentation: str = "none"

    @property
    def hash(self) -> str:
        """Tells protocols of one name apart, should anybody change one without renaming it."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "hash": self.hash}


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("fixed-v1", "disk", steps=2_000, batch=256, seeds=3),
        # The source notebook's: 10 epochs of 100 steps of 1,000 fresh images.
        Protocol("stream-v1", "stream", steps=1_000, batch=1_000, seeds=3),
        Protocol("quick-v1", "disk", steps=400, batch=256, seeds=1),
        # 800 steps cost about as much time as fixed-v1's 2,000.
        Protocol("fixed-resnet-v1", "disk", steps=800, batch=256, seeds=3, classifier="resnet20"),
    )
}


def find_protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise UsageError(f"--protocol {name}: unknown; choose {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
