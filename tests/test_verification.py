"""`synth verify`: an honest record holds bit for bit, and whatever is tampered with shows."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from eval import real_classifier, repeat
from eval.checks import (
    _agree,
    _comparable,
    _equal,
    _follows,
    compare_descriptions,
    compare_environments,
    within,
)
from eval.evaluator import Evaluator, Workspace
from eval.protocols import PROTOCOLS
from eval.records import Entry, read_record
from eval.repeat import Again, as_recorded, evaluator_again
from eval.scoring import SeedScore
from eval.verification import Verification
from eval.verify import find_record_file
from synth.base.errors import UsageError
from synth.base.files import read_arrays, read_json
from synth.checkpoints import load_tensors, save_tensors
from synth.data import ImageSet
from synth.environment import MACHINE, blas_threads
from synth.ops.native import describe_machine
from tests.conftest import (
    SCORE,
    TRAIN,
    Ran,
    config_of,
    in_turns,
    record_of,
    reseal,
    tamper,
    tiny,
)
from tests.test_cli import one_line
from tests.test_leaderboard import CEILING, REAL, record, synthetic

Synth = Callable[..., Ran]
pytestmark = pytest.mark.usefixtures("tiny_names")


def files_below(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checks(ran: Ran) -> dict[str, bool]:
    return {check["what"]: check["met"] for check in json.loads(ran.out)["checks"]}


def test_what_a_killed_verification_left_is_cleared(
    synth: Synth, evaluated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder for temporary files is one that the next one can clear."""
    temporary, path = evaluated / "tmp", record_of(evaluated)
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    made: list[str] = []
    evaluate = Evaluator.evaluate

    def watched(self: Evaluator, *arguments: Any) -> Any:
        made.extend(folder.name for folder in temporary.iterdir())
        return evaluate(self, *arguments)

    monkeypatch.setattr(Evaluator, "evaluate", watched)
    (temporary / ".partial-of-the-killed").mkdir()
    (temporary / ".partial-of-the-killed" / "lock").touch()
    assert synth("verify", path).code == 0
    assert [name[:9] for name in made] == [".partial-"]
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("stage", ["evaluate", "generate", "train"])
def test_a_synthetic_record_holds_bit_for_bit(synth: Synth, evaluated: Path, stage: str) -> None:
    before = files_below(evaluated)
    path = record_of(evaluated)
    if stage == "train":  # all that is needed stands in the record
        shutil.rmtree(evaluated / "runs")
        shutil.rmtree(evaluated / "datasets")
        before = files_below(evaluated)
    ran = synth("verify", path.stem[:20], "--from", stage, "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["exact"] and told["holds"], told
    assert told["differences"] == []
    at_hand = {"code", "record", "predictions"}
    if stage != "train":
        at_hand |= {"checkpoint", "log", "config", "set", "manifest"}
    expected = {
        "same id",
        *(f"chain: {link}" for link in at_hand),
        "same description",
        "record agrees with its own predictions",
        "same predictions",
        "same scores",
        "same metrics",
        "same flag",
        "same data set",
        *(["same checkpoint"] if stage != "evaluate" else []),
        *(["same training log"] if stage == "train" else []),
    }
    assert checks(ran) == dict.fromkeys(expected, True)
    noted = evaluated / "results" / "verified" / path.name
    assert read_json(noted)["from"] == stage
    noted.unlink()
    assert files_below(evaluated) == before  # nothing else was written, in results or elsewhere


@pytest.mark.parametrize("kind", ["real", "real-same-size", "pca-gaussian"])
def test_references_are_rebuilt_from_the_real_split(
    synth: Synth, evaluated: Path, kind: str
) -> None:
    path = record_of(evaluated, kind)
    ran = synth("verify", path)
    assert ran.code == 0, ran.err
    assert "verdict       holds, bit for bit" in ran.out
    assert "same training set: yes" in ran.out
    one_line(synth("verify", path, "--from", "train"), 2, "--from train", "has no generator")
    tamper(path, lambda value: value["entry"].update(sha256="f" * 64))
    one_line(synth("verify", path), 1, "does not hold: same training set")


@pytest.mark.parametrize("label_with", ["random", "classifier"])
def test_labelled_sets_are_made_again(
    synth: Synth,
    evaluated: Path,
    label_with: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def any_labels(real: object, protocol: Any, device: object, precision: str, *_: Any) -> Any:
        assert (protocol.name, precision) == ("tiny-v1", "fp32")  # the run's precision
        return in_turns

    # three steps teach a classifier one class at most
    monkeypatch.setattr(real_classifier, "train_classify", any_labels)
    monkeypatch.setattr(real_classifier, "LABELLER_PROTOCOL", "tiny-v1")
    shutil.rmtree(evaluated / "results")
    for command in (
        ("train", "--recipe", "tiny-uncond", *TRAIN),
        ("generate", "--per-class", "4", "--label-with", label_with),
        ("evaluate", *SCORE, "--no-references"),
    ):
        assert synth(*command).code == 0
    shutil.rmtree(evaluated / "datasets")
    ran = synth("verify", record_of(evaluated), "--from", "generate")
    assert ran.code == 0, ran.err
    assert "same data set: yes" in ran.out


@pytest.mark.parametrize("stage", ["generate", "train"])
def test_a_stream_is_drawn_again(synth: Synth, evaluated: Path, stage: str) -> None:
    shutil.rmtree(evaluated / "results")
    stream = ("--protocol", "tiny-stream-v1", "--precision", "fp32", "--no-references")
    assert synth("evaluate", *stream).code == 0
    ran = synth("verify", record_of(evaluated), "--from", stage)
    assert ran.code == 0, ran.err
    assert "holds, bit for bit" in ran.out


# A verification that must fail


def test_tampered_images_do_not_pass(synth: Synth, evaluated: Path) -> None:
    path, (folder,) = record_of(evaluated), (evaluated / "datasets").glob("0*")
    arrays = read_arrays(folder / "images.npz")
    arrays["images"][0, 0, 0, 0] ^= 1
    np.savez(folder / "images.npz", **arrays)  # type: ignore[arg-type]
    ran = synth("verify", path)
    one_line(ran, 1, "does not hold: chain: set")
    told = " ".join(ran.out.split())
    assert f"no repetition: datasets/{folder.name}: its images do not match" in told
    shutil.rmtree(folder)
    one_line(synth("verify", path), 1, folder.name, "no data set of the sha256", "--from generate")


def test_a_tampered_accuracy_does_not_pass(synth: Synth, evaluated: Path) -> None:
    path = record_of(evaluated)
    tamper(path, lambda value: value["scores"][0].update(accuracy=0.9))
    one_line(synth("verify", path), 1, "does not hold", "its own predictions", "same scores")


def test_a_tampered_recall_does_not_pass(synth: Synth, evaluated: Path) -> None:
    path = record_of(evaluated)
    tamper(path, lambda value: value["scores"][1]["recalls"].__setitem__(3, 0.123))
    own = "record agrees with its own predictions"
    one_line(synth("verify", path), 1, f"does not hold: {own}, same scores")


@pytest.mark.parametrize(
    "change",
    [
        lambda metrics: metrics["fidelity"]["classifier"].update(fid=0.1),
        lambda metrics: metrics["memorisation"]["pixels"].update(flagged=True),
        lambda metrics: metrics["diversity"]["per_class"].append(1.0),
        lambda metrics: metrics.update(gan_test=None),
    ],
)
def test_another_tampered_figure_does_not_pass(
    synth: Synth, evaluated: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    path = record_of(evaluated)
    tamper(path, lambda value: change(value["metrics"]))
    one_line(synth("verify", path), 1, "does not hold: same metrics")


def test_tampered_predictions_do_not_pass(synth: Synth, evaluated: Path) -> None:
    path = record_of(evaluated)
    kept = evaluated / "results" / "predictions" / f"{path.stem}.npz"
    arrays = read_arrays(kept)
    wrong = np.flatnonzero(~arrays["correct"][0])[0]  # still as accurate as the record says
    arrays["predictions"][0, wrong] = (arrays["predictions"][0, wrong] + 5) % 10
    again = arrays["predictions"][0, wrong] == np.arange(80)[wrong] % 10
    arrays["predictions"][0, wrong] += int(again)
    np.savez_compressed(kept, **arrays)  # type: ignore[arg-type]
    reseal(path)
    own = "record agrees with its own predictions"
    one_line(synth("verify", path), 1, f"does not hold: {own}, same predictions")
    kept.unlink()
    one_line(synth("verify", path), 1, "is missing", "predictions cannot be compared")


def test_tampered_answers_do_not_pass(synth: Synth, elsewhere: Path) -> None:
    """`compare` believes these, and they follow from the predictions: on any machine."""
    kept = elsewhere.parent.parent / "predictions" / f"{elsewhere.stem}.npz"
    arrays = read_arrays(kept)
    arrays["correct"] = ~arrays["correct"]
    np.savez_compressed(kept, **arrays)  # type: ignore[arg-type]
    reseal(elsewhere)
    one_line(synth("verify", elsewhere), 1, "does not hold: record agrees with its own predictions")


def test_a_generator_of_another_seed_does_not_pass(synth: Synth, evaluated: Path) -> None:
    path = record_of(evaluated)
    tamper(path, lambda value: value["entry"]["config"].update(seed=1))
    ran = synth("verify", path, "--from", "train")
    failed = "same checkpoint, same data set, same description, same training log, same predictions"
    one_line(ran, 1, f"does not hold: chain: config, {failed}")
    tamper(path, lambda value: value["entry"].update(generation_seed=1))
    one_line(synth("verify", path, "--from", "generate"), 1, "same data set")


def test_a_poisoned_cache_does_not_pass(synth: Synth, evaluated: Path) -> None:
    """Weights with noise in the cache, and the hash made to fit."""
    for cached in (evaluated / "cache" / "classifiers").iterdir():  # one for each seed
        weights, metadata = load_tensors(cached)
        poisoned = {
            name: value + 0.5 * (value.dtype == torch.float32) for name, value in weights.items()
        }
        save_tensors(cached, poisoned, metadata)
    assert "holds, bit for bit" in synth("verify", record_of(evaluated)).out
    scored = synth("evaluate", *SCORE, "--no-references")
    assert scored.code == 0
    newest = max((evaluated / "results" / "records").iterdir())
    one_line(synth("verify", newest), 1, "does not hold: same metrics")


# Elsewhere: within the interval


@pytest.fixture
def elsewhere(evaluated: Path) -> Path:
    """The record of another machine, where a figure came out otherwise."""
    path = record_of(evaluated)
    tamper(path, lambda value: value["environment"].update(torch="1.0"))
    tamper(path, lambda value: value["metrics"].update(gan_test=0.123))
    return path


def test_elsewhere_the_mean_must_lie_in_the_interval(
    synth: Synth, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = synth("verify", elsewhere)
    assert ran.code == 0, ran.err
    assert f"differs       evaluate: torch 1.0, now {torch.__version__.split('+')[0]}" in ran.out
    assert "verdict       holds, within its interval" in ran.out


@pytest.mark.parametrize("key", ["processor", "compiler", "tiles"])
def test_another_processor_or_compiler_is_elsewhere(
    synth: Synth, evaluated: Path, key: str
) -> None:
    """The attack of issue 15, A.4: torch calls them all AVX512, and their bits differ."""
    path = record_of(evaluated)
    tamper(path, lambda value: value["environment"].update({key: "another"}))
    told = json.loads(synth("verify", path, "--json").out)
    assert not told["exact"]
    assert told["differences"] == [f"evaluate: {key} another, now {describe_machine()[key]}"]
    assert told["verdict"] == "holds, bit for bit"  # which it need not
    tamper(path, lambda value: value["metrics"].update(gan_test=0.123))
    assert "verdict       holds, within its interval" in synth("verify", path).out


def test_a_run_resumed_in_another_environment_need_not_repeat_its_bits(
    synth: Synth, evaluated: Path
) -> None:
    path = record_of(evaluated)

    def resume(value: dict[str, Any]) -> None:
        start = value["entry"]["training_environment"]
        start["resumed"] = [{**start, "images": 16}, {**start, "images": 32, "threads": 7}]

    tamper(path, resume)
    ran = synth("verify", path, "--from", "train")
    one_line(ran, 1, "resumed at 32 images with threads 7", "only one run of this entry")
    assert "at 16 images" not in ran.err


def test_bits_of_a_record_that_names_no_processor_need_not_repeat(
    synth: Synth, evaluated: Path
) -> None:
    """Older ones do not. If the bits repeat, that is told; if they do not, the spread decides."""
    path = record_of(evaluated)

    def older(value: dict[str, Any]) -> None:
        for key in ("processor", "compiler", "tiles"):
            del value["environment"][key]

    tamper(path, older)
    told = json.loads(synth("verify", path, "--json").out)
    assert (told["exact"], told["differences"]) == (False, [])
    assert told["unknown"] == ["evaluate: processor, compiler, tiles"]
    assert told["verdict"] == "holds, bit for bit"
    tamper(path, lambda value: value["metrics"].update(gan_test=0.123))
    assert "verdict       holds, within its interval" in synth("verify", path).out
    single = evaluated / "results" / "predictions" / f"{path.stem}.npz"
    arrays = read_arrays(single)
    np.savez_compressed(single, **{name: each[:1] for name, each in arrays.items()})  # type: ignore[arg-type]
    tamper(path, lambda value: value.update(scores=value["scores"][:1]))
    unknown = "the record does not say evaluate: processor, compiler, tiles"
    one_line(synth("verify", path), 1, "cannot be verified here", unknown, "one classifier seed")


NOW = {
    **{key: f"this {key}" for key in MACHINE},
    **{"device": "CPU x", "kernels": True, "threads": 2, "blas_threads": 2, "processes": 1},
    **{"deterministic": False, "commit": "a" * 40, "code": "b" * 64},
}


def compared(stage: Any, entry: Entry, environment: dict[str, Any]) -> Verification:
    made = replace(record(entry, 0.5), environment=environment)
    found = Verification(made, stage)
    compare_environments(found, NOW)
    return found


def test_environments_are_compared_stage_by_stage() -> None:
    alike = compared(
        "train", replace(synthetic(), training_environment=NOW, generation_environment=NOW), NOW
    )
    assert (alike.differences, alike.unknown, alike.notes) == ([], [], [])
    assert alike.exact
    # Older versions did not count processes: there was one.
    before = {key: value for key, value in NOW.items() if key != "processes"}
    assert (
        compared("train", replace(synthetic(), training_environment=before), NOW).differences == []
    )
    # The first stage that says nothing keeps none of the others from being compared.
    changed = {**NOW, "processes": 2, "commit": "a" * 12 + "c" * 28, "code": "c" * 64}
    found = compared("train", replace(synthetic(), training_environment=changed), NOW)
    assert found.unknown == ["generate: its environment"]
    assert found.differences == ["train: by 2 processes, now by one"]
    assert found.notes == [
        f"train: commit {'a' * 12}c, now {'a' * 13}",
        f"train: code {'c' * 13}, now {'b' * 13}",
    ]
    assert not found.exact
    # Of a set on disk, only what is repeated counts.
    assert compared("evaluate", synthetic(), NOW).exact
    # Without kernels there is no compiler to name. Everything else has to be there.
    bare = {key: value for key, value in NOW.items() if key not in ("compiler", "processor")}
    assert compared("evaluate", synthetic(), bare).unknown == ["evaluate: processor, compiler"]
    bare["kernels"] = False
    assert compared("evaluate", synthetic(), bare).unknown == ["evaluate: processor"]


def test_what_was_compared_can_be_read() -> None:
    found = Verification(record(synthetic(), 0.5), "evaluate")
    found.add("same score", True, "0.5")
    assert found.exact and found.holds and found.verdict == "holds, bit for bit"
    found.differences.append("evaluate: threads 1, now 2")
    found.unknown.append("evaluate: compiler")
    found.notes.append("evaluate: commit a, now b")
    found.unchecked["set"] = "its folder is gone"
    found.add("same bits", False, "sha256 12")
    assert found.to_text().splitlines() == [
        f"{found.record.id}, from evaluate",
        "differs       evaluate: threads 1, now 2",
        "unknown       evaluate: compiler",
        "note          evaluate: commit a, now b",
        "not checked   set: its folder is gone",
        "same score: yes (0.5)",
        "same bits: no, and need not (sha256 12)",
        "verdict       holds, within its interval",
    ]
    found.add("within the interval", False, "0.4", always=True)
    assert not found.holds and found.failed == ["within the interval"]
    told = found.to_text().splitlines()
    assert told[-2:] == [
        "within the interval: NO (0.4)",
        "verdict       does not hold: within the interval",
    ]
    assert found.to_json() == {
        "record": found.record.id,
        "from": "evaluate",
        "holds": False,
        "exact": False,
        "verdict": "does not hold: within the interval",
        "differences": ["evaluate: threads 1, now 2"],
        "unknown": ["evaluate: compiler"],
        "notes": ["evaluate: commit a, now b"],
        "chain": False,
        "unchecked": {"set": "its folder is gone"},
        "checks": [
            {"what": "same score", "met": True, "needed": True, "detail": "0.5"},
            {"what": "same bits", "met": False, "needed": False, "detail": "sha256 12"},
            {"what": "within the interval", "met": False, "needed": True, "detail": "0.4"},
        ],
    }
    assert Verification(found.record, "record").verdict == "has no chain"


def test_of_many_differences_five_are_told() -> None:
    found = Verification(record(synthetic(), 0.5), "evaluate")
    found.add_equal("same values", iter([]), "all of them")
    found.add_equal("same values", (f"value {number}" for number in range(5)), "all of them")
    found.add_equal("same values", (f"value {number}" for number in range(7)), "all of them")
    assert [(check.met, check.detail) for check in found.checks] == [
        (True, "all of them"),
        (False, "value 0; value 1; value 2; value 3; value 4"),
        (False, "value 0; value 1; value 2; value 3; value 4; and 2 more"),
    ]


def test_a_repetition_computes_with_the_recorded_threads() -> None:
    threads = torch.get_num_threads()
    with as_recorded({"threads": threads + 1, "deterministic": True}):
        assert torch.get_num_threads() == threads + 1
        assert torch.are_deterministic_algorithms_enabled()
    with as_recorded(None):
        assert torch.get_num_threads() == threads
        assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("stage", "protocol", "taken"),
    [
        ("evaluate", "fixed-v1", "_set_again"),
        ("generate", "fixed-v1", "_find_run"),
        ("evaluate", "stream-v1", "_find_run"),
        ("train", "fixed-v1", "_train_again"),
        ("train", "stream-v1", "_train_again"),
    ],
)
def test_a_repetition_begins_at_its_stage(
    stage: Any, protocol: str, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Begun(Exception):
        pass

    for name in ("_set_again", "_find_run", "_train_again"):

        def begin(*_: object, name: str = name) -> None:
            raise Begun(name)

        monkeypatch.setattr(repeat, name, begin)
    evaluator: Any = SimpleNamespace(
        protocol=PROTOCOLS[protocol], train=SimpleNamespace(classes=range(10)), workspace=None
    )
    with pytest.raises(Begun, match=taken):
        repeat.make_again(record(synthetic(), 0.5), stage, evaluator, Workspace())


def test_the_log_of_a_run_that_went_on_is_compared_up_to_the_records_end() -> None:
    log: list[dict[str, Any]] = [{"images": 10 * (tick + 1), "loss": 0.5} for tick in range(4)]
    old = replace(synthetic(), training_log=log[:2])
    later = replace(synthetic(), training_log=log)
    assert _comparable(later, old, "training_log") == log[:2]
    assert _comparable(later, replace(old, training_log=None), "training_log") == log
    assert _comparable(replace(old, training_log=None), old, "training_log") is None
    assert _comparable(old, old, "count") == old.count


def test_numbers_agree_to_nine_places() -> None:
    assert _equal(0.1 + 0.2, 0.3)
    assert _equal(math.nan, math.nan)
    assert _equal(1e-13, 0.0)
    assert not _equal(1.0, 1.0 + 1e-8)
    assert not _equal(1.0, math.nan)
    assert not _equal(math.nan, 1.0)
    assert _equal("a", "a") and not _equal("a", "b") and not _equal(1, 2)


def described(stage: Any, old: Entry, new: Entry, weights: Path | None = None) -> bool:
    """Does a repetition with this entry say what the record with the old one says?"""
    found = Verification(record(old, 0.5), stage)
    evaluator: Any = SimpleNamespace(protocol=PROTOCOLS["fixed-v1"], real=REAL)
    compare_descriptions(found, Again(new, None, weights), evaluator)  # type: ignore[arg-type]
    (check,) = found.checks
    assert check.needed
    return check.met


def test_what_decides_a_row_must_be_the_same(drawn: ImageSet) -> None:
    log: list[dict[str, Any]] = [{"images": 16}]
    config = config_of(tiny("tiny", True), drawn).to_json()
    old = replace(synthetic(), run="runs/a", folder="sets/a", training_log=log, config=config)
    assert described("evaluate", old, old)
    assert described("evaluate", old, replace(old, sha256="2", folder="b", manifest="m"))
    for change in ({"name": "b"}, {"labels": "random"}, {"count": 1}, {"images_shown": 1}):
        assert not described("evaluate", old, replace(old, **change))
    # A set that was made now is of another folder of runs.
    elsewhere = replace(old, run="runs/b")
    assert not described("evaluate", old, elsewhere)
    assert described("generate", old, elsewhere, Path("weights"))
    # Older records lack copies of the run's files; where they are there, they must agree.
    assert described("evaluate", replace(old, training_log=None, config=None), old)
    assert not described("evaluate", old, replace(old, training_log=[{"images": 8}]))
    assert not described("evaluate", old, replace(old, config=None))
    older = {name: value for name, value in config.items() if name != "select"}
    assert described("evaluate", replace(old, config=older), old)
    # Of a run that is trained anew, bits are compared elsewhere.
    again = replace(old, checkpoint="c", training_log=[{"images": 8}])
    assert described("train", old, again, Path("weights"))
    assert not described("generate", old, again, Path("weights"))
    shorter = replace(again, images_shown=1)
    assert not described("train", old, shorter, Path("weights"))
    best = replace(old, chosen="best")
    assert described("train", best, replace(shorter, chosen="best"), Path("weights"))
    assert not described("generate", best, replace(best, images_shown=1), Path("weights"))


def test_a_record_is_found_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    for name in ("20260101-a", "20260101-b", "20260102-c"):
        (tmp_path / "records" / f"{name}.json").touch()
    assert find_record_file(tmp_path, "20260102").stem == "20260102-c"
    assert find_record_file(tmp_path, "there/is.json") == Path("there/is.json")
    for name, told in (
        ("20260101", "20260101: begins 2 ids; write more of one in"),
        ("2027", "2027: no such record in"),
        ("", "no such record in"),
    ):
        with pytest.raises(UsageError, match=told):
            find_record_file(tmp_path, name)


def test_scores_must_follow_from_their_table() -> None:
    table = np.array([[3, 1], [0, 1]])  # one image of the second class
    score = SeedScore(0, 0.8, 0.875, [0.75, 1.0], table.tolist(), 0.1, 1.0)
    assert _follows(score, table)
    for change in ({"accuracy": 0.9}, {"balanced_accuracy": 0.9}, {"recalls": [0.75, 0.5]}):
        assert not _follows(replace(score, **change), table)
    for wrong in ([[3, 1], [0, 0]], [[4, -1], [0, 1]]):  # an absent class, less than nothing
        assert not _follows(score, np.array(wrong))


def test_predictions_must_agree_with_the_scores() -> None:
    """Four images of a first class, one of which is taken for the second, and one of that."""
    score = SeedScore(0, 0.8, 0.875, [0.75, 1.0], [[3, 1], [0, 1]], 0.1, 1.0)
    made = replace(record(synthetic(), 0.8), scores=[score])
    made = replace(made, real=replace(made.real, test_size=5))
    predictions = np.array([[0, 0, 0, 1, 1]], np.uint8)
    right = np.array([[True, True, True, False, True]])
    arrays = {"predictions": predictions, "correct": right}
    assert _agree(made, arrays)
    assert _agree(made, {"predictions": predictions})
    for change in (
        {"predictions": None},
        {"predictions": predictions[:, :4]},
        {"predictions": predictions.astype(np.float32)},
        {"predictions": predictions[:, [0, 0, 0, 0, 4]]},  # five and none
        {"predictions": np.array([[0, 0, 0, 1, 2]], np.uint8)},  # a class that is not there
        {"correct": right[:, :4]},
        {"correct": right.astype(np.uint8)},
        {"correct": right[:, [0, 1, 3, 2, 4]]},  # one of the first class is wrong
    ):
        changed = {name: each for name, each in {**arrays, **change}.items() if each is not None}
        assert not _agree(made, changed), change


@pytest.mark.parametrize(
    ("asked", "recorded", "taken"),
    [(None, "folder", "folder"), ("mnist", "folder", "mnist"), (None, None, "svhn")],
)
def test_the_real_splits_are_those_of_the_record(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, recorded: str | None, taken: str
) -> None:
    """Unless --dataset names others. Older records do not say, and are of SVHN."""
    keys: list[str] = []

    class Made:
        real = record(CEILING, 0.5).real

    monkeypatch.setattr(repeat, "make_evaluator", lambda _, key, __: keys.append(key) or Made())
    made = replace(record(CEILING, 0.5), dataset_key=recorded)
    evaluator_again(made, Workspace(), asked, "cpu")
    assert keys == [taken]


@pytest.mark.parametrize(("count", "repeated"), [(3, 3), (3, 1), (2, 2)])
def test_a_repetition_lies_within_in_95_percent_of_all_cases(count: int, repeated: int) -> None:
    random = np.random.default_rng(0)
    units = 0.7 + 0.02 * random.standard_normal((4000, count))
    again = (0.7 + 0.02 * random.standard_normal((4000, repeated))).mean(1)
    met = [within(list(row), mean, repeated)[1] for row, mean in zip(units, again, strict=True)]
    assert 0.94 < np.mean(met) < 0.96
    _, same, detail = within([0.7, 0.7], 0.7, 2)
    assert same
    assert "70.00 % in 70.00 to 70.00 %, a repetition's interval" in detail


def test_elsewhere_a_flag_cannot_be_taken_away(synth: Synth, elsewhere: Path) -> None:
    """Nor made up. The figures behind it may differ."""

    def turn(value: dict[str, Any]) -> None:
        copies = value["metrics"]["memorisation"]["pixels"]
        copies["flagged"] = not copies["flagged"]

    tamper(elsewhere, turn)
    one_line(synth("verify", elsewhere), 1, "does not hold: same flag")


def test_elsewhere_one_seed_tells_nothing(synth: Synth, elsewhere: Path) -> None:
    tamper(elsewhere, lambda value: value.update(scores=value["scores"][:1]))
    one_line(synth("verify", elsewhere), 1, "only one classifier seed", "torch 1.0")


def test_a_generator_trained_elsewhere_is_held_against_the_other_runs(
    synth: Synth, elsewhere: Path
) -> None:
    ran = synth("verify", elsewhere, "--from", "train")
    one_line(ran, 1, "only one run of this entry", "torch 1.0")
    assert synth("train", "--recipe", "tiny", "--seed", "1", *TRAIN).code == 0
    assert synth("generate", "--per-class", "20").code == 0
    assert synth("evaluate", *SCORE, "--no-references").code == 0
    ran = synth("verify", elsewhere, "--from", "train")
    assert ran.code == 0, ran.err
    assert "verdict       holds, within its interval" in ran.out


def test_elsewhere_a_mean_out_of_the_interval_fails(synth: Synth, elsewhere: Path) -> None:
    """Accuracy and predictions tampered with alike: only the repetition can tell."""
    kept = elsewhere.parent.parent / "predictions" / f"{elsewhere.stem}.npz"
    truth = np.tile(np.arange(80) % 10, (2, 1)).astype(np.uint8)
    np.savez_compressed(kept, predictions=truth, correct=truth == truth)

    def all_right(value: dict[str, Any]) -> None:
        for score in value["scores"]:
            score.update(accuracy=1.0, balanced_accuracy=1.0, recalls=[1.0] * 10)
            score["confusion"] = (8 * np.eye(10, dtype=int)).tolist()

    tamper(elsewhere, all_right)
    ran = synth("verify", elsewhere)
    one_line(ran, 1, "does not hold: within")
    assert "same predictions: no, and need not" in ran.out


# What cannot be verified is named


def test_other_splits_and_unknown_records(synth: Synth, evaluated: Path, mats: Path) -> None:
    path = record_of(evaluated)
    one_line(synth("verify", "nonesuch"), 2, "nonesuch", "no such record")
    one_line(synth("verify", path.stem[:4]), 2, "begins 6 ids")
    one_line(synth("verify", path, "--from", "dust"), 2, "--from dust", "evaluate or generate")
    shutil.copy(mats / "train_32x32.mat", mats / "test_32x32.mat")
    one_line(synth("verify", path), 1, "--data-root", "test split", "small-svhn")


def test_records_of_failures_and_of_older_versions(synth: Synth, evaluated: Path) -> None:
    path = record_of(evaluated)
    tamper(path, lambda value: value["entry"].update(config=None, training_environment=None))
    one_line(synth("verify", path, "--from", "train"), 1, "--from generate")
    shutil.rmtree(evaluated / "runs")
    one_line(synth("verify", path, "--from", "generate"), 1, "no checkpoint", "--from train")
    tamper(path, lambda value: value["protocol"].update(hash="0" * 12))
    one_line(synth("verify", path), 1, "tiny-v1 is another protocol now")
    tamper(path, lambda value: value.update(error="it broke"))
    one_line(synth("verify", path), 1, "record of a failure")


def test_the_number_of_threads_is_the_records(
    synth: Synth, evaluated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[int, int | None]] = []
    evaluate = Evaluator.evaluate

    def look(*arguments: Any) -> Any:
        used.append((torch.get_num_threads(), blas_threads()))
        return evaluate(*arguments)

    monkeypatch.setattr(Evaluator, "evaluate", look)
    path, before = record_of(evaluated), (torch.get_num_threads(), blas_threads())
    other = 2 if before[1] == 1 else 1
    tamper(path, lambda value: value["environment"].update(threads=before[0] + 1))
    tamper(path, lambda value: value["environment"].update(blas_threads=other))
    synth("verify", path)
    assert used == [(before[0] + 1, other)]
    assert (torch.get_num_threads(), blas_threads()) == before


# Determinism


@pytest.fixture
def undo_determinism() -> Iterator[None]:
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


@pytest.mark.usefixtures("undo_determinism")
def test_deterministic_is_recorded_and_changes_nothing_on_a_cpu(
    synth: Synth, evaluated: Path
) -> None:
    plain = record_of(evaluated)
    commands = (
        ("train", "--recipe", "tiny", *TRAIN),
        ("generate", "--per-class", "20"),
        ("evaluate", *SCORE, "--no-references"),
    )
    for command in commands:
        ran = synth(*command, "--deterministic")
        assert ran.code == 0, ran.err
        assert torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(False)
    newest = max((evaluated / "results" / "records").iterdir())
    before, after = read_record(plain), read_record(newest)
    assert before.entry.checkpoint == after.entry.checkpoint
    assert before.entry.sha256 == after.entry.sha256
    assert before.accuracies == after.accuracies
    environments = (
        after.environment,
        after.entry.training_environment or {},
        after.entry.generation_environment or {},
    )
    assert all(environment["deterministic"] is True for environment in environments)
    assert "deterministic" not in before.environment
    assert "holds, bit for bit" in synth("verify", newest, "--from", "train").out
    assert not torch.are_deterministic_algorithms_enabled()  # put back
