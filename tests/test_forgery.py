"""A forger changes one value of a record, or of a manifest, and `synth verify` must name it."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from eval import checks, selection
from eval.evaluator import Evaluator, Source, Workspace
from eval.protocols import PROTOCOLS
from eval.records import Entry, Record, predictions_path, read_record, read_records
from eval.verify import verify
from synth.base.errors import SynthError
from synth.base.files import read_arrays, read_json, sha256, write_json
from synth.data import load_test_images
from tests.conftest import ROOT, Ran, record_of, reseal, tamper
from tests.test_cli import one_line
from tests.test_selection import LENGTH, by_length

Synth = Callable[..., Ran]
Way = tuple[str | int, ...]
pytestmark = pytest.mark.usefixtures("tiny_names")


def leaves(value: Any, way: Way = ()) -> Iterator[tuple[Way, Any]]:
    """Every value in nested dicts and lists, with the way to it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in inner:
        if isinstance(each, dict | list) and each:
            yield from leaves(each, (*way, key))
        else:
            yield (*way, key), each


def other(value: Any) -> Any:
    """Another value of the same type, where there is a type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return 1.01 * value + 0.01
    return f"{value}x" if isinstance(value, str) else "x"


def forged(value: dict[str, Any], way: Way, leaf: Any) -> dict[str, Any]:
    changed = copy.deepcopy(value)
    at: Any = changed
    for key in way[:-1]:
        at = at[key]
    at[way[-1]] = leaf
    return changed


def remembering(
    evaluate: Callable[[Evaluator, Entry, Source], Record],
) -> Callable[[Evaluator, Entry, Source], Record]:
    """`Evaluator.evaluate` that computes a repetition once: it depends on these four alone."""
    known: dict[Any, tuple[Record, bytes]] = {}

    def look(self: Evaluator, entry: Entry, source: Source) -> Record:
        assert not callable(source)
        key = self.precision, self.seeds, self.metrics, source.fingerprint
        if key not in known:
            made = evaluate(self, entry, source)
            known[key] = made, predictions_path(self.workspace.results, made).read_bytes()
        record, predictions = known[key]
        path = predictions_path(self.workspace.results, record)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(predictions)
        return record

    return look


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Evaluator, "evaluate", remembering(Evaluator.evaluate))


def named(path: Path, workspace: Workspace) -> list[str]:
    """What `verify --from evaluate` has against the record."""
    try:
        found = verify(path, "evaluate", workspace)
    except SynthError as error:
        return [str(error)]
    return [f"{check.what}: {check.detail}" for check in found.checks if not check.met]


# What a repetition of the evaluation cannot tell: places, times, and the machine that it ran on.
# The chain binds these (`--from record`).
UNTOLD = ("seconds", "environment", "folder", "schema", "chain", "manifest")


def test_no_value_that_decides_a_row_can_be_forged(
    evaluated: Path, mats: Path, remembered: None
) -> None:
    """Recomputation alone: the forger made the chain anew."""
    path, workspace = record_of(evaluated), Workspace(mats)
    value = read_json(path)
    assert named(path, workspace) == []
    told = 0
    for way, leaf in leaves(value):
        if way[0] in UNTOLD or way[-1] in UNTOLD or way[:2] == ("metrics", "seconds"):
            continue
        write_json(path, forged(value, way, other(leaf)))
        reseal(path)
        found = named(path, workspace)
        assert found, f"{way} was {leaf!r} and is {other(leaf)!r}, and the record holds"
        told += any(str(way[-1]) in each for each in found)
    assert told > 200


# What a manifest says besides, and no table shows. The chain binds it.
BESIDE = {"format", "classes", "dataset", "source", "candidates"}
BESIDE |= {"commit", "command", "schema"}


def test_no_value_of_a_manifest_that_decides_a_row_can_be_forged(
    evaluated: Path, mats: Path, remembered: None
) -> None:
    """Beside an older record, which has no chain."""
    path, workspace = record_of(evaluated), Workspace(mats)
    tamper(path, lambda value: value.update(chain=None))
    tamper(path, lambda value: value["entry"].update(manifest=None))
    (manifest,) = (evaluated / "datasets").glob("*/manifest.json")
    value = read_json(manifest)
    assert named(path, workspace) == []
    for way, leaf in leaves(value):
        if way[0] not in BESIDE:
            write_json(manifest, forged(value, way, other(leaf)))
            found = named(path, workspace)
            assert found, f"{way} was {leaf!r} and is {other(leaf)!r}, and the record holds"


def test_random_labels_cannot_pass_for_a_new_recipe(synth: Synth, evaluated: Path) -> None:
    """The attack of issue 15, A.1."""
    run = synth("train", "--recipe", "tiny-uncond", "--images", "64", "--precision", "fp32")
    folder = synth("generate", "--per-class", "4", "--label-with", "random").out.strip()
    assert run.code == 0
    scored = ("--protocol", "tiny-v1", "--precision", "fp32", "--no-baselines")
    assert synth("evaluate", folder, *scored).code == 0
    newest = max((evaluated / "results" / "records").iterdir())
    assert read_record(newest).entry.labels == "random"
    fame = {"labels": "conditional", "name": "super-gan", "images_shown": 5}
    tamper(newest, lambda value: value["entry"].update(fame))
    one_line(synth("verify", newest), 1, "does not hold: same description")
    told = " ".join(synth("verify", newest).out.split())
    assert "labels is 'conditional', not 'random'" in told


@pytest.mark.parametrize("stage", ["evaluate", "generate", "train"])
def test_a_configuration_cannot_be_dressed_up(synth: Synth, evaluated: Path, stage: str) -> None:
    """Rows are told apart by it, and the recipe's length comes from it."""
    path = record_of(evaluated)
    tamper(path, lambda value: value["entry"]["config"]["recipe"].update(name="super-gan"))
    ran = synth("verify", path, "--from", stage)
    one_line(ran, 1, "does not hold", "same description")
    what = "name is 'tiny', not 'super-gan'" if stage == "train" else "config.recipe.name"
    assert what in " ".join(ran.out.split())


@pytest.mark.parametrize("stage", ["evaluate", "generate", "train"])
def test_a_training_log_cannot_be_made_up(synth: Synth, evaluated: Path, stage: str) -> None:
    path = record_of(evaluated)
    tamper(path, lambda value: value["entry"]["training_log"][0].update(d_loss=0.5))
    ran = synth("verify", path, "--from", stage)
    one_line(ran, 1, "same training log" if stage == "train" else "same description")
    assert "training_log.0.d_loss is 0.5, not" in " ".join(ran.out.split())


@pytest.fixture
def selected(synth: Synth, mats: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run whose second checkpoint of three is the best."""
    monkeypatch.setattr(selection, "checkpoint_scorer", lambda *_: by_length)
    monkeypatch.setenv("SYNTH_DATA", str(mats))
    ran = synth("train", "--recipe", "tiny", "--select", "cas", *LENGTH)
    assert ran.code == 0, ran.err
    return Path(ran.out.strip())


def score_checkpoint(synth: Synth, checkpoint: str) -> Path:
    """The record of a set from this checkpoint of the newest run."""
    scored = ("--protocol", "tiny-v1", "--precision", "fp32", "--no-baselines", "--metrics", "cas")
    folder = synth("generate", "--per-class", "3", "--checkpoint", checkpoint).out.strip()
    ran = synth("evaluate", folder, *scored)
    assert ran.code == 0, ran.err
    return max(Path("results/records").iterdir())


@pytest.mark.parametrize("checkpoint", ["best", "last", "0000001k"])
def test_the_checkpoint_that_the_record_says_is_trained_again(
    synth: Synth, selected: Path, checkpoint: str
) -> None:
    path = score_checkpoint(synth, checkpoint)
    shutil.rmtree(selected)
    ran = synth("verify", path, "--from", "train")
    assert ran.code == 0, ran.err
    assert "holds, bit for bit" in ran.out


@pytest.mark.parametrize("checkpoint", ["last", "0000001k"])
def test_another_checkpoint_cannot_pass_for_the_best(
    synth: Synth, selected: Path, checkpoint: str
) -> None:
    """The attack of issue 15, A.2: record, manifest and log of the run tell the same lie."""
    path = score_checkpoint(synth, checkpoint)
    (manifest,) = Path("datasets").glob("*/manifest.json")
    shown = read_record(path).entry.images_shown
    log = [json.loads(line) for line in (selected / "log.jsonl").read_text().splitlines()]
    for line in log:
        line["validation_accuracy"] = float(line["images"] == shown)
    (selected / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    lie = {"chosen": "best", "training_log": log}
    tamper(manifest, lambda value: value.update(lie))
    name = read_record(path).entry.name.replace(checkpoint, "best")
    lie["manifest"] = sha256(manifest)
    tamper(path, lambda value: value["entry"].update(lie, name=name))
    for stage in ("evaluate", "generate"):  # what these start from lies, too
        assert synth("verify", path, "--from", stage).code == 0
    ran = synth("verify", path, "--from", "train")
    failed = "same checkpoint, same data set, same training log, same predictions, same scores"
    one_line(ran, 1, f"does not hold: {failed}")


def test_an_unfinished_run_is_not_trained_to_its_end(synth: Synth, selected: Path) -> None:
    path = score_checkpoint(synth, "last")
    shutil.rmtree(selected)
    tamper(path, lambda value: value["entry"]["config"].update(images=4000))
    refused = "had shown 3,000 of 4,000 images", "--from generate"
    one_line(synth("verify", path, "--from", "train"), 1, *refused)


def test_of_two_sets_with_the_same_images_the_records_own_is_taken(
    synth: Synth, evaluated: Path
) -> None:
    path, (folder,) = record_of(evaluated), (evaluated / "datasets").glob("0*")
    moved = folder.with_name("00007-moved")
    shutil.copytree(folder, moved)
    tamper(folder / "manifest.json", lambda value: value.update(chosen="best"))
    tamper(path, lambda value: value.update(chain=None))  # which would name the manifest
    ran = synth("verify", path)
    assert ran.code == 0, ran.err
    shutil.rmtree(moved)
    one_line(synth("verify", path), 1, "does not hold: same description")


def test_a_part_cannot_pass_for_all_of_svhn(synth: Synth, evaluated: Path) -> None:
    path = record_of(evaluated)
    tamper(path, lambda value: value["real"].update(name="svhn"))
    one_line(synth("verify", path), 1, "--data-root", "named small-svhn here", "svhn in the record")


def test_committed_records_agree_with_their_predictions(svhn_part: Path) -> None:
    """The check is as strict on records of older versions."""
    test = load_test_images("svhn", svhn_part)
    truth = test.require_labels().numpy()
    records = read_records(ROOT / "results")
    assert len(records) >= 49
    for record in records:
        arrays = read_arrays(predictions_path(ROOT / "results", record))
        for score, row in zip(record.scores, arrays["predictions"], strict=True):
            table = confusion_matrix(truth, row, labels=range(10))
            assert score.confusion == table.tolist()
            assert checks._follows(score, table), record.id
        assert np.array_equal(arrays["correct"], arrays["predictions"] == truth)
        assert record.protocol == PROTOCOLS.find(record.protocol["name"]).to_json()
