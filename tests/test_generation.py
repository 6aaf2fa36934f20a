"""Generated images: a seed each, balanced, written whole, read with checks."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from synth import generation
from synth.base.errors import SynthError, UsageError
from synth.base.files import read_json
from synth.gan import GANSampler
from synth.generation import Sampling, fresh_batch, generate, generate_labelled, stream_images
from synth.networks import build
from synth.provenance import Manifest
from synth.published import RECIPES
from synth.synthetic_set import Generated, read_synthetic, write_synthetic
from tests.conftest import sure_of, tiny

CLASSES = tuple("0123456789")
DATA = {  # format → what it writes
    **{"npz": "images.npz", "folder": "train", "mat": "train.mat", "parquet": "data"},
    "webdataset": "train-000000.tar",
}
MANIFEST = Manifest(
    format="npz",
    sha256="",
    classes=CLASSES,
    recipe="tiny",
    generation_seed=0,
    dataset="drawn",
    dataset_key="house-numbers",
    labels="conditional",
)


@pytest.fixture(scope="module")
def generator() -> GANSampler:
    return GANSampler(build(tiny("tiny", True), 10, 0)[0].eval().requires_grad_(False))


@pytest.fixture(scope="module")
def unconditional() -> GANSampler:
    generator = build(tiny("tiny-uncond", False), 10, 0)[0].eval().requires_grad_(False)
    for weight in generator.parameters():
        weight.mul_(10)  # an untrained one makes all but the same grey image every time
    return GANSampler(generator)


@settings(max_examples=12)
@given(few=st.integers(1, 40), more=st.integers(0, 600), chunk=st.sampled_from([1, 7, 250]))
def test_a_larger_set_begins_with_the_smaller(
    generator: GANSampler, few: int, more: int, chunk: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "CHUNK", chunk)
        small = generate(generator, 10, few, seed=3).images.reshape(10, few, 32, 32, 3)
    large = generate(generator, 10, few + more, seed=3).images.reshape(10, few + more, 32, 32, 3)
    assert np.array_equal(large[:, :few], small)


def test_published_networks_give_the_same_images_on_any_batch_size() -> None:
    """The same, for the networks that are really used, whose convolutions are blocked."""
    generator = build(RECIPES["cdcgan"], 10, 0)[0].eval().requires_grad_(False)
    sets = []
    for chunk in (250, 100, 33):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(generation, "CHUNK", chunk)
            sets.append(generate(GANSampler(generator), 2, 100, seed=1).images)
    assert np.array_equal(sets[0], sets[1])
    assert np.array_equal(sets[0], sets[2])


def test_images_differ_by_class_index_and_seed(generator: GANSampler) -> None:
    images = generate(generator, 10, 20, seed=0).images.reshape(200, -1)
    assert len(np.unique(images, axis=0)) == 200
    assert not np.array_equal(images, generate(generator, 10, 20, seed=1).images.reshape(200, -1))


def test_sets_are_balanced_and_in_class_order(generator: GANSampler) -> None:
    made = generate(generator, 10, 7, seed=0)
    assert made.labels is not None
    assert made.labels.tolist() == [label for label in range(10) for _ in range(7)]
    assert made.images.shape == (70, 32, 32, 3)
    assert made.images.dtype == np.uint8


def test_each_image_is_its_latents_image(generator: GANSampler) -> None:
    latents = np.random.default_rng([5, 4]).standard_normal((3, 8), dtype=np.float32)
    images = generator.generator(torch.from_numpy(latents), torch.full((3,), 4))
    expected = ((images + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(next(stream_images(generator, 4, seed=5))[:3], expected)


def test_unconditional_sets_are_unlabelled(unconditional: GANSampler) -> None:
    assert generate(unconditional, 10, 2, seed=0).labels is None


def pixel_sum(images: Tensor) -> Tensor:
    return images.long().sum((1, 2, 3)) % 10


def by_pixel_sum(images: Tensor) -> Tensor:
    return sure_of(pixel_sum(images))


def test_labeller_fills_each_class_with_the_first_that_fit(unconditional: GANSampler) -> None:
    made = generate_labelled(unconditional, by_pixel_sum, CLASSES, 30, seed=0)
    assert made.labels is not None
    assert np.bincount(made.labels).tolist() == [30] * 10
    pixels = torch.from_numpy(made.images).permute(0, 3, 1, 2)
    assert pixel_sum(pixels).tolist() == made.labels.tolist()
    candidates = next(stream_images(unconditional, 0, seed=0))
    first = candidates[pixel_sum(candidates) == 6][:5]
    assert torch.equal(pixels[made.labels == 6][:5], first)
    assert made.candidates() >= 300


def test_a_class_that_stays_short_is_named(unconditional: GANSampler) -> None:
    def never_six(images: Tensor) -> Tensor:
        labels = torch.arange(len(images)) % 10
        return sure_of(labels.where(labels != 6, torch.tensor(5)))

    with pytest.raises(SynthError, match="class 6 stays short: 0 of 10 images after 5,000 tries"):
        generate_labelled(unconditional, never_six, CLASSES, 10, seed=0)


def by_brightness(images: Tensor) -> Tensor:
    """Probabilities (N, 10): those of even digits grow with the brightness, odd ones' shrink."""
    light = images.float().mean((1, 2, 3)) / 255
    return torch.stack([light, 1 - light], 1).repeat(1, 5) / 5


@settings(max_examples=10)
@given(st.sampled_from([0.1, 0.5, 0.9]), st.integers(1, 300))
def test_rejection_leaves_out_the_least_likely_and_keeps_the_order(
    generator: GANSampler, reject: float, per_class: int
) -> None:
    sampling = Sampling(reject=reject)
    made = generate(generator, 2, per_class, 0, sampling=sampling, teacher=by_brightness)
    for label in range(2):
        chunks = list(
            islice(stream_images(generator, label, 0), 4 + int(9 * reject / (1 - reject)))
        )
        likely = [by_brightness(chunk)[:, label] for chunk in chunks]
        threshold = torch.cat(likely[:4]).quantile(reject)
        kept = torch.cat(chunks)[torch.cat(likely) >= threshold][:per_class]
        own = made.images[label * per_class :][:per_class]
        assert np.array_equal(own, kept.permute(0, 2, 3, 1).numpy())
    # Four chunks of each class set its threshold, and later ones fill up chunks of 250
    assert 2000 <= made.candidates() <= 2000 + 2 * (max(per_class, 250) / (1 - reject)) * 2


def test_rejection_comes_before_augmentation(generator: GANSampler) -> None:
    both = Sampling(augment="inversion-v1", reject=0.5)
    made = generate(generator, 1, 60, 0, sampling=both, teacher=by_brightness).images
    alone = Sampling(reject=0.5)
    plain = generate(generator, 1, 60, 0, sampling=alone, teacher=by_brightness).images
    inverted = [np.array_equal(a, 255 - b) for a, b in zip(made, plain, strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(made, plain, strict=True)]
    assert all(a != b for a, b in zip(inverted, same, strict=True)) and 3 < sum(inverted) < 30


def test_the_scale_of_latents(generator: GANSampler) -> None:
    latents = 1.5 * np.random.default_rng([5, 4]).standard_normal((3, 8), dtype=np.float32)
    images = generator.generator(torch.from_numpy(latents), torch.full((3,), 4))
    expected = ((images + 1) * 127.5).round().to(torch.uint8)
    wide = Sampling(latent_scale=1.5)
    assert torch.equal(next(stream_images(generator, 4, 5, wide))[:3], expected)
    assert generator.latent_scale == 1

    class NoLatents:
        classes = 2

        def __call__(self, labels: Tensor, random: np.random.Generator) -> Tensor:
            raise AssertionError

    with pytest.raises(UsageError, match="--latent-scale"):
        list(generate(NoLatents(), 2, 1, 0, sampling=wide).make_chunks())  # type: ignore[arg-type]


def test_several_generators_make_the_chunks_in_turns(generator: GANSampler) -> None:
    other = GANSampler(build(tiny("tiny", True), 10, 7)[0].eval().requires_grad_(False))
    both = stream_images([generator, other], 3, seed=1)
    random = np.random.default_rng([1, 3])
    for take in (generator, other, generator):
        assert torch.equal(next(both), take(torch.full((250,), 3), random))


def test_fresh_batches_have_uniform_labels(generator: GANSampler) -> None:
    images, labels = fresh_batch(generator, 10, 5000, np.random.default_rng(0))
    assert images.shape == (5000, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.bincount(minlength=10).float().std() < 50  # binomial: 21


def test_classes_that_the_generator_does_not_know_are_refused(generator: GANSampler) -> None:
    known = generator.classes
    assert known == 10
    assert len(generate(generator, known, 1, seed=0).images) == known
    with pytest.raises(UsageError, match=f"classes {known + 1}: this generator knows {known}"):
        generate(generator, known + 1, 1, seed=0)


def test_nothing_is_asked_for_is_refused(generator: GANSampler) -> None:
    with pytest.raises(UsageError, match="--per-class 0"):
        generate(generator, 10, 0, seed=0)


@pytest.mark.parametrize("form", list(DATA))
@pytest.mark.parametrize("labelled", [True, False])
def test_sets_survive_the_disk(
    form: Any, labelled: bool, generator: GANSampler, tmp_path: Path
) -> None:
    made = generate(generator, 10, 12, seed=0)
    if not labelled:
        made = replace(made, labels=None)
    manifest = replace(MANIFEST, labels="conditional" if labelled else "none", format=form)
    folder = write_synthetic(tmp_path / "sets", "tiny", made, manifest)
    assert folder == tmp_path / "sets" / "00000-tiny"
    read = read_synthetic(folder)
    assert np.array_equal(read.images.images.permute(0, 2, 3, 1).numpy(), made.images)
    if made.labels is None:
        assert read.images.labels is None
    else:
        assert read.images.labels is not None
        assert np.array_equal(read.images.labels.numpy(), made.labels)
    assert read.manifest is not None
    assert read.manifest.per_class == ([12] * 10 if labelled else None)
    names = {path.name for path in folder.iterdir()}
    assert names == {"manifest.json", "README.md", "preview.png", DATA[form]}
    assert (folder / "README.md").read_text().startswith("---\nlicense: other\n")


@pytest.mark.parametrize("form", list(DATA))
def test_writing_forgets_what_is_written(form: Any, tmp_path: Path) -> None:
    alive: list[weakref.ref[np.ndarray]] = []

    def chunks() -> Iterator[np.ndarray]:
        for shade in range(30):
            assert sum(reference() is not None for reference in alive) <= 1  # the last one
            chunk = np.full((10, 32, 32, 3), shade, np.uint8)
            alive.append(weakref.ref(chunk))
            yield chunk
            del chunk

    made = Generated(chunks, 300, np.repeat(np.arange(10), 30), lambda: 300)
    manifest = replace(MANIFEST, format=form)
    folder = write_synthetic(tmp_path, "grey", made, manifest)
    images = read_synthetic(folder).images.images
    assert images[:, 0, 0, 0].tolist() == np.repeat(np.arange(30), 10).tolist()
    with pytest.raises(ValueError, match="300 images where 301"):
        write_synthetic(tmp_path, "grey", replace(made, count=301, labels=None), manifest)


def test_npz_holds_plain_arrays(generator: GANSampler, tmp_path: Path) -> None:
    made = generate(generator, 10, 3, seed=0)
    folder = write_synthetic(tmp_path, "tiny", made, MANIFEST)
    with np.load(folder / "images.npz", allow_pickle=False) as arrays:
        assert arrays["images"].shape == (30, 32, 32, 3)
        assert arrays["images"].dtype == np.uint8
        assert arrays["labels"].dtype == np.int64


def test_failed_writing_leaves_nothing(
    generator: GANSampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = generate(generator, 10, 3, seed=0)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("synth.synthetic_set.save_grid", full)
    with pytest.raises(SynthError, match=r"No space left on device.*--out"):
        write_synthetic(tmp_path, "tiny", made, MANIFEST)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("swap", "do not match manifest.json"),
        ("manifest", r"manifest.json: is damaged"),
        ("keys", "sha256 is missing"),
        ("types", "classes is 5"),
        ("source", r"source is \[1\]"),
        ("cut", r"images.npz: cannot be read"),
        ("gone", r"images.npz: cannot be read"),
        ("empty", r"images.npz: cannot be read"),
    ],
)
def test_damaged_sets_are_refused(
    damage: str, message: str, generator: GANSampler, tmp_path: Path
) -> None:
    made = generate(generator, 10, 3, seed=0)
    folder = write_synthetic(tmp_path, "tiny", made, MANIFEST)
    npz, manifest = folder / "images.npz", folder / "manifest.json"
    if damage == "swap":
        np.savez(npz, images=255 - made.images, labels=made.labels)
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:100])
    elif damage == "keys":
        whole = read_json(manifest)
        del whole["sha256"]
        manifest.write_text(json.dumps(whole))
    elif damage == "types":
        manifest.write_text(json.dumps({**read_json(manifest), "classes": 5}))
    elif damage == "source":
        manifest.write_text(json.dumps({**read_json(manifest), "source": [1]}))
    elif damage == "cut":
        npz.write_bytes(npz.read_bytes()[:500])
    elif damage == "empty":
        npz.write_bytes(b"")
    else:
        npz.unlink()
    with pytest.raises(SynthError, match=message):
        read_synthetic(folder)


def test_foreign_set_needs_no_manifest(tmp_path: Path) -> None:
    images = np.zeros((20, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(20) % 10)
    read = read_synthetic(tmp_path)
    assert read.manifest is None
    assert len(read.images.classes) == 10
    np.savez(tmp_path / "images.npz", images=images.astype(np.float32), labels=np.arange(20))
    with pytest.raises(SynthError, match="not uint8"):
        read_synthetic(tmp_path)
