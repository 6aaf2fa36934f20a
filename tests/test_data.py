"""Every way to get images, and what is said when one fails."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import SVHN

from synth.base.errors import SynthError
from synth.data import (
    ImageSet,
    house_numbers,
    load_test_images,
    load_training_images,
    signed_from_uint8,
    uint8_from_signed,
    unit_from_uint8,
)
from tests.conftest import write_mat

ALL_VALUES = torch.arange(256, dtype=torch.uint8)


def test_pixel_maps_cover_their_ranges_and_invert() -> None:
    assert torch.equal(uint8_from_signed(signed_from_uint8(ALL_VALUES)), ALL_VALUES)
    assert signed_from_uint8(ALL_VALUES)[[0, 255]].tolist() == [-1.0, 1.0]
    assert unit_from_uint8(ALL_VALUES)[[0, 255]].tolist() == [0.0, 1.0]


@given(st.floats(-3, 3, width=32))
def test_uint8_from_signed_rounds_to_the_nearest_value(value: float) -> None:
    found = int(uint8_from_signed(torch.tensor([value])))
    exact = (min(max(value, -1), 1) + 1) * 127.5
    assert abs(found - exact) <= 0.5 + 1e-4


def test_mat_is_read_in_the_right_layout(mats: Path) -> None:
    images = load_training_images("svhn", mats)
    raw = scipy.io.loadmat(mats / "train_32x32.mat")
    assert images.images.shape == (160, 3, 32, 32)
    assert images.images[7, 2, 3, 5] == raw["X"][3, 5, 2, 7]
    assert images.labels is not None
    assert images.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert raw["y"][0] == 10  # the digit 0


def test_only_the_official_checksum_earns_the_name(
    mats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    assert load_training_images("svhn", mats).name == "small-svhn"
    mats = mats.rename(mats.parent / "svhn")
    assert load_training_images("svhn", mats).name == "svhn-unofficial"
    md5 = hashlib.md5((mats / "train_32x32.mat").read_bytes()).hexdigest()
    official = {**SVHN.split_list, "train": [*SVHN.split_list["train"][:2], md5]}
    monkeypatch.setattr(SVHN, "split_list", official)
    assert load_training_images("svhn", mats).name == "svhn"


def test_training_needs_no_test_file(mats: Path) -> None:
    before = load_training_images("svhn", mats).fingerprint
    (mats / "test_32x32.mat").unlink()
    assert load_training_images("svhn", mats).fingerprint == before


def test_fingerprint_tells_pixels_and_labels(drawn: ImageSet) -> None:
    assert drawn.labels is not None
    pixels, labels = drawn.images.clone(), drawn.labels.clone()
    pixels[3, 0, 0, 0] ^= 1
    labels[3] = (labels[3] + 1) % 10
    prints = {
        ImageSet(i, y, drawn.classes, "other name", "test").fingerprint
        for i, y in ((drawn.images, drawn.labels), (pixels, drawn.labels), (drawn.images, labels))
    }
    assert len(prints) == 3
    assert drawn.fingerprint in prints


def _bad_mat(kind: str, path: Path) -> None:
    good = scipy.io.loadmat(path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "text":
        path.write_text("this is no .mat file\n" * 50)
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "arrays":
        scipy.io.savemat(path, {"images": good["X"]})
    elif kind == "dtype":
        scipy.io.savemat(path, {"X": good["X"].astype(np.float64), "y": good["y"]})
    elif kind == "shape":
        scipy.io.savemat(path, {"X": good["X"][:28], "y": good["y"]})
    elif kind == "labels":
        scipy.io.savemat(path, {"X": good["X"], "y": good["y"] + 1})
    elif kind == "count":
        scipy.io.savemat(path, {"X": good["X"], "y": good["y"][:-1]})


BAD_MATS = ["truncated", "text", "empty", "arrays", "dtype", "shape", "labels", "count"]


@pytest.mark.parametrize("kind", BAD_MATS)
def test_bad_mat_is_named_with_the_ways_out(kind: str, mats: Path) -> None:
    path = mats / "train_32x32.mat"
    _bad_mat(kind, path)
    with pytest.raises(SynthError, match=r"train_32x32\.mat.*--data-root.*house-numbers"):
        load_training_images("svhn", mats)


def test_download_is_moved_in_whole(
    mats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(root: str, split: str, download: bool) -> None:
        assert download
        (Path(root) / f"{split}_32x32.mat").write_bytes((mats / f"{split}_32x32.mat").read_bytes())

    download.split_list = SVHN.split_list  # type: ignore[attr-defined]
    monkeypatch.setattr("synth.data.svhn.SVHN", download)
    images = load_training_images("svhn", tmp_path / "fresh")
    assert images.fingerprint == load_training_images("svhn", mats).fingerprint
    assert [path.name for path in (tmp_path / "fresh").iterdir()] == ["train_32x32.mat"]


def test_failed_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(root: str, split: str, download: bool) -> None:
        (Path(root) / "train_32x32.mat").write_bytes(b"half of it")
        raise URLError("no route to host")

    download.split_list = SVHN.split_list  # type: ignore[attr-defined]
    monkeypatch.setattr("synth.data.svhn.SVHN", download)
    with pytest.raises(SynthError, match=r"no route to host.*--data-root.*house-numbers"):
        load_training_images("svhn", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tree(tmp_path: Path, drawn: ImageSet) -> Path:
    """An ImageFolder tree with two classes and images of other sizes and kinds."""
    for split in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "Pets" / split / name
            folder.mkdir(parents=True)
            for number in range(20):
                pixels = drawn.images[number + 20 * label].permute(1, 2, 0).numpy()
                picture = Image.fromarray(pixels).resize((50 + number, 40))
                picture.convert("L" if number == 3 else "RGB").save(folder / f"{number}.png")
    return tmp_path / "Pets"


def test_folder_is_read_class_by_class(tree: Path) -> None:
    images = load_training_images("folder", tree)
    assert images.images.shape == (40, 3, 32, 32)
    assert images.classes == ("cat", "dog")
    assert images.name == "pets"
    assert images.require_labels().bincount().tolist() == [20, 20]
    assert len(load_test_images("folder", tree)) == 40


def test_folder_without_classes_is_unlabelled(tmp_path: Path, tree: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (tree / "train" / "cat").iterdir():
        path.rename(flat / path.name)
    images = load_training_images("folder", flat)
    assert images.labels is None
    assert len(images) == 20
    with pytest.raises(SynthError, match="an unconditional recipe, such as dcgan"):
        images.require_labels()
    (flat / "runs" / "00000-run" / "samples").mkdir(parents=True)  # as training there leaves it
    (flat / "._0.png").write_bytes(b"not an image, and not to be read as one")
    assert load_training_images("folder", flat).fingerprint == images.fingerprint
    (flat / "thumbs").mkdir()
    (flat / "thumbs" / "0.png").write_bytes((flat / "0.png").read_bytes())
    with pytest.raises(SynthError, match=r"flat: holds images, and folders of images \(thumbs\)"):
        load_training_images("folder", flat)


@pytest.mark.parametrize("name", ["svhn", "SVHN", "house-numbers"])
def test_a_folder_never_passes_for_a_known_data_set(tree: Path, name: str) -> None:
    assert load_training_images("folder", tree.rename(tree.parent / name)).name == (
        f"{name.lower()}-folder"
    )


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255  # white above black; the camera lay on its side
    (tmp_path / "train").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: to be turned by 90° clockwise
    Image.fromarray(pixels).save(tmp_path / "train" / "photo.png", exif=exif)
    (image,) = load_training_images("folder", tmp_path).images
    assert (image[0, :, 16:] == 255).all()
    assert (image[0, :, :16] == 0).all()


def test_resizing_is_antialiased(tmp_path: Path) -> None:
    stripes = np.zeros((320, 320, 3), np.uint8)
    stripes[:, ::2] = 255  # plain subsampling would give all black or all white
    (tmp_path / "train").mkdir()
    Image.fromarray(stripes).save(tmp_path / "train" / "stripes.png")
    image = load_training_images("folder", tmp_path).images[0].float()
    assert image.mean() == pytest.approx(127.5, abs=2)
    assert image.std() < 5


@pytest.mark.parametrize("kind", ["uint16", "float32", "huge", "folder"])
def test_an_image_that_would_be_read_wrongly_is_named(
    tree: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path, said = tree / "train" / "dog" / "7.tiff", "more than 8 bits a channel"
    if kind == "huge":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
        Image.new("RGB", (100, 100)).save(path)
        said = "exceeds limit"
    elif kind == "folder":
        path.mkdir()
        said = "no regular file"
    else:
        Image.fromarray(np.full((40, 40), 300, kind)).save(path)
    with pytest.raises(SynthError, match=rf"train/dog/7\.tiff: cannot be read \(.*{said}"):
        load_training_images("folder", tree)


@pytest.mark.parametrize("damage", ["cut", "chunk", "empty"])
def test_broken_image_is_named(tree: Path, damage: str) -> None:
    path = tree / "train" / "dog" / "7.png"
    whole = path.read_bytes()
    chunk = whole.replace(b"IDAT", b"\xb8\x00\x01\x02", 1)
    path.write_bytes({"cut": whole[:200], "chunk": chunk, "empty": b""}[damage])
    with pytest.raises(SynthError, match=r"train/dog/7\.png"):
        load_training_images("folder", tree)


def test_test_images_never_train(tree: Path) -> None:
    (tree / "train").rename(tree / "elsewhere")
    with pytest.raises(SynthError, match="has test/ but no train/"):
        load_training_images("folder", tree)


def test_missing_class_is_named(tree: Path) -> None:
    for path in (tree / "test" / "dog").iterdir():
        path.unlink()
    with pytest.raises(SynthError, match="no test image of class dog"):
        load_test_images("folder", tree).require_labels()


def test_drawn_set_is_cached_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from synth.data.house_numbers import render

    drawn: list[str] = []

    def draw(split: str) -> tuple[torch.Tensor, torch.Tensor]:
        drawn.append(split)
        return render("train", 30)

    monkeypatch.setattr(house_numbers, "render", draw)
    monkeypatch.setattr(house_numbers, "cache_folder", lambda: tmp_path)
    first = load_training_images("house-numbers")
    assert load_training_images("house-numbers").fingerprint == first.fingerprint
    assert drawn == ["train"]
    (cached,) = tmp_path.iterdir()
    for damaged in (cached.read_bytes()[:1000], b""):
        cached.write_bytes(damaged)
        assert load_training_images("house-numbers").fingerprint == first.fingerprint
    assert drawn == ["train", "train", "train"]


def test_real_svhn_has_the_digits_its_page_lists(svhn_part: Path) -> None:
    train = load_training_images("svhn", svhn_part)
    counts = [315, 871, 603, 507, 463, 428, 326, 321, 326, 274]
    assert train.require_labels().bincount().tolist() == counts
    assert train.name == "svhn-part"
    assert len(load_test_images("svhn", svhn_part)) == 8000


def test_write_mat_round_trip(tmp_path: Path, drawn: ImageSet) -> None:
    assert drawn.labels is not None
    write_mat(tmp_path / "again", "train", drawn.images, drawn.labels)
    assert load_training_images("svhn", tmp_path / "again").fingerprint == drawn.fingerprint
