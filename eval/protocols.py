"""Frozen, versioned protocols: how a classifier is trained before it is scored.

A change of anything in a protocol is a new protocol with a new name.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from synth.base.errors import UsageError
from synth.base.images import SIDE, SIDES
from synth.base.registry import Registry

DEFAULT = "fixed-v1"  # its tables come first
LATER = ("learning_rate", "schedule", "policy", "label_smoothing", "side")
# The text that stands in the hash of a protocol that has all fields of `LATER` at their defaults
TEACHER = "augmented-v1"  # trains the teachers
FROZEN = {"optimizer": "adam, learning rate 1e-3", "augmentation": "none"}


@dataclass(frozen=True)
class Protocol:
    """How a classifier is trained before it is scored; its name stands for all of it."""

    name: str
    data: Literal["disk", "stream"]  # a finished data set, or fresh samples with uniform labels
    steps: int
    batch: int
    seeds: int
    classifier: str = "fixed"  # a name in eval.classifiers.CLASSIFIERS
    learning_rate: float = 1e-3  # of Adam; the highest one of a one-cycle schedule
    schedule: Literal["constant", "one-cycle"] = "constant"  # see `one_cycle`
    policy: str = "none"  # how training images are augmented: a name in synth.ops.policies
    label_smoothing: float = 0.0
    side: int = SIDE  # of the images, in pixels
    # The protocol that trains the teacher of the baselines beside it; None: it has no such ones.
    # It is not in the hash, because it changes nothing for other entries.
    teacher: str | None = None

    @property
    def payload(self) -> dict[str, Any]:
        """What the hash is made from. A field that came later is absent at its default, so that the
        hashes of older protocols stay."""
        values = asdict(self)
        del values["teacher"]
        later = {field.name: field.default for field in fields(self) if field.name in LATER}
        at_default = {name for name, default in later.items() if values[name] == default}
        kept = {name: value for name, value in values.items() if name not in at_default}
        return {**kept, **FROZEN} if len(at_default) == len(LATER) else kept

    @property
    def hash(self) -> str:
        """Tells protocols of one name apart, should anybody change one without renaming it."""
        text = json.dumps(self.payload, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        return {**self.payload, "hash": self.hash}


_TABLE = (
    Protocol("fixed-v1", "disk", steps=2_000, batch=256, seeds=3, teacher=TEACHER),
    # The source notebook's: 10 epochs of 100 steps of 1,000 fresh images.
    Protocol("stream-v1", "stream", steps=1_000, batch=1_000, seeds=3, teacher=TEACHER),
    Protocol("quick-v1", "disk", steps=400, batch=256, seeds=1),
    # 800 steps cost about as much time as fixed-v1's 2,000.
    Protocol(
        "fixed-resnet-v1",
        "disk",
        steps=800,
        batch=256,
        seeds=3,
        classifier="resnet20",
        teacher=TEACHER,
    ),
    # How people train a classifier who want a good one. Its policy was chosen for svhn-part.
    Protocol(
        TEACHER,
        "disk",
        steps=4_000,
        batch=256,
        seeds=3,
        learning_rate=3e-3,
        schedule="one-cycle",
        policy="digits-v1",
        label_smoothing=0.05,
        teacher=TEACHER,
    ),
)


def at_side(protocol: Protocol, side: int) -> Protocol:
    """The protocol for images of this side, which its name then says: fixed-64-v1. Raises
    `UsageError` if this one is for another side that is not 32."""
    if protocol.side == side:
        return protocol
    if protocol.side != SIDE:
        raise UsageError(
            f"--protocol {protocol.name}: is for images of {protocol.side}×{protocol.side}, and "
            f"the real ones have {side}×{side}; leave it out"
        )
    teacher = None if protocol.teacher is None else _sized(protocol.teacher, side)
    return replace(protocol, name=_sized(protocol.name, side), side=side, teacher=teacher)


def _sized(name: str, side: int) -> str:
    head, _, version = name.rpartition("-")
    return f"{head}-{side}-{version}"


_SIZES = (SIDE, *(side for side in SIDES if side != SIDE))
PROTOCOLS: Registry[Protocol] = Registry(
    "--protocol",
    "eval.protocols",
    Protocol,
    {made.name: made for side in _SIZES for made in (at_side(each, side) for each in _TABLE)},
)


def names_for_32() -> list[str]:
    """The names of all protocols but the forms for other sizes."""
    own = PROTOCOLS.entries
    return [name for name in PROTOCOLS.names() if name not in own or own[name].side == SIDE]


def protocol_for(name: str, side: int) -> Protocol:
    """The protocol of this name for images of this side."""
    return PROTOCOLS.find(at_side(PROTOCOLS.find(name), side).name)
