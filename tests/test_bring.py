"""Sets that synth did not make: read in many forms, numbered as the real data, scored in rows."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.io
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eval.aggregate import build_tables
from eval.entries import Brought, brought_of, read_for
from eval.records import read_records
from synth.base.errors import SynthError, UsageError
from synth.base.pictures import to_png
from synth.data import DIGITS, ImageSet
from synth.foreign import match_classes, renumber
from synth.synthetic_set import SyntheticSet, read_synthetic
from tests.conftest import SCORE, Ran, write_mat
from tests.test_leaderboard import record, synthetic

Synth = Callable[..., Ran]
ALONE = (*SCORE, "--metrics", "cas", "--no-baselines")
LABELS = np.arange(30) % 10


@pytest.fixture
def pixels(drawn: ImageSet) -> np.ndarray:
    return np.ascontiguousarray(drawn.images[:30].permute(0, 2, 3, 1).numpy())


def write_class_folders(folder: Path, pixels: np.ndarray) -> None:
    for number, (image, label) in enumerate(zip(pixels, LABELS, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / str(label) / f"{number:02d}.png")


def write_table(folder: Path, pixels: np.ndarray) -> None:
    cells = [{"bytes": png, "path": None} for png in to_png(pixels)]
    (folder / "data").mkdir(parents=True)
    for split in ("train", "test"):  # the set is the training split
        kept = cells if split == "train" else cells[:1]
        table = pd.DataFrame({"img": kept, "label": [str(label) for label in LABELS[: len(kept)]]})
        table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


def write_metadata(folder: Path, pixels: np.ndarray) -> None:
    folder.mkdir()
    names = [f"{number}.png" for number in range(30)]
    for name, png in zip(names, to_png(pixels), strict=True):
        (folder / name).write_bytes(png)
    lines = [f"{name},{label}" for name, label in zip(names, LABELS, strict=True)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))


def write_shards(folder: Path, pixels: np.ndarray) -> None:
    folder.mkdir()
    for number, png in enumerate(to_png(pixels)):
        (folder / f"{number}.png").write_bytes(png)
        (folder / f"{number}.cls").write_text(str(LABELS[number]))
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        for path in sorted(folder.glob("*.*s")) + sorted(folder.glob("*.png")):
            tar.add(path, path.name)
            path.unlink()


FORMS: dict[str, Callable[[Path, np.ndarray], object]] = {
    "npz": lambda path, pixels: np.savez(path.with_suffix(".npz"), images=pixels, labels=LABELS),
    "npz, channels first": lambda path, pixels: np.savez(
        path.with_suffix(".npz"), x_train=pixels.transpose(0, 3, 1, 2), y_train=LABELS[:, None]
    ),
    "mat": lambda path, pixels: write_mat(
        path, "train", torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(LABELS)
    ),
    "class folders": write_class_folders,
    "class folders in train": lambda path, pixels: write_class_folders(path / "train", pixels),
    "parquet": write_table,
    "metadata": write_metadata,
    "tar": write_shards,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form: str, pixels: np.ndarray, tmp_path: Path) -> None:
    FORMS[form](tmp_path / "mine", pixels)
    (path,) = tmp_path.iterdir()
    images = read_synthetic(path).images
    assert images.name == "mine"
    assert images.classes == DIGITS
    found = {
        (image.numpy().tobytes(), int(label))
        for image, label in zip(images.images, images.require_labels(), strict=True)
    }
    wanted = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().numpy()
    assert found == {(image.tobytes(), int(n)) for image, n in zip(wanted, LABELS, strict=True)}


def test_grey_arrays_get_three_channels(tmp_path: Path) -> None:
    grey = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    np.savez(tmp_path / "a.npz", x=grey, y=["cat", "ant"])
    read = read_synthetic(tmp_path / "a.npz").images
    assert np.array_equal(read.images.numpy(), np.repeat(grey[:, None], 3, axis=1))
    assert (read.classes, read.require_labels().tolist()) == (("ant", "cat"), [1, 0])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("several", r"several: holds several sets \(a\.npz, b\.npz\); give the path of one"),
        ("empty", "empty: is no data set .* synth generate"),
        ("words.txt", "words.txt: is no data set; give an npz, mat"),
        ("gone.npz", "gone.npz: cannot be read"),
        ("bad.parquet", "bad.parquet: is damaged or no parquet file"),
        ("bad.tar", "bad.tar: cannot be read"),
        ("bad.mat", "bad.mat: is damaged or no .mat file"),
        ("sizes", r"1\.png: sizes differ \(32×32 and 64×64\); --resize"),
        ("outside", "metadata.jsonl: names 0.png, which lies outside"),
        ("one-based.mat", "labels from 1 to 3 without names; SVHN's are 1 to 10"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, said: str) -> None:
    path = tmp_path / name
    if name in ("several", "empty", "sizes", "outside"):
        path.mkdir()
    elif name not in ("gone.npz", "one-based.mat"):
        path.write_text("no picture")
    if name == "several":
        for letter in "ab":
            np.savez(path / f"{letter}.npz", images=np.zeros((1, 32, 32, 3), np.uint8))
    elif name == "sizes":
        (path / "a").mkdir()
        for number, side in enumerate((32, 64)):
            Image.new("RGB", (side, side)).save(path / "a" / f"{number}.png")
    elif name == "outside":
        (path / "metadata.jsonl").write_text(json.dumps({"file_name": "../0.png", "label": "a"}))
    elif name == "one-based.mat":
        pictures = np.zeros((32, 32, 3, 3), np.uint8)
        scipy.io.savemat(path, {"X": pictures, "y": np.array([[1], [2], [3]])})
    with pytest.raises(SynthError, match=said):
        read_synthetic(path)


# Names of classes

NAMES = st.lists(
    st.text("abcXYZ 0123", min_size=1), min_size=1, unique_by=lambda name: name.strip().casefold()
)


@given(NAMES, st.data())
def test_classes_are_matched_by_name(names: list[str], data: st.DataObject) -> None:
    ours = data.draw(st.permutations(names))
    assert match_classes([name.upper() for name in ours], names, True, None, "set") == tuple(ours)
    labels = torch.arange(len(ours))
    images = ImageSet(torch.zeros(len(ours), 3, 1, 1), labels, tuple(ours), "set", "train")
    numbers = [names.index(name) for name in ours]
    again = renumber(images, numbers, tuple(names))
    assert [again.classes[label] for label in again.require_labels()] == list(ours)


def test_classes_without_names_keep_their_numbers() -> None:
    assert match_classes(("0", "1"), ("cat", "dog"), False, None, "set") == ("cat", "dog")
    assert match_classes(("0", "1"), ("cat", "dog"), False, ("dog", "cat"), "x") == ("dog", "cat")
    with pytest.raises(SynthError, match=r"set: has the classes 0, 1, but .* --classes"):
        match_classes(("0", "1"), ("cat", "dog"), True, None, "set")
    with pytest.raises(UsageError, match=r"--classes cat,cow: must name the classes cat, dog"):
        match_classes(("0", "1"), ("cat", "dog"), True, ("cat", "cow"), "set")


# Rows


def test_sets_of_different_people_are_different_rows() -> None:
    def brought(sha256: str, accuracy: float, **values: object) -> object:
        entry = replace(synthetic("images"), recipe=None, checkpoint=None, training_seed=None)
        return record(replace(entry, sha256=sha256, config=None, **values), accuracy)  # type: ignore[arg-type]

    alike = [brought("aaaaaaaa", 0.2), brought("bbbbbbbb", 0.9)]
    (table,) = build_tables(alike)  # type: ignore[arg-type]
    assert [(row.entry, row.seeds[0]) for row in table.rows] == [
        ("images (bbbbbb)", "1"),
        ("images (aaaaaa)", "1"),
    ]
    runs = [
        brought(letter * 8, 0.5, method="images", training_seed=n) for n, letter in enumerate("cde")
    ]
    (table,) = build_tables([*alike, *runs])  # type: ignore[list-item]
    assert sorted(row.seeds[0] for row in table.rows) == ["1", "1", "3"]


def test_own_sets_become_a_row_that_verifies(
    synth: Synth, mats: Path, pixels: np.ndarray, tiny_names: None, tmp_path: Path
) -> None:
    data = ("--data-root", mats)
    backwards = list(reversed(DIGITS))
    for number, name in enumerate("ab"):
        path = tmp_path / name / "images.npz"
        path.parent.mkdir()
        changed = np.roll(pixels, number, axis=1)
        np.savez(path, images=changed, labels=9 - LABELS, classes=backwards)
    ran = synth("evaluate", "a", "b", "--name", "mine", "--seed", 5, *data, *ALONE)
    assert ran.code == 0, ran.err
    assert "a: classes 9 → 9" not in ran.err and "classes 9 → 0" not in ran.err
    records = read_records(Path("results"))
    assert [r.entry.training_seed for r in records] == [5, 6]
    (table,) = build_tables(records)
    (row,) = table.rows
    assert (row.entry, row.seeds, row.rank) == ("mine", "2 × 2", 1)
    for stage in ("evaluate", "record"):
        ran = synth("verify", records[0].id, "--from", stage, *data)
        assert ran.code == 0, ran.out + ran.err
        assert "holds" in ran.out
    (tmp_path / "a" / "images.npz").unlink()
    assert synth("verify", records[0].id, *data).code == 1


def test_other_sizes_are_refused_or_resized_aloud(
    synth: Synth, mats: Path, pixels: np.ndarray, tiny_names: None, tmp_path: Path
) -> None:
    np.savez(tmp_path / "big.npz", images=pixels.repeat(2, axis=1).repeat(2, axis=2), labels=LABELS)
    data = ("--data-root", mats)
    ran = synth("evaluate", "big.npz", *data, *ALONE)
    assert (ran.code, ran.err.count("\n")) == (1, ran.err.count("\n"))
    assert ran.err.splitlines()[-1] == (
        "error: big.npz: its images are 64×64, and those of small-svhn 32×32; --resize changes "
        "them to that size"
    )
    order = "1,2,3,4,5,6,7,8,9,0"
    ran = synth("evaluate", "big.npz", "--resize", "--classes", order, *data, *ALONE)
    assert ran.code == 0, ran.err
    assert "big.npz: images of another size are resized to 32×32" in ran.err
    assert "big.npz: classes 0 → 1, 1 → 2" in ran.err
    (found,) = read_records(Path("results"))
    assert found.entry.numbering == [*range(1, 10), 0]
    ran = synth("verify", found.id, *data)
    assert ran.code == 0, ran.out + ran.err
    ran = synth("evaluate", "big.npz", "--resize", "--classes", "1,2", *data, *ALONE)
    assert (ran.code, "--classes 1,2: must name the classes 0, 1" in ran.err) == (2, True)


@pytest.mark.parametrize("made", [True, False])
def test_a_set_must_fit_the_real_data(
    drawn: ImageSet, made: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """made: by synth, whose manifest says what there is to say."""
    evaluator: Any = SimpleNamespace(test=drawn)
    images = replace(drawn, images=drawn.images[:30], labels=torch.from_numpy(LABELS))
    asked: list[int | None] = []

    def read(folder: Path, side: int | None) -> SyntheticSet:
        asked.append(side)
        return SyntheticSet(images, object() if made else None, folder)  # type: ignore[arg-type]

    monkeypatch.setattr("eval.entries.read_synthetic", read)
    if made:
        with pytest.raises(UsageError, match="--classes and --resize go with other sets"):
            read_for(evaluator, Path("set"), Brought(name="mine"))
    else:
        given = read_for(evaluator, Path("set"), Brought("mine", 3, drawn.classes, resize=True))
        assert asked.pop() == 32
        assert (given.entry.method, given.entry.training_seed) == ("mine", 3)
        assert given.entry.resized == 32
        assert brought_of(given.entry, drawn.classes) == Brought("mine", 3, None, resize=True)
        given = read_for(evaluator, Path("set"))
        assert asked.pop() is None
        assert brought_of(given.entry, drawn.classes) == Brought()
        turned = drawn.classes[::-1]
        given = read_for(evaluator, Path("set"), Brought(classes=turned))
        assert brought_of(given.entry, drawn.classes) == Brought(classes=turned)
    images = replace(images, labels=None)
    with pytest.raises(SynthError, match="generate it with" if made else "add them to it"):
        read_for(evaluator, Path("set"))
    images = replace(drawn, images=torch.zeros(500, 3, 28, 24, dtype=torch.uint8))
    told = r"its images are 24×28, and those of drawn 32×32; "
    mend = "choose the right --dataset" if made else "--resize changes them"
    with pytest.raises(SynthError, match=told + mend):
        read_for(evaluator, Path("set"))
