"""The chain of hashes in a record: each thing that it rests on, by its sha256.

    code         the source files of synth and eval, as they computed the evaluation
    config       the configuration of the generator's run
    log          the training log of that run, without its speed and memory
    checkpoint   the weights that the images were sampled from
    set          the images, then the labels: of a synthetic set, or of a baseline
    manifest     the set's manifest.json
    predictions  the file of predictions beside the record
    record       all values of the record, and all links above

The order is that of the work: the code trains a run by its configuration, the run leaves a log and
a checkpoint, these a set with its manifest, the set predictions, and all of them the record. A link
is None where the evaluation rests on nothing of the kind. Configuration, log and record are hashed
as JSON with sorted keys, files as their bytes. The last link closes the chain: it covers every
value in the record and every other link, so nothing beneath it can change alone. The splits of the
real data are in the record by their fingerprints.

`check` computes nothing. It compares the links with the record itself, and with the files that are
at hand: a set is at hand if a folder where it may stand has its images or its manifest, a run if
one has its checkpoint or its log. All of its files must then fit. A folder where nothing fits holds
something else, and the link is told as not checked.

What this proves: since the record was written, neither it nor a file at hand has changed by a fault
or by a hand that left the hashes alone. What it does not prove: nobody signs a record, so a forger
who writes all hashes anew makes a chain that holds. Only a repetition shows that the figures are
true (`synth verify --from evaluate`), that the images come from the generator (`generate`), and
that the generator comes from the real images (`train`). The code of plug-ins is not in the chain,
nor are the pictures in results/figures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from synth.base.errors import SynthError
from synth.base.files import sha256, sha256_arrays
from synth.checkpoints import read_count
from synth.environment import code_hash
from synth.foreign import renumber
from synth.formats import FORMATS
from synth.runs import open_run
from synth.synthetic_set import read_synthetic

if TYPE_CHECKING:
    from eval.evaluator import Workspace

Links = dict[str, str | None]
SPEEDS = ("images_per_second", "memory_mib")  # in a training log; no repetition has the same


@dataclass(frozen=True)
class Link:
    """One link, compared with what is at hand. A link of None has nothing to compare."""

    name: str
    state: Literal["same", "changed", "not at hand"]
    detail: str


def seal(value: dict[str, Any], predictions: Path) -> Links:
    """The chain for a record, given as its JSON value, with this file of predictions if it is
    there."""
    value = json.loads(json.dumps(value))  # as it will be read
    links = {
        **links_of(value),
        "predictions": sha256(predictions) if predictions.exists() else None,
    }
    return {**links, "record": _closing(value, links)}


def links_of(value: dict[str, Any]) -> Links:
    """The links that follow from a record's own values."""
    entry = value["entry"]
    config, log = entry.get("config"), entry.get("training_log")
    return {
        "code": value["environment"].get("code"),
        "config": None if config is None else _digest(config),
        "log": None if log is None else _digest(without_speeds(log)),
        "checkpoint": entry.get("checkpoint"),
        "set": entry.get("sha256"),
        "manifest": entry.get("manifest"),
    }


def check(value: dict[str, Any], predictions: Path, workspace: Workspace) -> list[Link]:
    """The chain of a record, given as its JSON value, against the record and the files at hand."""
    links: Links = value["chain"]
    found = [Link("record", "same" if closes(value) else "changed", "all values of the record")]
    found += _check_code(links)
    found += _check_run(links, value["entry"], workspace)
    found += _check_set(links, value["entry"], workspace)
    found += _check_file("predictions", links, predictions)
    return found


def closes(value: dict[str, Any]) -> bool:
    """Does a record fit its own chain?"""
    links: Links = value["chain"]
    own = {**links_of(value), "predictions": links.get("predictions")}
    return links == {**own, "record": _closing(value, own)}


def without_speeds(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A training log without what no repetition has alike."""
    return [{key: line[key] for key in line if key not in SPEEDS} for line in log]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _closing(value: dict[str, Any], links: Links) -> str:
    return _digest({**value, "chain": {name: links[name] for name in links if name != "record"}})


# What is at hand


def _check_code(links: Links) -> Iterator[Link]:
    if links.get("code") is not None:
        same = links["code"] == code_hash()
        detail = "this version of synth" if same else "this is another version of synth"
        yield Link("code", "same" if same else "not at hand", detail)


def _check_file(name: str, links: Links, path: Path) -> Iterator[Link]:
    if links.get(name) is not None:
        if path.exists():
            same = sha256(path) == links[name]
            yield Link(name, "same" if same else "changed", str(path))
        else:
            yield Link(name, "not at hand", f"{path} is not there")


def _check_run(links: Links, entry: dict[str, Any], workspace: Workspace) -> Iterator[Link]:
    expected = [name for name in ("checkpoint", "log", "config") if links.get(name) is not None]
    for folder in _places(entry.get("run"), workspace.runs):
        here, gone_on = _run_at(folder, entry, links.get("checkpoint"))
        if any(here[name] == {links[name]} for name in expected if name != "config"):
            for name in expected:
                if here[name] == {links[name]}:
                    yield Link(name, "same", str(folder))
                elif not here[name] or (name == "checkpoint" and gone_on):
                    yield Link(name, "not at hand", f"{folder} has none, or has gone on since")
                else:
                    yield Link(name, "changed", str(folder))
            return
    yield from (Link(name, "not at hand", f"no {entry.get('run')}") for name in expected)


def _weights_at(folder: Path, link: str | None) -> set[str]:
    """The hashes of a run's weights: of those after as many images as the linked ones, if these are
    there, and otherwise of all. Damaged ones may be of any number of images."""
    paths = [folder / "generator.safetensors", *folder.glob("checkpoints/*.safetensors")]
    hashes = {path: sha256(path) for path in paths if path.exists()}
    counts: dict[Path, int] = {}
    for path in hashes:
        with suppress(SynthError):
            counts[path] = read_count(path, "images")
    linked = {counts.get(path) for path in hashes if hashes[path] == link}
    alike = {path for path in hashes if counts.get(path) in {*linked, None}}
    return {hashes[path] for path in (alike if linked else hashes)}


def _run_at(
    folder: Path, entry: dict[str, Any], checkpoint: str | None
) -> tuple[dict[str, set[str]], bool]:
    """The hashes of a run folder's files by link, and whether the run has gone on since the entry.
    The log is taken as far as the entry's goes."""
    found = {"checkpoint": _weights_at(folder, checkpoint)}
    found["log"], found["config"], gone_on = set(), set(), False
    if (folder / "config.json").exists():
        found["config"] = {"damaged"}
        with suppress(SynthError):
            found["config"] = {_digest(open_run(folder).config.to_json())}
    if (folder / "log.jsonl").exists():
        found["log"] = {"damaged"}
        with suppress(ValueError, LookupError, TypeError):
            log = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
            lines = [json.loads(line) for line in log if line.endswith("}")]
            recorded = entry.get("training_log") or [{"images": 0}]
            until = [line for line in lines if line["images"] <= recorded[-1]["images"]]
            found["log"], gone_on = {_digest(without_speeds(until))}, len(until) < len(lines)
    return found, gone_on


def _check_set(links: Links, entry: dict[str, Any], workspace: Workspace) -> Iterator[Link]:
    expected = [name for name in ("set", "manifest") if links.get(name) is not None]
    for folder in _places(entry.get("folder"), workspace.datasets, workspace.baselines):
        here = {"set": _images_at(folder, entry), "manifest": None}
        if (folder / "manifest.json").exists():
            here["manifest"] = sha256(folder / "manifest.json")
        if any(links[name] == here[name] for name in expected):
            for name in expected:
                same = links[name] == here[name]
                yield Link(name, "same" if same else "changed", str(folder))
            return
    where = f"no {entry['folder']}" if entry.get("folder") else "made from the real images"
    yield from (Link(name, "not at hand", where) for name in expected)


def _images_at(folder: Path, entry: dict[str, Any]) -> str | None:
    """sha256 of the images and labels in a folder, in whatever format: its manifest may lie."""
    if entry.get("recipe") is None:
        return _brought_at(folder, entry)
    classes = (entry.get("config") or {}).get("classes", ())
    for form in FORMATS.values():
        with suppress(SynthError):
            images, labels = form.read(folder, classes)
            return sha256_arrays(*([images] if labels is None else [images, labels]))
    return None


def _brought_at(path: Path, entry: dict[str, Any]) -> str | None:
    """The same of a set that synth did not make, resized and numbered as the entry says."""
    with suppress(SynthError):
        images, numbers = read_synthetic(path, entry.get("resized")).images, entry.get("numbering")
        return (renumber(images, numbers, images.classes) if numbers else images).fingerprint
    return None


def _places(was: str | None, *roots: Path) -> Iterator[Path]:
    """Folders where something may stand that was at `was`: there, or in one of the roots."""
    if was:
        places = [Path(was), *(root / Path(was).name for root in roots)]
        yield from (place for place in dict.fromkeys(places) if place.exists())
