"""Sets in other programs: each loads the same pixels, labels and names of classes."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.io
import yaml
from huggingface_hub import DatasetCard, DatasetCardData
from PIL import Image
from torchvision.datasets import ImageFolder

from synth.base.errors import SynthError
from synth.card import SIZES
from synth.formats import FORMATS
from synth.synthetic_set import Generated, read_synthetic, write_synthetic
from tests.test_generation import MANIFEST

CLASSES = ("ant", "bee", "cat", "dog")
LABELS = np.repeat(np.arange(4), 50)
IMAGES = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
# the hub's list: https://github.com/huggingface/hub-docs/blob/main/datasetcard.md
HUB_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the 200 images in a format, in chunks of 30."""
    chunks = [IMAGES[at : at + 30] for at in range(0, 200, 30)]
    made = Generated(lambda: iter(chunks), 200, LABELS, lambda: 200)

    def in_format(form: str) -> Path:
        manifest = replace(MANIFEST, format=form, classes=CLASSES, dataset="svhn")
        return write_synthetic(tmp_path, "set", made, manifest)

    return in_format


def equal(images: Sequence[Any], labels: Sequence[int]) -> bool:
    pixels = np.stack([np.asarray(image) for image in images])
    return np.array_equal(pixels, IMAGES) and np.array_equal(labels, LABELS)


def load_dataset(folder: Path, cache: Path) -> Any:
    import datasets  # slow to import

    datasets.disable_progress_bars()
    return datasets.load_dataset(str(folder), cache_dir=str(cache))


@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_hugging_face_datasets_loads_it(
    write: Callable[[str], Path], form: str, tmp_path: Path
) -> None:
    loaded = load_dataset(write(form), tmp_path / "cache")
    assert list(loaded) == ["train"]
    assert equal(loaded["train"]["image"], loaded["train"]["label"])
    assert loaded["train"].features["label"].names == list(CLASSES)


def test_hugging_face_datasets_loads_tar_files(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    loaded = load_dataset(write("webdataset"), tmp_path / "cache")
    assert equal(loaded["train"]["png"], loaded["train"]["cls"])


@pytest.mark.parametrize("form", ["npz", "mat"])
def test_hugging_face_datasets_takes_no_preview_for_the_set(
    write: Callable[[str], Path], form: str, tmp_path: Path
) -> None:
    with pytest.raises(Exception, match=r"(?i)data ?files|supported|npz|mat"):
        load_dataset(write(form), tmp_path / "cache")


def test_torchvision_loads_the_folder(write: Callable[[str], Path]) -> None:
    loaded = ImageFolder(str(write("folder") / "train"))
    images, labels = zip(*loaded, strict=True)
    assert equal(images, labels)
    assert loaded.classes == list(CLASSES)


def test_pandas_loads_the_table(write: Callable[[str], Path]) -> None:
    table = pd.read_parquet(next(write("parquet").rglob("*.parquet")))
    images = [Image.open(io.BytesIO(cell["bytes"])) for cell in table["image"]]
    assert equal(images, table["label"])


def test_scipy_loads_the_mat_file(write: Callable[[str], Path]) -> None:
    loaded = scipy.io.loadmat(write("mat") / "train.mat")
    assert equal(loaded["X"].transpose(3, 0, 1, 2), loaded["y"].ravel() % 4)
    assert [name[0] for name in loaded["classes"].ravel()] == list(CLASSES)


@pytest.mark.parametrize("form", list(FORMATS))
def test_every_format_can_be_scored_without_its_manifest(
    write: Callable[[str], Path], form: str
) -> None:
    folder = write(form)
    (folder / "manifest.json").unlink()
    read = read_synthetic(folder)
    assert read.manifest is None
    assert read.images.labels is not None
    assert equal(read.images.images.permute(0, 2, 3, 1).numpy(), read.images.labels.numpy())
    named = form not in ("npz", "webdataset")  # these hold numbers alone
    assert read.named == named
    assert read.images.classes == (CLASSES if named else ("0", "1", "2", "3"))


@pytest.mark.parametrize("form", list(FORMATS))
def test_the_card_is_what_the_hub_reads(write: Callable[[str], Path], form: str) -> None:
    card = DatasetCard.load(write(form) / "README.md")
    assert isinstance(card.data, DatasetCardData)
    data = card.data.to_dict()
    assert re.fullmatch(r"[a-z0-9.-]+", data["license_name"])
    assert data["license"] == "other"
    assert data["license_link"].startswith("http")
    assert data["size_categories"] == ["n<1K"]
    (config,) = data["configs"]
    assert config["data_files"] == [{"split": "train", "path": FORMATS[form].data}]
    assert yaml.safe_load(str(card.data)) == data
    if form in ("folder", "parquet"):
        label = data["dataset_info"]["features"][1]
        names = label["dtype"]["class_label"]["names"]
        assert list(names.values()) == list(CLASSES)


def test_parquet_without_pyarrow_is_one_clear_line(
    write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SynthError, match="needs the package pyarrow"):
        write("parquet")


def test_sizes_have_the_words_of_the_hub() -> None:
    assert tuple(name for _, name in SIZES) == HUB_SIZES
