"""Records, and the tables made from them."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.aggregate import build_tables, configuration_key, recipe_length
from eval.evaluator import metrics_for
from eval.metrics import describe
from eval.protocols import PROTOCOLS
from eval.records import (
    Entry,
    RealSplits,
    Record,
    plot_path,
    read_record,
    read_records,
    record_id,
    write_record,
)
from eval.report import write_report
from eval.scoring import Score, SeedScore
from eval.statistics import interval
from eval.tables import (
    METHOD,
    default_first,
    format_metrics,
    format_scores,
    format_training,
    to_csv,
    to_page,
    to_text,
    training_values,
    write_leaderboard,
)
from eval.verification import Verification
from eval.verified import Stage, depths, keep_note
from synth.base.errors import SynthError
from synth.base.schema import dump
from synth.data import ImageSet
from synth.published import RECIPES
from synth.recipes import override
from tests.conftest import ROOT

REAL = RealSplits("svhn-part", "a" * 64, 4434, "b" * 64, 8000)
FIXED = PROTOCOLS["fixed-v1"]


def scored(*accuracies: float) -> Score:
    scores = [
        SeedScore(seed, value, value - 0.01, [value] * 10, np.eye(10, dtype=int).tolist(), 0.1, 1.0)
        for seed, value in enumerate(accuracies)
    ]
    predictions = np.zeros((len(accuracies), 5), np.uint8)
    return Score(scores, predictions, predictions == [0, 0, 1, 1, 1])


def record(
    entry: Entry, *accuracies: float, real: RealSplits = REAL, name: str = "fixed-v1"
) -> Record:
    now = datetime.now(timezone.utc)
    return Record(
        id=record_id(now, entry, PROTOCOLS[name], real),
        date=now.isoformat(timespec="seconds"),
        entry=entry,
        protocol=PROTOCOLS[name].to_json(),
        real=real,
        scores=scored(*accuracies).seeds if accuracies else [],
        environment={"commit": "abc"},
        precision="fp32",
        seconds=1.0,
    )


def unchained(results: Path) -> list[Record]:
    """The records, without the chain that writing adds."""
    return [replace(each, chain=None) for each in read_records(results)]


def synthetic(name: str = "cdcgan", digest: str = "1", labels: str = "conditional") -> Entry:
    return Entry(
        "synthetic",
        name,
        50_000,
        digest,
        recipe=name,
        labels=labels,
        images_shown=1_000_000,
        trained_on=REAL.train_fingerprint,
    )


CEILING = Entry("real", "real", 4434, "r")


def test_what_an_entry_had_as_help_decides_whether_it_is_ranked() -> None:
    plain = synthetic("labels")
    guided = replace(synthetic("guided", "2"), teacher="augmented-v1")
    rejected = replace(synthetic("rejected", "3"), rejection=0.2, rejecter="augmented-v1")
    both = replace(synthetic("both", "4"), teacher="augmented-v1", rejection=0.2)
    pseudo, random = (synthetic(labels, labels, labels) for labels in ("classifier", "random"))
    foreign = Entry("synthetic", "foreign", 50_000, "5", labels="conditional")
    entries = (CEILING, plain, guided, rejected, both, pseudo, random, foreign)
    (table,) = build_tables([record(e, 0.9 - i / 100) for i, e in enumerate(entries)])
    assert {row.entry: (row.help, row.rank) for row in table.rows} == {
        "real": ("", None),
        "labels": ("labels only", 1),
        "guided": ("teacher in training", 2),
        "rejected": ("teacher at generation", None),
        "both": ("teacher at generation", None),
        "classifier": ("labeller", None),
        "random": ("random labels", None),
        "foreign": ("labels only", 3),
    }


def test_seeds_of_a_selecting_recipe_are_one_row_wherever_their_best_is() -> None:
    best, last = (
        replace(synthetic(f"cdcgan, {chosen} checkpoint"), chosen=chosen, run_length=1_000_000)
        for chosen in ("best", "last")
    )
    records = [
        record(replace(best, sha256="1", checkpoint="1", images_shown=640_000), 0.7),
        record(replace(best, sha256="2", checkpoint="2", images_shown=960_000), 0.8),
        record(replace(best, sha256="3", checkpoint="3", run_length=300_000), 0.6),
        record(replace(last, sha256="4", checkpoint="4"), 0.5),
    ]
    (table,) = build_tables(records)
    rows = [(row.entry, row.newest.entry.length, row.seeds, row.accuracy) for row in table.rows]
    assert rows == [
        ("cdcgan, best checkpoint", 1_000_000, "2 × 1", pytest.approx(0.75)),
        ("cdcgan, best checkpoint", 300_000, "1 × 1", 0.6),
        ("cdcgan, last checkpoint", 1_000_000, "1 × 1", 0.5),
    ]


def test_record_survives_the_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = record(synthetic(), 0.7, 0.72)
    path = write_record(tmp_path, made, scored(0.7, 0.72))
    assert unchained(tmp_path) == [made]
    with np.load(tmp_path / "predictions" / f"{made.id}.npz") as arrays:
        assert arrays["predictions"].shape == (2, 5)
        assert arrays["correct"].tolist() == [[True, True, False, False, False]] * 2
    with pytest.raises(SynthError, match="not overwritten"):
        write_record(tmp_path, made, None)
    path.write_text(path.read_text()[:50])
    assert read_records(tmp_path) == []
    assert f"left out: {path}: is damaged" in capsys.readouterr().err


def test_rows_are_ranked_and_read_against_real() -> None:
    (table,) = build_tables(
        [
            record(CEILING, 0.8, 0.8),
            record(synthetic("dcgan + pseudo-labels", "2", "classifier"), 0.6, 0.62),
            record(synthetic("cdcgan", "1"), 0.70, 0.74),
            record(synthetic("worse", "3"), 0.5, 0.5),
        ]
    )
    frame = table.to_frame()
    assert frame["entry"].tolist() == ["real", "cdcgan", "dcgan + pseudo-labels", "worse"]
    assert frame["rank"].fillna(0).tolist() == [0, 1, 0, 2]
    assert frame["ratio_to_real"].tolist() == pytest.approx([1.0, 0.9, 0.7625, 0.625])
    known = interval([[0.70, 0.74]])
    assert (frame["interval_low"][1], frame["interval_high"][1]) == (known.low, known.high)
    assert "classifier seeds alone" in frame["interval_covers"][1]
    assert format_scores(table).iloc[1]["95 % interval"] == "46.59 to 97.41 *"
    assert format_scores(table).iloc[1]["accuracy %"] == "72.00"


def test_generator_seeds_of_one_recipe_share_a_row() -> None:
    (table,) = build_tables(
        [record(synthetic(digest="1"), 0.7, 0.7), record(synthetic(digest="2"), 0.6, 0.6)]
    )
    (row,) = table.rows
    assert row.accuracy == pytest.approx(0.65)
    assert row.seeds == "2 × 2"
    assert row.interval == interval([[0.7, 0.7], [0.6, 0.6]])
    assert "*" not in format_scores(table).iloc[0]["95 % interval"]


def test_a_part_never_passes_for_the_whole(drawn: ImageSet) -> None:
    official = ImageSet(drawn.images, drawn.labels, drawn.classes, "svhn", "train")
    assert RealSplits.of(official, drawn).name == "svhn + drawn"
    assert RealSplits.of(drawn, drawn).name == "drawn"


def test_the_newest_record_of_the_same_content_counts() -> None:
    (table,) = build_tables([record(synthetic(), 0.1, 0.1), record(synthetic(), 0.7, 0.7)])
    assert table.rows[0].accuracy == pytest.approx(0.7)
    (table,) = build_tables([record(synthetic(), 0.7, 0.7), record(synthetic(), 0.1)])
    assert table.rows[0].accuracy == pytest.approx(0.7)  # more seeds go before newer


def test_of_two_sets_of_one_run_the_newer_counts() -> None:
    old, new = (replace(synthetic(digest=digest), checkpoint="w") for digest in ("1", "2"))
    (table,) = build_tables([record(old, 0.5, 0.5), record(new, 0.7, 0.7)])
    assert (table.rows[0].seeds, table.rows[0].accuracy) == ("1 × 2", pytest.approx(0.7))


def test_runs_in_two_precisions_are_two_rows() -> None:
    """Of one seed they are no two independent runs, and a mean over both would tell nothing."""
    recipe = {"name": "x"}
    made = [
        replace(configured(f"{seed}{precision}", recipe, precision=precision), training_seed=seed)
        for seed, precision in ((0, "fp32"), (0, "bf16"), (1, "bf16"))
    ]
    records = [record(entry, 0.5 + i / 10) for i, entry in enumerate(made)]
    (table,) = build_tables(records[1:])
    assert [(row.entry, row.seeds) for row in table.rows] == [("cdcgan", "2 × 1")]
    (table,) = build_tables(records)
    assert [(row.entry, row.seeds) for row in table.rows] == [
        ("cdcgan (trained in bf16)", "2 × 1"),
        ("cdcgan (trained in fp32)", "1 × 1"),
    ]


def test_two_runs_of_one_seed_are_not_independent() -> None:
    """As when the same run is trained with other ticks: its weights are the same, its file not."""
    old, new, other = (
        replace(synthetic(digest=digest), checkpoint=digest, training_seed=seed)
        for digest, seed in (("1", 0), ("2", 0), ("3", 1))
    )
    (table,) = build_tables([record(old, 0.5), record(new, 0.7), record(other, 0.8)])
    assert [(row.seeds, row.accuracy) for row in table.rows] == [("2 × 1", pytest.approx(0.75))]


def configured(digest: str, recipe: object, **more: object) -> Entry:
    return replace(synthetic(digest=digest), config={"recipe": recipe, **more})


def test_recipes_of_one_name_that_differ_do_not_share_a_row() -> None:
    older, same, other = (
        {**dump(override(RECIPES["cdcgan"], assignment)), "name": "cdcgan"}
        for assignment in ("training.batch=128", "training.images=5", "training.batch=64")
    )
    del older["assumed"], older["training"]["heldout_every"]  # as records were once
    recipes = (older, {**same, "source": "elsewhere"}, other)
    entries = [configured(str(seed), recipe) for seed, recipe in enumerate(recipes)]
    (table,) = build_tables([record(entry, 0.5 + i / 10) for i, entry in enumerate(entries)])
    assert [row.seeds for row in table.rows] == ["1 × 1", "2 × 1"]


FOREIGN = (
    {"name": "x"},
    {"name": "x", "images": 7, "training": None},
    {"name": "x", "generator": {"widths": "none"}, "training": {"images": "long", "batch": [1]}},
    {"training": {"images": 9, "steps": {"a": 1}}},
    "a text",
    [1, {"a": None}],
    0,
    None,
)


@pytest.mark.parametrize("recipe", FOREIGN)
@pytest.mark.parametrize("family", [{}, {"family": "diffusion"}])
def test_what_no_recipe_of_this_version_made_is_still_a_row(
    tmp_path: Path, recipe: object, family: dict[str, str]
) -> None:
    """Nor does a metric that is not installed stop the leaderboard: its value is kept."""
    unknown = {"seconds": {"sharpness": 1.0, "gan-test": 1.0}, "sharpness": 7.0, "gan_test": 0.5}
    made = [
        replace(record(configured("1", recipe, **family), 0.7), metrics=unknown),
        record(configured("2", recipe, **family), 0.5),
        record(CEILING, 0.8),
    ]
    for one in made:
        write_record(tmp_path, one, None)
    (table,) = write_leaderboard(tmp_path)
    assert [(row.entry, row.seeds, row.rank) for row in table.rows] == [
        ("real", "1 × 1", None),
        ("cdcgan", "2 × 1", 1),
    ]
    assert table.rows[1].metrics == {"gan_test": 0.5}
    (kept,) = [r for r in read_records(tmp_path) if r.metrics]
    assert kept.metrics == unknown
    assert [one.answers(made[0].entry, 1, ("gan-test",)) for one in made] == [True, False, False]


def test_the_key_of_a_configuration() -> None:
    """Family, name and values tell configurations apart; length, prose, defaults do not."""

    def key_of(family: str = "gan", **recipe: object) -> str | None:
        return configuration_key({"family": family, "recipe": {"name": "x", **recipe}})

    assert key_of() == configuration_key({"recipe": {"name": "x"}}) != key_of("diffusion")
    assert key_of() == key_of(training={"images": 5, "batch": 128}, source="a", assumed="b")
    assert key_of() == key_of(training={"betas": [0.5, 0.999], "ema_half_life": 10_000.0})
    assert len({key_of(training={"batch": 128}), key_of("diffusion", training={"batch": 128})}) == 2
    assert key_of("diffusion", training={"batch": 128}) != key_of("diffusion", training={})
    assert key_of("diffusion", images=5) == key_of("diffusion", images=6)
    assert key_of(conditional=True) != key_of(conditional=False)
    assert configuration_key(None) is configuration_key({}) is None
    lengths = [recipe_length({"recipe": recipe}) for recipe in FOREIGN]
    assert lengths == [None, 7, None, 9, None, None, None, None]


@given(st.permutations(range(4)))
def test_protocols_and_splits_are_never_mixed(order: list[int]) -> None:
    other = replace(REAL, test_fingerprint="c" * 64)
    records = [
        record(synthetic(), 0.7),
        record(synthetic(), 0.6, name="quick-v1"),
        record(synthetic(), 0.5, real=other),
        replace(record(synthetic(), 0.4), protocol={**FIXED.to_json(), "hash": "changed"}),
    ]
    tables = build_tables([records[i] for i in order])
    assert len(tables) == 4
    assert sorted(t.rows[0].accuracy for t in tables) == pytest.approx([0.4, 0.5, 0.6, 0.7])


def test_failures_and_foreign_training_data_are_told_apart() -> None:
    failed = replace(record(synthetic(digest="9")), error="it broke")
    foreign = replace(synthetic(digest="4"), trained_on="d" * 64)
    (table,) = build_tables([failed, record(foreign, 0.3), record(synthetic(), 0.7)])
    assert [row.entry for row in table.rows] == ["cdcgan", "cdcgan (trained on other data)"]


def test_known_results_are_found_and_others_are_not() -> None:
    records = [record(CEILING, 0.8, 0.8), record(synthetic(), 0.7, 0.7)]

    def found(entry: Entry, seeds: int) -> list[bool]:
        return [one.answers(entry, seeds) for one in records]

    assert found(replace(CEILING, sha256=None), 2) == [True, False]
    assert found(synthetic(), 2) == [False, True]
    assert found(synthetic(), 3) == [False, False]
    assert found(synthetic(digest="2"), 2) == [False, False]
    assert not replace(records[1], error="it broke").answers(synthetic(), 2)
    other = replace(REAL, test_fingerprint="c" * 64)
    assert records[1].is_under(FIXED, REAL)
    assert not records[1].is_under(PROTOCOLS["quick-v1"], REAL)
    assert not records[1].is_under(FIXED, other)


def test_published_files_follow_from_the_records(tmp_path: Path) -> None:
    write_record(tmp_path, record(CEILING, 0.8, 0.82), None)
    write_record(tmp_path, record(synthetic(), 0.7, 0.72), None)
    tables = write_leaderboard(tmp_path)
    text = (tmp_path / "LEADERBOARD.md").read_text()
    assert "## svhn-part, fixed-v1 (4,434 real training images, 8,000 test images)" in text
    assert "| 1    | cdcgan | 71.00      | 58.29 to 83.71 * | 0.877         | 1 × 2 |" in text
    assert "| cdcgan | labels only | 70.00      | 10.00 | 0.691 to 1.112 | – " in text
    assert pd.read_csv(tmp_path / "leaderboard.csv")["accuracy"].tolist() == [0.81, 0.71]
    page = write_report(tmp_path, tables).read_text()
    assert page.count('<table class="confusion">') == 2
    assert "http" not in page.replace("http-equiv", "")
    write_leaderboard(tmp_path)
    assert (tmp_path / "LEADERBOARD.md").read_text() == text


def test_tables_for_people_are_narrow(tmp_path: Path) -> None:
    """No line of LEADERBOARD.md is wider than a screen, and one table in the terminal has 80
    columns, whatever an entry is called; the default protocol comes first."""
    name = "house-number-recognition, training.batch=64, generator.widths=[16,8,8] + pseudo-labels"
    thief = {"seconds": {}, "memorisation": {"pixels": {"share": 0.4, "flagged": True}}}
    made = [
        record(synthetic("a", digest="1"), 0.7, name="augmented-v1"),
        replace(record(synthetic(name, digest="2"), 0.1, 0.9), metrics=thief),
        record(synthetic("b | c # d", digest="3"), 0.7),
    ]
    tables = default_first(build_tables(made))
    assert [table.protocol for table in tables] == ["fixed-v1", "augmented-v1"]
    printed = to_text(tables[0])
    assert max(map(len, printed.splitlines())) <= 80
    assert "-458.25 to 558.25 *" in printed
    assert "† house-number" in printed
    assert name in to_text(tables[0], wide=True)
    page = to_page(tmp_path, tables)
    assert page.index("fixed-v1") < page.index("augmented-v1")
    assert "| 1    | b \\| c # d " in page
    short = to_page(tmp_path, build_tables([replace(made[1], entry=synthetic("short"))]))
    assert max(map(len, short.splitlines())) <= 110


def test_a_run_shorter_than_its_recipe_says_so() -> None:
    config = {"recipe": dump(RECIPES["shahrullo"]), "images": 1_000_000}
    (table,) = build_tables([record(replace(synthetic("shahrullo"), config=config), 0.7)])
    shown = format_scores(table).iloc[0]
    assert (shown["GAN images shown"], shown["recipe's length"]) == ("1,000,000", "3,662,850")
    assert table.to_frame()["recipe_images"].tolist() == [50 * 73_257]


def note(results: Path, path: Path, stage: Stage, holds: bool = True) -> None:
    found = Verification(read_record(path), stage)
    found.add("it", holds, "as told", always=True)
    keep_note(path, found)


def test_a_row_is_as_deep_as_its_least_verified_record(tmp_path: Path) -> None:
    made = [record(replace(synthetic(digest=d), checkpoint=d), 0.7) for d in ("1", "2")]
    paths = [write_record(tmp_path, each, None) for each in (*made, record(CEILING, 0.8))]
    write_leaderboard(tmp_path)
    page, csv = ((tmp_path / name).read_text() for name in ("LEADERBOARD.md", "leaderboard.csv"))
    assert "verified" not in page + csv  # nothing was

    def shown() -> list[str]:
        write_leaderboard(tmp_path)
        frame = pd.read_csv(tmp_path / "leaderboard.csv")
        assert list(frame)[-1] == "verified"
        assert frame.drop(columns="verified").to_csv(index=False) == pd.read_csv(
            io.StringIO(csv)
        ).to_csv(index=False)  # all else is what it was
        assert "**verified**: how deep" in (tmp_path / "LEADERBOARD.md").read_text()
        return ["" if value != value else value for value in frame["verified"]]

    note(tmp_path, paths[0], "train")
    note(tmp_path, paths[2], "evaluate")
    assert shown() == ["evaluate", ""]  # one of its two runs was never verified
    note(tmp_path, paths[1], "record")
    assert shown() == ["evaluate", "record"]
    note(tmp_path, paths[1], "generate")
    note(tmp_path, paths[1], "record")  # less than what is known
    assert shown() == ["evaluate", "generate"]
    note(tmp_path, paths[0], "evaluate", holds=False)
    assert shown() == ["evaluate", "fails"]
    note(tmp_path, paths[0], "record")
    assert shown() == ["evaluate", "fails"]  # it still fails from where it failed
    note(tmp_path, paths[0], "train")
    assert shown() == ["evaluate", "generate"]
    paths[1].write_text(paths[1].read_text() + "\n")  # another file than was verified
    assert shown() == ["evaluate", ""]


def test_figures_taken_from_an_older_record_count_for_the_depth(tmp_path: Path) -> None:
    """A forged older record, which adds a metric to the row, cannot hide behind a verified one."""
    entry = synthetic()
    older = replace(record(entry, 0.7), metrics=measured(1.0, gan_test=0.9))
    newer = replace(record(entry, 0.7), metrics=measured(2.0))
    whole = replace(record(entry, 0.7), metrics=measured(3.0, gan_test=0.8))
    verified = {newer.id: "train", whole.id: "train"}
    assert build_tables([older, newer], verified)[0].rows[0].verified is None
    assert build_tables([older, newer, whole], verified)[0].rows[0].verified == "train"
    more = replace(record(entry, 0.7, 0.7), metrics=measured(1.0))
    (row,) = build_tables([more, whole], verified)[0].rows
    assert (row.seeds, row.verified) == ("1 × 2", None)


def test_a_damaged_note_is_no_note(tmp_path: Path) -> None:
    path = write_record(tmp_path, record(CEILING, 0.8), None)
    note(tmp_path, path, "evaluate")
    assert depths(tmp_path) == {path.stem: "evaluate"}
    for damaged in ("{", "[]", '{"record": 1}'):
        (tmp_path / "verified" / path.name).write_text(damaged)
        assert depths(tmp_path) == {}


def test_plots_that_are_kept_are_linked_by_run(tmp_path: Path) -> None:
    known = [record(synthetic(digest=digest), 0.7) for digest in ("1", "2")]
    for each in (record(CEILING, 0.8), *known):
        write_record(tmp_path, each, None)
    write_leaderboard(tmp_path)
    assert "samples |" not in (tmp_path / "LEADERBOARD.md").read_text(encoding="utf-8")
    for each, name in zip(known, ("samples", "losses"), strict=True):
        plot_path(tmp_path, each, name).parent.mkdir(exist_ok=True)
        plot_path(tmp_path, each, name).touch()
    write_leaderboard(tmp_path)
    lines = (tmp_path / "LEADERBOARD.md").read_text(encoding="utf-8").splitlines()
    at = lines.index("| entry  | samples  | losses   |")
    first, second = known
    assert lines[at + 2 : at + 6] == [
        "| cdcgan | [1][0.0] | [2][0.1] |",
        "",
        f"[0.0]: figures/{first.id}-samples.png",
        f"[0.1]: figures/{second.id}-losses.png",
    ]


def measured(fid: float, **more: object) -> dict[str, object]:
    return {"seconds": {}, "fidelity": {"classifier": {"fid": fid, "kid": 0.5}}, **more}


def test_metrics_are_means_over_runs_and_absent_ones_are_dashes(tmp_path: Path) -> None:
    copies = {"features": {"share": 0.4, "flagged": True}}
    thief = {"seconds": {}, "memorisation": copies}
    made = [
        replace(record(synthetic(digest="1"), 0.7), metrics=measured(10.0, gan_test=0.8)),
        replace(record(synthetic(digest="2"), 0.6), metrics=measured(14.0)),
        replace(record(synthetic("thief", "3"), 0.9), metrics=thief),
        record(CEILING, 0.8),
    ]
    (table,) = build_tables(made)
    frame = table.to_frame().set_index("entry")
    assert frame.loc["cdcgan", "fid"] == 12.0
    assert frame.loc["cdcgan", "gan_test"] == 0.8  # of the run that has one
    assert frame.loc["cdcgan", "interval_low"] == interval([[0.7], [0.6]]).low
    assert frame["flag"].dropna().to_dict() == {"thief": "near copies (features)"}
    shown = format_metrics(table)
    assert shown is not None
    rows = {row[0]: row[1:] for row in shown.values.tolist()}
    assert list(shown.columns[1:]) == ["FID", "KID", "GAN-test %", "near copies, features %"]
    assert rows["real"] == ["–"] * 4
    assert rows["cdcgan"] == ["12.00", "0.5", "80.00", "–"]
    assert rows["thief"] == ["–", "–", "–", "40.00"]
    for one in made:
        write_record(tmp_path, one, None)
    tables = write_leaderboard(tmp_path)
    assert unchained(tmp_path) == made
    csv = pd.read_csv(tmp_path / "leaderboard.csv").set_index("entry")
    assert csv.loc["cdcgan", "fid"] == 12.0
    assert csv.loc["thief", "flag"] == "near copies (features)"
    page = write_report(tmp_path, tables).read_text()
    assert '<strong class="flag">near copies (features)</strong>' in page


def test_a_score_of_many_seeds_keeps_the_metrics_of_another_record() -> None:
    diversity = {"seconds": {}, "diversity": {"mean": 2.0, "real": 4.0}}
    records = [
        replace(record(synthetic(), 0.7, 0.7, 0.7), metrics=measured(10.0)),
        replace(record(synthetic(), 0.1), metrics=diversity),
        record(synthetic(), 0.2),
    ]
    (row,) = build_tables(records)[0].rows
    assert row.accuracy == pytest.approx(0.7)
    assert row.metrics == {"fid": 10.0, "kid": 0.5, "diversity": 2.0, "real_diversity": 4.0}


def test_known_results_need_the_metrics_that_are_asked_for() -> None:
    measured = replace(record(synthetic(), 0.7), metrics={"seconds": {"diversity": 1.0}})
    records = [record(CEILING, 0.8), measured]

    def found(entry: Entry, *asked: str) -> list[Record]:
        return [one for one in records if one.answers(entry, 1, metrics_for(entry, asked))]

    assert found(synthetic(), "cas", "diversity") == [measured]
    assert found(synthetic(), "cas", "fidelity") == []
    assert found(CEILING, "cas", "diversity") == [records[0]]
    assert found(CEILING, "fidelity") == []  # calibration


def test_metrics_that_mean_nothing_are_left_out() -> None:
    asked = ("cas", "gan-test", "fidelity", "memorisation", "inception", "augmentation-tenth")
    most = ["gan-test", "fidelity", "memorisation", "inception"]
    expected = {
        "synthetic": [*most, "augmentation-tenth"],
        "pca-gaussian": [*most, "augmentation-tenth"],
        "copier": most,
        "real": ["fidelity", "inception"],
        "real-same-size": [],
        "real-tenth": [],
    }
    for kind, names in expected.items():
        assert metrics_for(replace(CEILING, kind=kind), asked) == names
    assert metrics_for(synthetic(labels="classifier"), asked) == [*most[1:], "augmentation-tenth"]
    assert metrics_for(synthetic(labels="random"), asked) == most


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    path = write_record(tmp_path, replace(record(synthetic(), 0.7), metrics=measured(1.0)), None)
    value = json.loads(path.read_text())
    for change in (
        {"metrics": {**value["metrics"], "fidelity": {"classifier": {"fid": "low"}}}},
        {"metrics": []},
        {"scores": [{"seed": 0}]},
        {"entry": {**value["entry"], "images_shown": "many"}},
        {"surprise": 1},
        {"protocol": {"name": "fixed-v1"}},
        {"scores": []},
    ):
        path.write_text(json.dumps({**value, **change}))
        with pytest.raises(SynthError, match="is no record of this version") as raised:
            read_record(path)
        assert str(path) in str(raised.value)


def test_what_is_committed_follows_from_the_records() -> None:
    """The leaderboard and the METHOD page are what `synth leaderboard` writes, byte for byte."""
    results = ROOT / "results"
    tables = build_tables(read_records(results), depths(results))
    assert to_csv(tables).encode() == (results / "leaderboard.csv").read_bytes()
    page, committed = to_page(results, tables), (results / "LEADERBOARD.md").read_text("utf-8")
    lines = [[x for x in text.splitlines() if x.startswith("|")] for text in (page, committed)]
    assert lines[0] == lines[1]
    assert page == committed
    method = (results / "METHOD.md").read_text(encoding="utf-8")
    assert method.split(METHOD[0])[1].split(METHOD[1])[0] == f"\n{describe()}\n"


def test_the_method_page_is_kept_up_to_date(tmp_path: Path) -> None:
    write_record(tmp_path, record(CEILING, 0.8), None)
    method = tmp_path / "METHOD.md"
    for text in ("no marks", f"before {METHOD[0]} old {METHOD[1]} after"):
        method.write_text(text, encoding="utf-8")
        write_leaderboard(tmp_path)
        expected = text.replace(" old ", f"\n{describe()}\n")
        assert method.read_text(encoding="utf-8") == expected


def test_records_are_plain_json(tmp_path: Path) -> None:
    path = write_record(tmp_path, record(synthetic(), 0.7), None)
    value = json.loads(path.read_text())
    assert value["schema"] == 1
    assert value["protocol"]["name"] == "fixed-v1"
    assert value["scores"][0]["accuracy"] == 0.7


TICK = {"d_real": 0.7, "d_fake": 0.3}


def test_training_is_summed_up_over_its_second_half() -> None:
    log = [
        {"images": 1, "d_loss": 99.0, "g_loss": 99.0, **TICK, "heldout_d_losses": [99.0]},
        {"images": 2, "d_loss": 99.0, "g_loss": 99.0, **TICK, "heldout_d_losses": [99.0]},
        {"images": 3, "d_loss": 1.0, "g_loss": 2.0, **TICK, "heldout_d_losses": [1.0, 2.0]},
        {"images": 4, "d_loss": 3.0, "g_loss": 2.0, **TICK, "heldout_d_losses": [3.0]},
    ]
    spread = [{"d_loss_std": d, "g_loss_std": 0.5} for d in (99.0, 99.0, 1.0, 7.0)]
    expected: dict[str, float] = {
        "D loss": 2,
        "± of D loss": 2**0.5,  # of 1 and 3
        "G loss": 2,
        "± of G loss": 0,
        "D(real)": 0.7,
        "D(fake)": 0.3,
        "held-out D loss": 2,
        "± of held-out D loss": 1,  # of 1, 2 and 3
    }
    assert training_values(log) == pytest.approx(expected)
    newer = [{**tick, **more} for tick, more in zip(log, spread, strict=True)]
    expected |= {"step ± of D loss": 5, "step ± of G loss": 0.5}  # variances 1 and 49
    assert training_values(newer) == pytest.approx(expected)


def test_training_stands_in_the_tables_where_a_record_has_its_log(tmp_path: Path) -> None:
    one, two, none = (synthetic(name, digest=name) for name in ("one", "two", "none"))
    tick = {"images": 1, "d_loss": 0.5, "g_loss": 1.25, **TICK}
    records = [
        record(none, 0.7),
        record(replace(one, training_log=[tick]), 0.8),
        record(replace(two, training_log=[{**tick, "heldout_d_losses": [4.0]}]), 0.9),
    ]
    shown = format_training(build_tables(records)[0])
    assert shown is not None
    assert list(shown["entry"]) == ["two", "one"]  # as in the table, the best first
    assert list(shown["G loss"]) == ["1.250", "1.250"]
    assert list(shown["± of G loss"]) == ["–", "–"]  # one tick has no spread
    assert list(shown["held-out D loss"]) == ["4.000", "–"]
    for each in records:
        write_record(tmp_path, each, scored(*each.accuracies))
    assert unchained(tmp_path) == records
    write_leaderboard(tmp_path)
    assert "held-out D loss" in (tmp_path / "LEADERBOARD.md").read_text(encoding="utf-8")
    assert format_training(build_tables(records[:1])[0]) is None
    other = record(replace(none, training_log=[{"images": 1, "loss": 0.5}]), 0.7)  # no GAN's
    assert format_training(build_tables([other])[0]) is None
