"""Baselines that augment, and those that need a teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eval import baselines, evaluator
from eval.baselines import (
    BASELINES,
    no_generator,
    pca_filtered,
    pca_gaussian,
    pca_relabelled,
    real_augmented,
    train_copy,
)
from eval.protocols import PROTOCOLS, TEACHER, Protocol, protocol_for
from eval.records import read_records
from synth.base.images import SIDES
from synth.data import DIGITS, ImageSet
from synth.generation import ShortClass
from tests.conftest import Ran, in_turns, sure_of

Synth = Callable[..., Ran]


def by_first_pixel(images: Tensor) -> Tensor:
    return sure_of(images[:, 0, 0, 0].long() % 10)


def test_augmented_real_images_are_changed_copies(
    drawn: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = train_copy(drawn, 30)
    monkeypatch.setattr(baselines, "BLOCK", 77)  # the last part is smaller
    made = real_augmented(drawn, 30)
    assert torch.equal(made.require_labels(), copies.require_labels())
    assert made.fingerprint == real_augmented(drawn, 30).fingerprint
    changed = (made.images != copies.images).flatten(1).any(1)
    assert changed.float().mean() > 0.99
    monkeypatch.setattr(baselines, "POLICY", "inversion-v1")
    inverted = real_augmented(drawn, 30).images
    same = (inverted == copies.images).flatten(1).all(1)
    opposite = (inverted == 255 - copies.images).flatten(1).all(1)
    assert (same ^ opposite).all() and 0.15 < opposite.float().mean() < 0.35


def test_pca_reaches_black_and_white() -> None:
    pixels = torch.randint(2, (110, 3, 32, 32), generator=torch.Generator().manual_seed(0)) * 255
    real = ImageSet(pixels.byte(), torch.arange(110) % 10, DIGITS, "dots", "train")
    made = pca_gaussian(real, 11).images
    assert (made.min(), made.max()) == (0, 255)


def test_a_teacher_labels_images_and_changes_no_pixel(drawn: ImageSet) -> None:
    for plain, relabelled in (
        (real_augmented(drawn, 40), no_generator(drawn, 40, by_first_pixel)),
        (pca_gaussian(drawn, 40), pca_relabelled(drawn, 40, by_first_pixel)),
    ):
        assert torch.equal(plain.images, relabelled.images)
        expected = relabelled.images[:, 0, 0, 0].long() % 10
        assert torch.equal(relabelled.require_labels(), expected)
    with pytest.raises(ShortClass, match="no image for class 1"):
        no_generator(drawn, 4, lambda images: sure_of(torch.zeros(len(images)).long()))


def test_a_filter_keeps_what_the_teacher_agrees_with(drawn: ImageSet) -> None:
    made = pca_filtered(drawn, 25, by_first_pixel)
    assert made.require_labels().bincount().tolist() == [25] * 10
    assert torch.equal(by_first_pixel(made.images).argmax(1), made.require_labels())
    with pytest.raises(ShortClass, match="too few samples of PCA for class 1"):
        pca_filtered(drawn, 3, lambda images: sure_of(torch.zeros(len(images)).long()))


def test_which_baselines_stand_beside_a_protocol() -> None:
    def beside(protocol: Protocol, *metrics: str) -> set[str]:
        return {name for name, each in BASELINES.items() if each.stands_beside(protocol, metrics)}

    plain = {"real", "real-same-size", "real-augmented", "pca-gaussian"}
    taught = {"no-generator", "pca-filtered", "pca-relabelled"}
    assert beside(PROTOCOLS["quick-v1"]) == plain
    assert beside(PROTOCOLS["fixed-v1"]) == plain | taught | {"teacher"}
    assert beside(PROTOCOLS["augmented-v1"]) == plain | taught  # its *real* is the teacher
    assert beside(PROTOCOLS["stream-v1"]) == {"real", "teacher"}
    asked = "memorisation", "augmentation-tenth"
    assert beside(PROTOCOLS["quick-v1"], *asked) == plain | {"copier", "real-tenth"}
    teachers = {protocol_for(TEACHER, side).name for side in SIDES}
    assert all(p.teacher in (None, *teachers) for p in PROTOCOLS.values())


@pytest.mark.usefixtures("tiny_names")
def test_rows_with_a_teacher_are_scored_and_verified(
    synth: Synth, mats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught = replace(PROTOCOLS["tiny-v1"], name="taught-v1", steps=4, teacher="tiny-teacher")
    teacher = replace(taught, name="tiny-teacher", steps=20, teacher=None)
    assert taught.hash == replace(taught, teacher=None).hash
    for protocol in (taught, teacher):
        monkeypatch.setitem(PROTOCOLS.entries, protocol.name, protocol)
    asked: list[str] = []

    def never_eight(images: Tensor) -> Tensor:
        return in_turns(images[:8])[torch.arange(len(images)) % 8]

    def train_classify(real: ImageSet, protocol: Protocol, *_: object) -> Callable[..., Tensor]:
        asked.append(protocol.name)
        return in_turns if len(asked) > 1 else never_eight

    monkeypatch.setattr(evaluator, "train_classify", train_classify)
    trained = ("--images", "32", "--precision", "fp32", "--data-root", mats)
    assert synth("train", "--recipe", "tiny", *trained).code == 0
    assert synth("generate", "--per-class", "20").code == 0
    options = ("--protocol", "taught-v1", "--precision", "fp32", "--metrics", "cas")
    ran = synth("evaluate", *options, "--data-root", mats)
    assert ran.code == 0, ran.err
    for name in ("PCA + Gaussian, filtered by the teacher", "no generator, labels of the teacher"):
        assert f"{name}: left out: the teacher takes" in ran.err
    ran = synth("evaluate", *options, "--data-root", mats)
    assert ran.code == 0, ran.err
    records = {record.entry.kind: record for record in read_records(Path("results"))}
    assert set(records) >= {"teacher", "no-generator", "pca-filtered", "real-augmented"}
    assert asked == ["tiny-teacher"] * 2  # one teacher for all
    assert records["no-generator"].entry.labeller == "tiny-teacher"
    assert records["teacher"].protocol["name"] == "taught-v1"
    # The teacher's classifiers take other steps than those of *real* on the same images
    assert records["teacher"].entry.sha256 == records["real"].entry.sha256
    errors = [records[kind].scores[0].calibration_error for kind in ("teacher", "real")]
    assert errors[0] != errors[1]
    for kind in ("teacher", "no-generator", "real-augmented"):
        ran = synth("verify", records[kind].id, "--data-root", mats)
        assert ran.code == 0 and "holds, bit for bit" in ran.out, ran.err
