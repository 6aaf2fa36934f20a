"""The chain of hashes: a change of anything that a record rests on shows, with nothing computed."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from eval import chain
from eval.checks import Verification
from eval.evaluator import Evaluator, Workspace
from eval.verified import depths
from eval.verify import verify
from synth.base.errors import SynthError
from synth.base.files import read_arrays, read_json, sha256, write_json
from synth.checkpoints import load_tensors, save_tensors
from tests.conftest import ROOT, Ran, record_of, tamper
from tests.test_cli import one_line
from tests.test_forgery import forged, leaves, other

Synth = Callable[..., Ran]
pytestmark = pytest.mark.usefixtures("tiny_names")
NOWHERE = Workspace(None, Path("/nowhere"), Path("/nowhere"), Path("/nowhere"))


def checked(path: Path, root: Path = Path()) -> Verification:
    return verify(
        path, "record", Workspace(None, root / "runs", root / "datasets", root / "results")
    )


def named(path: Path) -> list[str]:
    """What `--from record` has against it."""
    try:
        return checked(path).failed
    except SynthError as error:  # no record at all
        return [str(error)]


@pytest.fixture
def whole(evaluated: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A record with all that it rests on. Nothing may be computed."""

    def compute(*_: object) -> None:
        raise AssertionError("computed")

    monkeypatch.setattr(Evaluator, "evaluate", compute)
    return record_of(evaluated)


def test_all_links_are_there_and_hold_in_a_second(synth: Synth, whole: Path) -> None:
    links = read_json(whole)["chain"]
    assert list(links) == [
        *("code", "config", "log", "checkpoint", "set", "manifest", "predictions", "record")
    ]
    assert all(len(str(link)) == 64 for link in links.values())
    start = time.process_time()
    ran = synth("verify", whole, "--from", "record", "--json")
    assert time.process_time() - start < 1
    told = json.loads(ran.out)
    assert ran.code == 0
    assert told["verdict"] == "holds, by its chain"
    assert told["unchecked"] == {}
    assert {check["what"] for check in told["checks"]} == {
        *("same id", "scores agree with predictions", *(f"chain: {link}" for link in links))
    }


# Everything that a forger may change


def test_a_change_of_any_value_of_a_record_shows(whole: Path) -> None:
    value = read_json(whole)
    for way, leaf in leaves(value):
        write_json(whole, forged(value, way, other(leaf)))
        found = named(whole)
        assert "chain: record" in found or "is no record of this version" in found[0], way


def test_a_change_of_any_value_of_a_manifest_shows(whole: Path) -> None:
    (manifest,) = Path("datasets").glob("*/manifest.json")
    value = read_json(manifest)
    for way, leaf in leaves(value):
        write_json(manifest, forged(value, way, other(leaf)))
        assert named(whole) == ["chain: manifest"], way


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_images(folder: Path) -> None:
    arrays = read_arrays(folder / "images.npz")
    arrays["images"][-1, -1, -1, -1] ^= 1
    np.savez(folder / "images.npz", **arrays)  # type: ignore[arg-type]


def change_labels(folder: Path) -> None:
    arrays = read_arrays(folder / "images.npz")
    arrays["labels"][0] = 1
    np.savez(folder / "images.npz", **arrays)  # type: ignore[arg-type]


def change_weights(folder: Path) -> None:
    tensors, metadata = load_tensors(folder / "generator.safetensors")
    next(t for t in tensors.values() if t.dtype == torch.float32).view(-1)[0] += 1e-6
    save_tensors(folder / "generator.safetensors", tensors, metadata)


def change_log(folder: Path) -> None:
    text = (folder / "log.jsonl").read_text()
    (folder / "log.jsonl").write_text(text.replace('"d_loss": ', '"d_loss": 1'))


CHANGES: list[tuple[str, str, Callable[[Path], None]]] = [
    ("datasets", "set", change_images),
    ("datasets", "set", change_labels),
    ("datasets", "set", lambda folder: (folder / "images.npz").write_bytes(b"no archive")),
    ("runs", "checkpoint", change_weights),
    ("runs", "checkpoint", lambda folder: flip(folder / "generator.safetensors")),
    ("runs", "log", change_log),
    ("runs", "log", lambda folder: (folder / "log.jsonl").write_text('{"broken')),
    ("runs", "config", lambda folder: tamper(folder / "config.json", lambda v: v.update(seed=1))),
    ("runs", "config", lambda folder: (folder / "config.json").write_text("{}")),
    ("results/predictions", "predictions", flip),
]


@pytest.mark.parametrize(("place", "link", "change"), CHANGES)
def test_a_change_of_any_file_shows(
    whole: Path, place: str, link: str, change: Callable[[Path], None]
) -> None:
    (found,) = Path(place).glob("0*" if place != "results/predictions" else f"{whole.stem}.npz")
    if link == "predictions":
        arrays = read_arrays(found)
        np.savez(found, **arrays)  # type: ignore[arg-type]  # the same arrays in another file
        assert named(whole) == ["chain: predictions"]
        return
    change(found)
    assert named(whole) == [f"chain: {link}"]


# What is not there, or is something else


def test_what_is_not_at_hand_is_told(synth: Synth, whole: Path) -> None:
    for folder in ("runs", "datasets", "results/predictions"):
        shutil.rmtree(folder)
    found = checked(whole)
    assert found.holds
    missing = {"checkpoint", "log", "config", "set", "manifest", "predictions"}
    assert set(found.unchecked) == missing
    ran = synth("verify", whole, "--from", "record")
    assert ran.code == 0
    told = " ".join(ran.out.split())
    assert "not checked checkpoint: no runs/00000-small-svhn-tiny-cond-seed0" in told


def test_a_results_folder_can_be_moved_with_what_it_rests_on(whole: Path) -> None:
    for folder in ("runs", "datasets", "results"):
        shutil.move(folder, f"elsewhere/{folder}")
    moved = Path("elsewhere") / whole.relative_to(Path.cwd())
    assert checked(moved, Path("elsewhere")).unchecked == {}


def test_another_run_and_another_set_of_the_same_name_are_not_the_records(whole: Path) -> None:
    """They are no forgeries: somebody else ran the same commands."""
    (run,), (folder,) = Path("runs").glob("0*"), Path("datasets").glob("0*")
    change_weights(run)
    change_log(run)
    change_images(folder)
    tamper(folder / "manifest.json", lambda value: value.update(commit="other"))
    found = checked(whole)
    assert found.holds
    assert set(found.unchecked) == {"checkpoint", "log", "config", "set", "manifest"}


def test_a_run_that_went_on_is_no_forgery(whole: Path) -> None:
    (run,) = Path("runs").glob("0*")
    change_weights(run)
    line = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    with (run / "log.jsonl").open("a") as log:
        log.write(json.dumps({**line, "images": line["images"] + 64}) + "\n")
    found = checked(whole)
    assert found.holds
    assert set(found.unchecked) == {"checkpoint"}


def test_a_repeated_run_has_the_same_log(whole: Path) -> None:
    """It is as fast as the machine is free."""
    (run,) = Path("runs").glob("0*")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    faster = [{**line, "images_per_second": 1e9, "memory_mib": 1} for line in lines]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in faster))
    assert named(whole) == []


def test_another_version_of_the_code_is_told(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "code_hash", lambda: "other")
    found = checked(whole)
    assert found.holds
    assert found.unchecked == {"code": "this is another version of synth"}


# What a chain cannot tell


def test_a_forger_who_makes_the_chain_anew_is_caught_by_a_repetition_alone(
    synth: Synth, evaluated: Path
) -> None:
    path = record_of(evaluated)
    tamper(path, lambda value: value["metrics"].update(gan_test=0.999))
    assert synth("verify", path, "--from", "record").code == 0
    one_line(synth("verify", path, "--from", "evaluate"), 1, "does not hold: same metrics")


def test_a_file_is_compared_with_the_hash_in_the_chain(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    for link, state in (("0" * 64, "changed"), ("f" * 64, "changed"), (sha256(path), "same")):
        (found,) = chain._check_file("log", {"log": link}, path)
        assert (found.name, found.state) == ("log", state)
    (found,) = chain._check_file("log", {"log": "0" * 64}, tmp_path / "none")
    assert found.state == "not at hand"
    assert list(chain._check_file("log", {"log": None}, path)) == []


def test_weights_are_those_of_as_many_images_as_the_linked_ones(tmp_path: Path) -> None:
    """Damaged ones may be of any number of images."""
    (tmp_path / "checkpoints").mkdir()
    paths = {}
    for name, images in (("a", 10), ("b", 20), ("c", 20)):
        paths[name] = tmp_path / "checkpoints" / f"{name}.safetensors"
        tensors = {"x": torch.full((1,), float(ord(name)))}
        save_tensors(paths[name], tensors, {"images": images})
    paths["damaged"] = tmp_path / "generator.safetensors"
    paths["damaged"].write_bytes(b"nothing")
    hashes = {name: sha256(path) for name, path in paths.items()}
    assert chain._weights_at(tmp_path, hashes["b"]) == {
        hashes[name] for name in ("b", "c", "damaged")
    }
    assert chain._weights_at(tmp_path, hashes["a"]) == {hashes["a"], hashes["damaged"]}
    for unknown in ("0" * 64, None):
        assert chain._weights_at(tmp_path, unknown) == {*hashes.values()}


def test_a_record_without_a_chain_says_so(synth: Synth, whole: Path) -> None:
    """Older ones have none; one that lost its own is told in the same words."""
    value = read_json(whole)
    for without in ({**value, "chain": None}, {k: v for k, v in value.items() if k != "chain"}):
        write_json(whole, without)
        one_line(synth("verify", whole, "--from", "record"), 1, "has no chain", "--from evaluate")
    assert depths(Path("results")) == {}
    tamper(whole, lambda value: value["scores"][0].update(accuracy=0.99))
    failed = "does not hold: scores agree with predictions"
    one_line(synth("verify", whole, "--from", "record"), 1, failed)
    assert depths(Path("results")) == {whole.stem: "fails"}


# A folder of results


def test_a_folder_is_verified_in_one_table(
    synth: Synth, evaluated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_kind = {kind: record_of(evaluated, kind) for kind in ("synthetic", "real", "pca-gaussian")}
    ran = synth("verify", "--all", "results/", "--wide")
    assert ran.code == 0, ran.err
    lines = {line.split()[0]: line for line in ran.out.splitlines()}
    assert lines[by_kind["synthetic"].stem].endswith("record         holds, by its chain")
    assert "not checked: set" in lines[by_kind["real"].stem]  # it is not kept
    assert ran.out.splitlines()[-1] == "6 records: 6 from record"
    synth("leaderboard")
    assert set(pd.read_csv("results/leaderboard.csv")["verified"]) == {"record"}

    tamper(by_kind["real"], lambda value: value.update(chain=None))
    tamper(by_kind["pca-gaussian"], lambda value: value["metrics"].update(gan_test=0.5))
    shutil.rmtree("datasets")
    ran = synth("verify", "--all", "--from", "generate", "--json")
    one_line(ran, 1, "results: 1 of its records do not hold")
    told = {outcome["record"]: outcome for outcome in json.loads(ran.out)}
    expected = {"synthetic": "generate", "real": "evaluate", "pca-gaussian": "does not hold"}
    assert {kind: told[path.stem]["depth"] for kind, path in by_kind.items()} == expected
    synth("leaderboard")
    shown = pd.read_csv("results/leaderboard.csv").set_index("entry")["verified"].to_dict()
    assert (shown["tiny"], shown["real"]) == ("generate", "evaluate")
    assert shown["PCA + Gaussian per class"] == "fails"


def test_what_cannot_be_repeated_or_has_no_chain_is_told(synth: Synth, evaluated: Path) -> None:
    path, real = record_of(evaluated), record_of(evaluated, "real")
    for each in (evaluated / "results" / "records").iterdir():
        if each not in (path, real):
            each.unlink()
    shutil.rmtree("datasets")
    tamper(real, lambda value: value.update(chain=None))
    ran = synth("verify", "--all")
    assert ran.code == 0
    assert ran.out.splitlines()[-1] == "2 records: 1 from record, 1 no chain"
    ran = synth("verify", "--all", "--from", "evaluate")
    assert ran.code == 0
    assert "not from evaluate: datasets/" in " ".join(ran.out.split())
    assert ran.out.splitlines()[-1] == "2 records: 1 from record, 1 from evaluate"
    path.write_text("{}")
    one_line(synth("verify", "--all"), 1, "1 of its records do not hold")
    one_line(synth("verify"), 2, "give the path or the id of a record, or --all")
    shutil.rmtree("results/records")
    one_line(synth("verify", "--all"), 1, "holds no records")


def test_committed_records_agree_with_themselves() -> None:
    """Those of before 25 November 2026 have no chain."""
    for path in sorted((ROOT / "results" / "records").glob("*.json")):
        found = verify(path, "record", NOWHERE)
        assert found.holds, found.to_text()
        chained = path.name > "20261125"
        assert found.verdict == ("holds, by its chain" if chained else "has no chain")


# Any change at all

COMMITTED = read_json(max((ROOT / "results" / "records").glob("*.json")))
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(list(leaves(COMMITTED))), ANY)
def test_no_other_value_has_the_same_chain(leaf: tuple[Any, Any], value: Any) -> None:
    way, was = leaf
    assume(json.dumps(value) != json.dumps(was))
    sealed = {**COMMITTED, "chain": chain.seal({**COMMITTED, "chain": None}, Path("none"))}
    assert chain.closes(sealed)
    assert not chain.closes(forged(sealed, way, value))
