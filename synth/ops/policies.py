"""Augmentation policies: which random changes keep the class of an image.

A policy is frozen and versioned, like a protocol. A change of anything in it is a new policy.
"""

from __future__ import annotations

from dataclasses import dataclass

from synth.base.registry import Registry


@dataclass(frozen=True)
class Policy:
    """How far each property of an image may change, in both directions."""

    shift: float = 0.0  # pixels, across and down
    rotation: float = 0.0  # degrees
    scale: float = 0.0  # share of the size
    shear: float = 0.0  # pixels across per pixel down
    contrast: float = 0.0  # share of each value's distance from the image's mean
    brightness: float = 0.0  # share of each value
    inversion: float = 0.0  # probability of 1 - x; SVHN has light digits on dark and the reverse

    @property
    def moves(self) -> bool:
        return any((self.shift, self.rotation, self.scale, self.shear))


GEOMETRY = Policy(shift=2.5, rotation=8.0, scale=0.12, shear=0.1)
COLOUR = Policy(contrast=0.2, brightness=0.2)
POLICIES: Registry[Policy] = Registry(
    "--augment",
    "synth.policies",
    Policy,
    {
        "none": Policy(),
        "geometry-v1": GEOMETRY,
        "colour-v1": COLOUR,
        "inversion-v1": Policy(inversion=0.25),
        "geometry-colour-v1": Policy(2.5, 8.0, 0.12, 0.1, 0.2, 0.2),
        "digits-v1": Policy(2.5, 8.0, 0.12, 0.1, 0.2, 0.2, 0.25),
    },
)


def check_policy(name: str) -> None:
    """Raises ValueError if there is no policy of this name."""
    if name not in POLICIES:
        raise ValueError(f"there is no augmentation policy {name}; choose {', '.join(POLICIES)}")
