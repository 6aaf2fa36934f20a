"""`synth compare`, and the agreement of two protocols in the leaderboard."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest

from eval.compare import NamedComparison
from eval.protocols import PROTOCOLS
from eval.records import (
    Entry,
    RealSplits,
    Record,
    predictions_path,
    read_records,
    record_id,
    write_record,
)
from eval.scoring import Score, SeedScore
from eval.statistics import Comparison, compare
from eval.tables import agreement_lines, build_tables
from tests.conftest import Ran
from tests.test_cli import one_line

Synth = Callable[..., Ran]
REAL = RealSplits("svhn-part", "a" * 64, 400, "b" * 64, 500)
RESULTS = Path("results")


def answers(accuracy: float, seeds: int, key: int) -> np.ndarray:
    """Bool (seeds, 500): right or wrong."""
    return np.random.default_rng(key).random((seeds, REAL.test_size)) < accuracy


def keep(
    entry: Entry, correct: np.ndarray, protocol: str = "fixed-v1", real: RealSplits = REAL
) -> Record:
    """Writes a record into results/ whose classifiers got these images right."""
    scores = [
        SeedScore(seed, float(row.mean()), 0.5, [0.5] * 2, [[1, 1], [1, 1]], 0.1, 1.0)
        for seed, row in enumerate(correct)
    ]
    score = Score(scores, correct.astype(np.uint8), correct)
    now = datetime.now(timezone.utc)
    made = Record(
        id=record_id(now, entry, PROTOCOLS[protocol], real),
        date=now.isoformat(timespec="seconds"),
        entry=entry,
        protocol=PROTOCOLS[protocol].to_json(),
        real=real,
        scores=scores,
        environment={"commit": "abc"},
        precision="fp32",
        seconds=1.0,
    )
    write_record(RESULTS, made, score)
    return made


def run_of(name: str, key: str) -> Entry:
    return Entry(
        "synthetic",
        name,
        1000,
        key,
        labels="conditional",
        images_shown=64,
        trained_on="a" * 64,
        checkpoint=key,
    )


def test_the_command_compares_all_runs_of_both_entries(synth: Synth) -> None:
    better = [answers(0.9, 3, key) for key in (1, 2, 3)]
    worse = [answers(0.6, 3, key) for key in (4, 5, 6)]
    for number, (a, b) in enumerate(zip(better, worse, strict=True)):
        keep(run_of("cdcgan", f"a{number}"), a)
        keep(run_of("dcgan + pseudo-labels", f"b{number}"), b)
    ran = synth("compare", "cdcgan", "dcgan + pseudo-labels", "--json")
    assert ran.code == 0, ran.err
    told, expected = json.loads(ran.out), compare(better, worse)
    assert told["difference"] == pytest.approx(expected.difference)
    assert (told["low"], told["high"]) == pytest.approx((expected.low, expected.high))
    assert (told["verdict"], told["scope"]) == ("A", "recipes")
    text = synth("compare", "dcgan + pseudo-labels", "cdcgan").out
    assert "verdict       cdcgan is better" in text
    assert f"{-100 * expected.difference:+.2f} points" in text
    assert "3 × 3 against 3 × 3 (runs × classifier seeds), 500 test images" in text


def test_a_comparison_by_hand() -> None:
    result = Comparison(
        0.0512, -0.0123, 0.1147, 0.0371, "can't tell", "recipes", ((3, 3), (1,)), 500
    )
    named = NamedComparison("a", "b", "fixed-v1", "svhn", result)
    assert named.to_text().splitlines() == [
        "a - b, fixed-v1 on svhn",
        "difference    +5.12 points",
        "95 % interval -1.23 to +11.47",
        "p             0.037",
        "verdict       can't tell",
        "covers        compares the recipes: covers generator runs, classifier seeds and",
        "              test images",
        "n             2 × 3 against 1 × 1 (runs × classifier seeds), 500 test images",
    ]
    for letter in "ab":
        better = replace(named, result=replace(result, verdict=letter.upper()))
        assert f"verdict       {letter} is better" in better.to_text()
    assert named.to_json() == {
        **{"a": "a", "b": "b", "protocol": "fixed-v1", "real": "svhn", "difference": 0.0512},
        **{"low": -0.0123, "high": 0.1147, "p_value": 0.0371, "verdict": "can't tell"},
        **{"scope": "recipes", "seeds": ((3, 3), (1,)), "images": 500},
        "covers": "compares the recipes: covers generator runs, classifier seeds and test images",
    }


def test_two_alike_cannot_be_told_apart_and_a_record_is_one_run(synth: Synth) -> None:
    first = keep(run_of("cdcgan", "1"), answers(0.8, 3, 1))
    keep(run_of("cdcgan", "2"), answers(0.8, 3, 2))
    keep(run_of("dcgan", "3"), answers(0.8, 3, 3))
    ran = synth("compare", first.id[:-5], "dcgan")
    assert ran.code == 0, ran.err
    assert "can't tell" in ran.out
    assert "1 × 3 against 1 × 3" in ran.out
    assert "these data sets, not the recipes behind them" in ran.out


def test_each_seed_of_a_reference_is_a_run(synth: Synth) -> None:
    real = answers(0.9, 3, 1)
    keep(Entry("real", "real", 400, "r"), real)
    runs = [answers(0.7, 3, key) for key in (2, 3)]
    for key, correct in enumerate(runs):
        keep(run_of("cdcgan", str(key)), correct)
    told = json.loads(synth("compare", "real", "cdcgan", "--json").out)
    expected = compare([real[:1], real[1:2], real[2:]], runs)
    assert told["p_value"] == pytest.approx(expected.p_value)
    assert told["seeds"] == [[1, 1, 1], [3, 3]]


def test_beside_a_single_run_a_reference_is_paired_over_seeds(synth: Synth) -> None:
    real, same_size, run = answers(0.9, 3, 1), answers(0.88, 3, 4), answers(0.86, 3, 2)
    keep(Entry("real", "real", 400, "r"), real)
    keep(Entry("real-same-size", "real, same size", 1000, "s"), same_size)
    keep(run_of("cdcgan", "1"), run)
    for other, correct in (("cdcgan", run), ("real, same size", same_size)):
        told = json.loads(synth("compare", "real", other, "--json").out)
        assert told["p_value"] == pytest.approx(compare([real], [correct]).p_value)
        assert (told["scope"], told["seeds"]) == ("generators", [[3], [3]])


def test_of_several_sets_of_one_run_the_newest_counts(synth: Synth) -> None:
    old, new = answers(0.2, 2, 1), answers(0.8, 2, 2)
    keep(replace(run_of("cdcgan", "1"), sha256="old"), old)
    keep(replace(run_of("cdcgan", "1"), sha256="new"), new)
    keep(run_of("dcgan", "2"), answers(0.5, 2, 3))
    told = json.loads(synth("compare", "cdcgan", "dcgan", "--json").out)
    assert told["difference"] == pytest.approx(compare([new], [answers(0.5, 2, 3)]).difference)


def test_what_cannot_be_compared_is_named(synth: Synth) -> None:
    one_line(synth("compare", "a", "b"), 2, "--protocol fixed-v1", "synth evaluate")
    a = keep(run_of("cdcgan", "1"), answers(0.8, 2, 1))
    b = keep(run_of("dcgan", "2"), answers(0.8, 2, 2))
    one_line(synth("compare", "cdcgan", "nonesuch"), 2, "B 'nonesuch'", "choose", "cdcgan")
    one_line(synth("compare", "cdcgan", a.id[:4]), 2, "begins the ids", a.id, b.id)
    one_line(synth("compare", "cdcgan", "dcgan", "--protocol", "quick-v1"), 2, "choose fixed-v1")
    one_line(synth("compare", "cdcgan", "dcgan", "--real", "svhn"), 2, "choose svhn-part")

    other = replace(REAL, name="svhn", test_fingerprint="c" * 64)
    for name in ("cdcgan", "dcgan"):
        keep(run_of(name, "3"), answers(0.8, 2, 3), real=other)
    one_line(synth("compare", "cdcgan", "dcgan"), 2, "--real", "svhn, svhn-part")
    assert "on svhn\n" in synth("compare", "cdcgan", "dcgan", "--real", "svhn").out

    keep(replace(run_of("dcgan", "4"), count=5), answers(0.8, 2, 4))
    one_line(
        synth("compare", "cdcgan", "dcgan", "--real", "svhn-part"), 2, "stands in 2 rows", b.id
    )


def test_a_record_without_its_answers_is_to_be_evaluated_again(synth: Synth) -> None:
    keep(run_of("cdcgan", "1"), answers(0.8, 2, 1))
    old = keep(run_of("dcgan", "2"), answers(0.8, 2, 2))
    path = predictions_path(RESULTS, old)
    np.savez_compressed(path, predictions=np.zeros((2, 500), np.uint8))  # as it was once
    one_line(synth("compare", "cdcgan", "dcgan"), 1, path.name, "evaluate the entry again")
    np.savez_compressed(path, correct=np.zeros((2, 499), bool))
    one_line(synth("compare", "cdcgan", "dcgan"), 1, path.name, "does not fit its record")
    path.unlink()
    one_line(synth("compare", "cdcgan", "dcgan"), 1, path.name, "evaluate the entry again")


@pytest.mark.usefixtures("synth")
def test_agreement_of_two_classifiers() -> None:

    def ranked(protocol: str, *accuracies: float) -> list[Record]:
        return [
            keep(run_of(f"recipe {index}", str(index)), answers(accuracy, 2, index), protocol)
            for index, accuracy in enumerate(accuracies)
        ]

    fixed = ranked("fixed-v1", 0.9, 0.8, 0.6, 0.4, 0.2)
    resnet = ranked("fixed-resnet-v1", 0.7, 0.9, 0.4, 0.6, 0.2)
    only = keep(run_of("elsewhere", "9"), answers(0.1, 2, 9))
    assert agreement_lines(build_tables([*fixed, *resnet, only])) == [
        "fixed-resnet-v1 and fixed-v1 rank 5 entries on svhn-part: "
        f"Spearman {1 - 6 * 4 / (5 * 24):.3f}, Kendall {(8 - 2) / 10:.3f}"
    ]
    reversed_order = ranked("quick-v1", 0.1, 0.3, 0.5, 0.7, 0.9)
    (line,) = agreement_lines(build_tables([*fixed, *reversed_order]))
    assert line.endswith("Spearman -1.000, Kendall -1.000")
    flat = ranked("quick-v1", 1, 1, 1, 1, 1)  # all equal: no ranking
    assert agreement_lines(build_tables([*fixed, *flat])) == []
    assert agreement_lines(build_tables([*fixed, *resnet[:2]])) == []  # two in common
    elsewhere = [replace(r, real=replace(REAL, test_fingerprint="c" * 64)) for r in resnet]
    assert agreement_lines(build_tables([*fixed, *elsewhere])) == []


@pytest.mark.usefixtures("synth")
def test_sizes_do_not_count_beside_a_stream() -> None:
    for index in range(3):
        entry = run_of(f"recipe {index}", str(index))
        keep(entry, answers(0.3 * index + 0.2, 1, index))
        keep(replace(entry, count=10**6), answers(0.3 * index + 0.2, 1, index), "stream-v1")
        keep(replace(entry, count=5), answers(0.3 * index + 0.1, 1, index), "quick-v1")
    (line,) = agreement_lines(build_tables(read_records(RESULTS)))[:1]
    assert line.startswith("fixed-v1 and stream-v1 rank 3 entries")


def test_agreement_stands_in_the_leaderboard(synth: Synth) -> None:
    for protocol in ("fixed-v1", "fixed-resnet-v1"):
        for index in range(3):
            keep(run_of(f"r{index}", str(index)), answers(0.3 * index + 0.2, 1, index), protocol)
    ran = synth("leaderboard")
    line = "fixed-resnet-v1 and fixed-v1 rank 3 entries on svhn-part: Spearman 1.000, Kendall 1.000"
    assert line in " ".join(ran.out.split())
    assert max(map(len, ran.out.splitlines())) <= 80
    assert f"\n{line}.\n" in (RESULTS / "LEADERBOARD.md").read_text()
    assert len(json.loads(synth("leaderboard", "--json").out)) == 6


def test_entries_of_one_real_data_set_alone_say_which_it_is(synth: Synth) -> None:
    keep(run_of("cdcgan", "1"), answers(0.8, 2, 1))
    keep(run_of("dcgan", "2"), answers(0.8, 2, 2))
    other = replace(REAL, name="svhn", test_fingerprint="c" * 64)
    one = keep(run_of("cdcgan", "3"), answers(0.8, 2, 3), real=other)
    keep(run_of("dcgan-wide", "4"), answers(0.8, 2, 4), real=other)
    for a, b, real in (
        ("cdcgan", "dcgan-wide", "svhn"),
        (one.id, "dcgan-wide", "svhn"),
        ("cdcgan", "dcgan", "svhn-part"),
    ):
        assert json.loads(synth("compare", a, b, "--json").out)["real"] == real
    one_line(synth("compare", "cdcgan", "cdcgan"), 2, "--real", "svhn, svhn-part")
    one_line(synth("compare", one.id, "dcgan"), 2, "--real", "svhn, svhn-part")
