"""Records, and the tables made from them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.aggregate import build_tables
from eval.leaderboard import (
    format_figures,
    format_frame,
    format_training,
    training_figures,
    write_leaderboard,
)
from eval.metrics import Diversity, Fidelity, Metrics, NearCopies
from eval.protocols import PROTOCOLS
from eval.records import (
    Entry,
    RealSplits,
    Record,
    figure_path,
    find_record,
    make_record,
    read_records,
    write_record,
)
from eval.report import write_report
from eval.score import Score, SeedScore
from eval.statistics import interval
from synth.base.errors import SynthError
from synth.data import ImageSet
from synth.dials import set_dial
from synth.published import RECIPES

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
    return make_record(
        entry, PROTOCOLS[name], real, scored(*accuracies), {"commit": "abc"}, "fp32", 1.0
    )


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
    rows = [(row.entry, row.images_shown, row.seeds, row.accuracy) for row in table.rows]
    assert rows == [
        ("cdcgan, best checkpoint", 1_000_000, "2 × 1", pytest.approx(0.75)),
        ("cdcgan, best checkpoint", 300_000, "1 × 1", 0.6),
        ("cdcgan, last checkpoint", 1_000_000, "1 × 1", 0.5),
    ]


def test_record_survives_the_disk(tmp_path: Path) -> None:
    made = record(synthetic(), 0.7, 0.72)
    path = write_record(tmp_path, made, scored(0.7, 0.72))
    assert read_records(tmp_path) == [made]
    with np.load(tmp_path / "predictions" / f"{made.id}.npz") as arrays:
        assert arrays["predictions"].shape == (2, 5)
        assert arrays["correct"].tolist() == [[True, True, False, False, False]] * 2
    with pytest.raises(SynthError, match="not overwritten"):
        write_record(tmp_path, made, None)
    path.write_text(path.read_text()[:50])
    with pytest.raises(SynthError, match="is damaged"):
        read_records(tmp_path)


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
    assert format_frame(table).iloc[1]["95 % interval"] == "46.59 to 97.41 *"
    assert format_frame(table).iloc[1]["accuracy %"] == "72.00"


def test_generator_seeds_of_one_recipe_share_a_row() -> None:
    (table,) = build_tables(
        [record(synthetic(digest="1"), 0.7, 0.7), record(synthetic(digest="2"), 0.6, 0.6)]
    )
    (row,) = table.rows
    assert row.accuracy == pytest.approx(0.65)
    assert row.seeds == "2 × 2"
    assert row.interval == interval([[0.7, 0.7], [0.6, 0.6]])
    assert "*" not in format_frame(table).iloc[0]["95 % interval"]


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


def test_recipes_of_one_name_that_differ_do_not_share_a_row() -> None:
    older, same, other = (
        RECIPES["cdcgan"].to_json(),
        set_dial(RECIPES["cdcgan"], "training.images=5").to_json(),
        set_dial(RECIPES["cdcgan"], "training.batch=64").to_json(),
    )
    del older["assumed"], older["training"]["heldout_every"]  # as records were once
    entries = [
        replace(synthetic(digest=str(seed)), config={"recipe": {**recipe, "name": "cdcgan"}})
        for seed, recipe in enumerate((older, same, other))
    ]
    (table,) = build_tables([record(entry, 0.5 + i / 10) for i, entry in enumerate(entries)])
    assert [row.seeds for row in table.rows] == ["1 × 1", "2 × 1"]
    with pytest.raises(SynthError, match="another version"):
        build_tables([record(replace(entries[0], config={"recipe": {"name": "x"}}), 0.5)])


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
    failed = make_record(synthetic(digest="9"), FIXED, REAL, None, {}, "fp32", 1.0, "it broke")
    foreign = replace(synthetic(digest="4"), trained_on="d" * 64)
    (table,) = build_tables([failed, record(foreign, 0.3), record(synthetic(), 0.7)])
    assert [row.entry for row in table.rows] == ["cdcgan", "cdcgan (trained on other data)"]


def test_known_results_are_found_and_others_are_not() -> None:
    records = [record(CEILING, 0.8, 0.8), record(synthetic(), 0.7, 0.7)]
    assert find_record(records, replace(CEILING, sha256=None), FIXED, REAL, 2) is records[0]
    assert find_record(records, synthetic(), FIXED, REAL, 2) is records[1]
    assert find_record(records, synthetic(), FIXED, REAL, 3) is None
    assert find_record(records, synthetic(digest="2"), FIXED, REAL, 2) is None
    assert find_record(records, synthetic(), PROTOCOLS["quick-v1"], REAL, 1) is None


def test_published_files_follow_from_the_records(tmp_path: Path) -> None:
    write_record(tmp_path, record(CEILING, 0.8, 0.82), None)
    write_record(tmp_path, record(synthetic(), 0.7, 0.72), None)
    tables = write_leaderboard(tmp_path)
    text = (tmp_path / "LEADERBOARD.md").read_text()
    assert "## svhn-part, fixed-v1 (4,434 real training images, 8,000 test images)" in text
    assert (
        "| 1 | cdcgan | 71.00 | 58.29 to 83.71 * | 70.00 | 10.00 | 0.877 | – | 50,000 | "
        "1,000,000 | – | 1 × 2 | fp32 |" in text
    )
    assert pd.read_csv(tmp_path / "leaderboard.csv")["accuracy"].tolist() == [0.81, 0.71]
    page = write_report(tmp_path, tables).read_text()
    assert page.count("<table class='confusion'>") == 2
    assert "http" not in page.replace("http-equiv", "")
    write_leaderboard(tmp_path)
    assert (tmp_path / "LEADERBOARD.md").read_text() == text


def test_a_run_shorter_than_its_recipe_says_so() -> None:
    config = {"recipe": RECIPES["shahrullo"].to_json(), "images": 1_000_000}
    (table,) = build_tables([record(replace(synthetic("shahrullo"), config=config), 0.7)])
    shown = format_frame(table).iloc[0]
    assert (shown["GAN images shown"], shown["recipe's length"]) == ("1,000,000", "3,662,850")
    assert table.to_frame()["recipe_images"].tolist() == [50 * 73_257]


def test_pictures_that_are_kept_are_linked_by_run(tmp_path: Path) -> None:
    known = [record(synthetic(digest=digest), 0.7) for digest in ("1", "2")]
    for each in (record(CEILING, 0.8), *known):
        write_record(tmp_path, each, None)
    write_leaderboard(tmp_path)
    assert "samples |" not in (tmp_path / "LEADERBOARD.md").read_text(encoding="utf-8")
    for each, name in zip(known, ("samples", "losses"), strict=True):
        figure_path(tmp_path, each, name).parent.mkdir(exist_ok=True)
        figure_path(tmp_path, each, name).touch()
    write_leaderboard(tmp_path)
    lines = (tmp_path / "LEADERBOARD.md").read_text(encoding="utf-8").splitlines()
    at = lines.index("| entry | samples | losses |")
    first, second = known
    assert lines[at + 2 :] == [
        f"| cdcgan | [1](figures/{first.id}-samples.png) | [2](figures/{second.id}-losses.png) |"
    ]


def measured(fid: float, **more: object) -> Metrics:
    return Metrics({}, fidelity={"classifier": Fidelity(fid=fid, kid=0.5)}, **more)  # type: ignore[arg-type]


def test_figures_are_means_over_runs_and_absent_ones_are_dashes(tmp_path: Path) -> None:
    copies = {"features": NearCopies(0.4, 0.001, 0.0, 0.9, True)}
    made = [
        replace(record(synthetic(digest="1"), 0.7), metrics=measured(10.0, gan_test=0.8)),
        replace(record(synthetic(digest="2"), 0.6), metrics=measured(14.0)),
        replace(record(synthetic("thief", "3"), 0.9), metrics=Metrics({}, memorisation=copies)),
        record(CEILING, 0.8),
    ]
    (table,) = build_tables(made)
    frame = table.to_frame().set_index("entry")
    assert frame.loc["cdcgan", "fid"] == 12.0
    assert frame.loc["cdcgan", "gan_test"] == 0.8  # of the run that has one
    assert frame.loc["cdcgan", "interval_low"] == interval([[0.7], [0.6]]).low
    assert frame["flag"].dropna().to_dict() == {"thief": "near copies (features)"}
    shown = format_figures(table)
    assert shown is not None
    rows = {row[0]: row[1:] for row in shown.values.tolist()}
    assert list(shown.columns[2:]) == ["FID", "KID", "GAN-test %", "near copies, features %"]
    assert rows["real"] == ["–"] * 5
    assert rows["cdcgan"] == ["–", "12.00", "0.5", "80.00", "–"]
    assert rows["thief"] == ["near copies (features)", "–", "–", "–", "40.00"]
    for one in made:
        write_record(tmp_path, one, None)
    tables = write_leaderboard(tmp_path)
    assert read_records(tmp_path) == made
    csv = pd.read_csv(tmp_path / "leaderboard.csv").set_index("entry")
    assert csv.loc["cdcgan", "fid"] == 12.0
    assert csv.loc["thief", "flag"] == "near copies (features)"
    page = write_report(tmp_path, tables).read_text()
    assert "<strong>near copies (features)</strong>" in page


def test_a_score_of_many_seeds_keeps_the_figures_of_another_record() -> None:
    diversity = Metrics({}, diversity=Diversity(2.0, 4.0, [2.0], [4.0]))
    records = [
        replace(record(synthetic(), 0.7, 0.7, 0.7), metrics=measured(10.0)),
        replace(record(synthetic(), 0.1), metrics=diversity),
        record(synthetic(), 0.2),
    ]
    (row,) = build_tables(records)[0].rows
    assert row.accuracy == pytest.approx(0.7)
    assert row.figures == {"fid": 10.0, "kid": 0.5, "diversity": 2.0, "real_diversity": 4.0}


def test_known_results_need_the_figures_that_are_asked_for() -> None:
    measured = replace(record(synthetic(), 0.7), metrics=Metrics({"diversity": 1.0}))
    records = [record(CEILING, 0.8), measured]
    assert find_record(records, synthetic(), FIXED, REAL, 1, ("cas", "diversity")) is measured
    assert find_record(records, synthetic(), FIXED, REAL, 1, ("cas", "fidelity")) is None
    assert find_record(records, CEILING, FIXED, REAL, 1, ("cas", "diversity")) is records[0]
    assert find_record(records, CEILING, FIXED, REAL, 1, ("fidelity",)) is None  # calibration


def test_groups_that_mean_nothing_are_left_out() -> None:
    asked = ("cas", "gan-test", "fidelity", "memorisation")
    assert synthetic().groups(asked) == ["gan-test", "fidelity", "memorisation"]
    assert CEILING.groups(asked) == ["fidelity"]
    assert replace(CEILING, kind="real-same-size").groups(asked) == []
    assert synthetic(labels="classifier").groups(asked) == ["fidelity", "memorisation"]


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
    assert training_figures(log) == pytest.approx(expected)
    newer = [{**tick, **more} for tick, more in zip(log, spread, strict=True)]
    expected |= {"step ± of D loss": 5, "step ± of G loss": 0.5}  # variances 1 and 49
    assert training_figures(newer) == pytest.approx(expected)


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
    assert read_records(tmp_path) == records
    write_leaderboard(tmp_path)
    assert "held-out D loss" in (tmp_path / "LEADERBOARD.md").read_text(encoding="utf-8")
    assert format_training(build_tables(records[:1])[0]) is None
