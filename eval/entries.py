"""Entries of sets that are to be scored: what synth's manifest, or a user, says of them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

from eval.evaluator import Evaluator
from eval.protocols import Protocol
from eval.records import Entry
from synth import foreign
from synth.base.errors import SynthError, UsageError
from synth.base.files import portable, sha256
from synth.base.progress import say
from synth.data import ImageSet
from synth.provenance import Provenance
from synth.synthetic_set import SyntheticSet, read_synthetic

SUFFIXES = {"conditional": "", "classifier": " + pseudo-labels", "random": " + random labels"}


@dataclass(frozen=True)
class Brought:
    """What a user says of a set that synth did not make."""

    name: str | None = None  # of the method: its sets are runs of one row
    seed: int | None = None  # of the generator
    classes: tuple[str, ...] | None = None  # the real data's class of each class of the set
    resize: bool = False  # images to the size of the real data


def entry_of(
    provenance: Provenance,
    count: int,
    digest: str | None = None,
    folder: str | None = None,
    manifest: str | None = None,
) -> Entry:
    """The record's entry for a set that synth made."""
    name = f"{provenance.recipe}{SUFFIXES.get(provenance.labels or '', '')}"
    name += f", {provenance.chosen} checkpoint" if provenance.chosen else ""
    name += f", last {len(provenance.mixture)} checkpoints" if provenance.mixture else ""
    name += f", latents × {provenance.latent_scale:g}" if provenance.latent_scale else ""
    name += f", {provenance.rejection:.0%} rejected" if provenance.rejection else ""
    name += f" + {provenance.augmentation}" if provenance.augmentation else ""
    values = {field.name: getattr(provenance, field.name) for field in fields(Provenance)}
    return Entry("synthetic", name, count, digest, folder, manifest, **values)


@dataclass(frozen=True)
class Given:
    """A set that was read to be scored, with the classes of the real data, and its entry."""

    synthetic: SyntheticSet
    entry: Entry


def read_for(evaluator: Evaluator, folder: Path, brought: Brought | None = None) -> Given:
    """Reads a set to be scored by this evaluator. Raises `SynthError` if it does not fit the real
    data, and says what is changed so that it fits."""
    test = evaluator.test
    side = test.images.shape[-1]
    told = brought or Brought()
    synthetic = read_synthetic(folder, side if told.resize else None)
    images, manifest = synthetic.images, synthetic.manifest
    if manifest is not None and brought is not None:
        raise UsageError(
            f"{folder}: synth made it, and its manifest.json names it; --name, --seed, --classes "
            "and --resize go with other sets"
        )
    if images.labels is None:
        mend = "generate it with --label-with classifier, or from a conditional run"
        raise SynthError(f"{folder}: has no labels; {mend if manifest else 'add them to it'}")
    if images.images.shape[2:] != test.images.shape[2:]:
        height, width = images.images.shape[2:]
        mend = "choose the right --dataset" if manifest else "--resize changes them to that size"
        raise SynthError(
            f"{folder}: its images are {width}×{height}, and those of {test.name} {side}×{side}; "
            f"{mend}"
        )
    if manifest is not None:
        if images.classes != test.classes:
            raise SynthError(
                f"{folder}: has the classes {', '.join(images.classes)}, but {test.name} has "
                f"{', '.join(test.classes)}; choose the right --dataset"
            )
        return Given(synthetic, synthetic_entry(synthetic, evaluator.protocol))
    return _given(synthetic, told, test)


def _given(synthetic: SyntheticSet, told: Brought, test: ImageSet) -> Given:
    """A set that synth did not make, with its classes renumbered as those of the real data."""
    folder, images, side = synthetic.folder, synthetic.images, test.images.shape[-1]
    classes = foreign.match_classes(
        images.classes, test.classes, synthetic.named, told.classes, str(folder)
    )
    if classes != images.classes:
        pairs = zip(images.classes, classes, strict=True)
        say(f"{folder}: classes {', '.join(f'{ours} → {real}' for ours, real in pairs)}")
    if told.resize:
        say(f"{folder}: images of another size are resized to {side}×{side}")
    numbers = [test.classes.index(name) for name in classes]
    synthetic = replace(synthetic, images=foreign.renumber(images, numbers, test.classes))
    entry = Entry(
        kind="synthetic",
        name=told.name or images.name,
        count=len(images),
        sha256=synthetic.images.fingerprint,
        folder=portable(folder),
        labels="conditional",  # whoever made it says what the labels are
        training_seed=told.seed,
        method=told.name,
        numbering=numbers if classes != images.classes else None,
        resized=side if told.resize else None,
    )
    return Given(synthetic, entry)


def brought_of(entry: Entry, real: tuple[str, ...]) -> Brought:
    """What was said of the set of an entry that synth did not make. real: the real classes."""
    classes = tuple(real[number] for number in entry.numbering) if entry.numbering else None
    return Brought(entry.method, entry.training_seed, classes, entry.resized is not None)


def synthetic_entry(synthetic: SyntheticSet, protocol: Protocol) -> Entry:
    """The entry of a set that synth made."""
    manifest, folder = synthetic.manifest, portable(synthetic.folder)
    assert manifest is not None
    written = sha256(synthetic.folder / "manifest.json")
    if protocol.data == "stream":  # its samples are the generator's own
        manifest = replace(
            manifest,
            augmentation=None,
            rejection=None,
            rejecter=None,
            latent_scale=None,
            mixture=None,
        )
        return entry_of(manifest, protocol.steps * protocol.batch, None, folder, written)
    return entry_of(manifest, len(synthetic.images), manifest.sha256, folder, written)
