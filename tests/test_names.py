"""Texts from files and users: none names a path outside its folder, none forges markup."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image

from eval.aggregate import build_tables
from eval.records import plot_path
from eval.report import keep_plots
from eval.tables import to_csv, to_page
from synth.base.errors import SynthError, UsageError
from synth.base.files import read_json, write_json
from synth.base.names import check_file_name, check_line
from synth.data import DATASETS, ImageSet
from synth.published import read_recipe
from synth.runs import open_run
from synth.synthetic_set import Generated, read_synthetic, write_synthetic
from tests.conftest import tiny
from tests.test_generation import MANIFEST
from tests.test_leaderboard import record, synthetic
from tests.test_training import make_run

OUTSIDE = [
    "../../x",
    "/tmp/x",
    "..",
    ".",
    "",
    " ",
    ".hidden",
    "a/b",
    "a\\b",
    "a\nb",
    "a\0b",
    "\ud800",
]


@pytest.mark.parametrize("name", [*OUTSIDE, "x" * 300])
def test_a_class_names_no_path(name: str, tmp_path: Path, drawn: ImageSet) -> None:
    """Neither in a run that somebody else made, nor in a set."""
    run = make_run(tmp_path, drawn, tiny("tiny", True), 160)
    config = read_json(run.folder / "config.json")
    text = json.dumps({**config, "classes": [name, *config["classes"][1:]]})
    (run.folder / "config.json").write_text(text)
    with pytest.raises(SynthError, match=r"config\.json: is damaged.*(classes\.0|surrogates)"):
        open_run(run.folder)
    images = Generated(lambda: iter([np.zeros((10, 32, 32, 3), np.uint8)]), 10, None, lambda: 10)
    folder = write_synthetic(tmp_path, "set", images, MANIFEST)
    manifest = read_json(folder / "manifest.json")
    text = json.dumps({**manifest, "format": "folder", "classes": [name] * 10})
    (folder / "manifest.json").write_text(text)
    with pytest.raises(SynthError, match=r"manifest\.json: is damaged.*(classes\.0|surrogates)"):
        read_synthetic(folder)


@given(st.text(max_size=300))
@example("street view 5")
def test_a_file_name_is_one_part_of_a_path(text: str) -> None:
    try:
        name = check_file_name(text)
    except ValueError:
        assume(False)
    assert Path("a", name).parent == Path("a")
    assert Path("a", name).name == name == check_line(name)
    assert len(name.encode()) < 255


@pytest.mark.parametrize("key", ["dataset", "recipe"])
def test_a_run_makes_its_set_in_the_folder_that_was_asked_for(
    key: str, tmp_path: Path, drawn: ImageSet
) -> None:
    run = make_run(tmp_path, drawn, tiny("tiny", True), 160)
    config = read_json(run.folder / "config.json")
    changes = {"dataset": "../../x", "recipe": {**config["recipe"], "name": "../../x"}}
    write_json(run.folder / "config.json", {**config, key: changes[key]})
    assert "/" not in open_run(run.folder).config.slug


def test_folders_of_classes_need_names_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "train" / "two\nlines").mkdir(parents=True)
    with pytest.raises(SynthError, match=r"train: rename the class .*line breaks"):
        DATASETS["folder"].load("train", tmp_path)


def test_a_recipe_has_a_name_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('base = "cdcgan"\nname = "mine\\n| 1 | best | 99 |"\nsource = "me"\n')
    with pytest.raises(UsageError, match=r"mine\.toml.*name.*line breaks"):
        read_recipe(path)


# Markup

NASTY = st.text(st.characters(exclude_categories=("C", "Zl", "Zp", "Zs")), min_size=1, max_size=30)


@given(NASTY)
@example("a | b | 99 |")
@example("<script>alert(1)</script>")
@example("![x](https://example.com/x.png)")
@example("=cmd|' /C calc'!A0")
@example("@SUM(A1)")
def test_a_name_stays_in_its_cell(name: str) -> None:
    tables = build_tables([record(synthetic(name), 0.7, 0.72)])
    page = to_page(Path("nowhere"), tables)
    tables_of_page = [
        list(lines)
        for is_row, lines in groupby(page.splitlines(), lambda line: line.startswith("|"))
        if is_row
    ]
    assert len(tables_of_page[0]) == 3
    for lines in tables_of_page:
        assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1
    assert "<s" not in page and "![" not in page
    cell = str(pd.read_csv(StringIO(to_csv(tables)), dtype=str, keep_default_na=False)["entry"][0])
    assert not cell.startswith(("=", "+", "-", "@"))
    assert cell.removeprefix("'") == name.removeprefix("'")


@pytest.mark.parametrize("name", ["tiny, training.balanced=true", 'a: "b" #c', "]{", "`a`"])
def test_the_card_of_a_set_is_valid_whatever_its_recipe_is_called(
    name: str, tmp_path: Path
) -> None:
    made = Generated(lambda: iter([np.zeros((10, 32, 32, 3), np.uint8)]), 10, None, lambda: 10)
    folder = write_synthetic(tmp_path, "set", made, replace(MANIFEST, recipe=name))
    card = (folder / "README.md").read_text(encoding="utf-8")
    (tags,) = (line for line in card.splitlines() if line.startswith("tags: "))
    # a text in YAML is as in JSON
    assert json.loads(tags.removeprefix("tags: ")) == ["synthetic", name]


def test_only_pictures_are_kept_beside_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A link in a set that somebody else made could lead to any file of the user."""
    (tmp_path / "secret").write_text("a password")
    (tmp_path / "preview.png").symlink_to(tmp_path / "secret")
    made, results = record(synthetic(), 0.7), tmp_path / "results"
    keep_plots(results, made, {"samples": tmp_path / "preview.png"})
    assert "preview.png: is no PNG file" in capsys.readouterr().err
    assert not results.exists()
    picture = tmp_path / "losses.png"
    Image.new("L", (1, 1)).save(picture)
    keep_plots(results, made, {"samples": tmp_path / "preview.png", "losses": picture})
    assert plot_path(results, made, "losses").read_bytes() == picture.read_bytes()
    assert len(list(plot_path(results, made, "losses").parent.iterdir())) == 1
