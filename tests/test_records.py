"""Records that are damaged or forged: named, left out of the tables, and never in the way."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eval.evaluate import publish
from eval.records import read_record, read_records
from synth.base.errors import SynthError
from tests.conftest import ROOT, Ran
from tests.test_cli import one_line

Synth = Callable[..., Ran]
RECORDS = ROOT / "results" / "records"
RICH = "20261122T110107218305-svhn-part-cdcgan-fixed-v1"  # with a log, metrics and a configuration
OTHERS = (
    "20261122T075635898301-svhn-part-real-fixed-v1",
    "20261122T113207293886-svhn-part-pca-gaussian-per-class-quick-v1",
    "20261122T104555223000-svhn-part-cdcgan-fixed-v1",
)
Place = tuple[str | int, ...]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    (folder / "records").mkdir()
    for name in (RICH, *OTHERS):
        shutil.copy(RECORDS / f"{name}.json", folder / "records")
    return folder


def write(results: Path, value: object) -> Path:
    path = results / "records" / f"{RICH}.json"
    path.write_text(json.dumps(value))
    return path


def changed(value: Any, place: Place, to: object) -> Any:
    """A copy of nested dicts and lists with another value there."""
    made = copy.deepcopy(value)
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = to
    return made


def places(value: Any, above: Place = ()) -> Iterator[Place]:
    """The ways to all values in nested dicts and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in inner:
        yield (*above, key)
        if isinstance(each, dict | list):
            yield from places(each, (*above, key))


WHOLE = json.loads((RECORDS / f"{RICH}.json").read_text())
PLACES = sorted(places(WHOLE), key=lambda place: (len(place), *map(str, place)))
VALUES: tuple[object, ...] = (
    *(None, True, -1, 0, 3, 2**70, 10**400, 0.5, -0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "a | b |\n| c", "\ud800", "=1", "../../x", "<b>", [], [1], ["x"], [[]], {}),
    *({"a": 1}, {"name": "x"}, [{"images": "x"}], [{"images": 1, "d_loss": "x"}], [{}]),
)
WRONG: tuple[tuple[Place, object], ...] = (
    (("scores", 0, "accuracy"), 99),
    (("scores", 0, "accuracy"), -1),
    (("scores", 0, "accuracy"), 1e308),
    (("scores", 0, "accuracy"), float("nan")),
    (("scores", 0, "confusion"), [[1, 2], [3]]),
    (("scores", 0, "confusion", 0), [0] * 10),
    (("metrics", "gan_test"), 99),
    (("metrics", "fidelity", "classifier", "fid"), float("inf")),
    (("entry", "images_shown"), "x"),
    (("entry", "training_log"), -1),
    (("entry", "training_log", 3, "d_loss"), "low"),
    (("entry", "config"), 3),
    (("entry", "count"), -5),
    (("entry", "name"), "a |\n| 1 | b"),
    (("date",), "yesterday"),
    (("id",), "../../x"),
    (("id",), OTHERS[0]),
    (("schema",), 2),
    (("protocol", "name"), "a\nb"),
    (("protocol", "hash"), None),
    (("real", "name"), ""),
    (("environment",), "x"),
)


@pytest.mark.parametrize(("place", "to"), WRONG)
def test_a_wrong_value_is_named_with_its_file(results: Path, place: Place, to: object) -> None:
    path = write(results, changed(WHOLE, place, to))
    with pytest.raises(SynthError) as refused:
        read_record(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: is no record of this version: ")
    words = [word for word in map(str, place) if not word.isdigit()]
    assert words[-1] in message or words[0] in message


@given(st.sampled_from(PLACES), st.sampled_from(VALUES))
@example(("environment", "command"), "\ud800")
@example(("environment", "command"), 3)
@example(("environment", "commit"), {"a": "<"})
@example(("metrics", "fidelity"), 3)
@example(("metrics", "fidelity", "classifier"), None)
@example(("entry", "config", "recipe", "training", "images"), 2**70)
@example(("entry", "config", "precision"), [])
@example(("entry", "training_log", 12, "d_loss"), 10**400)
@settings(max_examples=150)
def test_no_damaged_record_stops_the_leaderboard(results: Path, place: Place, to: object) -> None:
    write(results, changed(WHOLE, place, to))
    tables = publish(results)
    rows = [row for table in tables for row in table.rows]
    assert len(rows) >= 3
    assert all(0 <= row.accuracy <= 1 for row in rows)
    assert "| cdcgan" in (results / "LEADERBOARD.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"]
)
def test_a_file_that_is_no_record_is_left_out(
    results: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = results / "records" / f"{RICH}.json"
    path.write_bytes(content)
    assert len(read_records(results)) == 3
    assert f"left out: {path}: is" in capsys.readouterr().err
    assert len(read_records(results, quiet=True)) == 3
    assert capsys.readouterr().err == ""


def test_the_leaderboard_says_what_it_left_out(synth: Synth, results: Path) -> None:
    path = write(results, changed(WHOLE, ("scores", 0, "accuracy"), 99))
    ran = synth("leaderboard", "--results", results)
    assert ran.code == 0
    assert f"left out: {path}: is no record of this version: scores.0.accuracy is 99" in ran.err
    write(results, WHOLE)


def test_a_folder_of_records_that_cannot_be_read_is_an_error(
    synth: Synth, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (results / "records").parent / "LEADERBOARD.md"
    write(results, WHOLE)
    assert synth("leaderboard", "--results", results).code == 0
    text = before.read_bytes()

    def locked(folder: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", locked)
    one_line(synth("leaderboard", "--results", results), 1, "records", "Permission denied")
    assert before.read_bytes() == text
