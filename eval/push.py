"""What `synth push` sends: a synthetic set, or a generator whose card has its scores."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from eval.protocols import DEFAULT
from eval.records import Record, read_records
from synth.base.errors import UsageError
from synth.base.files import sha256
from synth.hub import Kind
from synth.pretrained import MODEL, Scored, open_pretrained, write_pretrained
from synth.runs import load_generator, open_run
from synth.synthetic_set import read_synthetic


def to_push(path: Path, name: str, results: Path, scratch: Path) -> tuple[Kind, Path]:
    """What kind of repository the folder `path` goes to, and the folder to send.

    A set and a folder of `Generator.save_pretrained` are sent as they are. Of a run the generator
    is written into `scratch`, with the scores in `results` on its card, as the repository `name`.
    Raises `SynthError` if the folder is damaged, and `UsageError` if it is nothing of this.
    """
    if (path / "manifest.json").exists():
        read_synthetic(path)
        return "dataset", path
    if (path / MODEL).exists():
        load_generator(open_pretrained(path)[1])
        return "model", path
    if not (path / "config.json").exists():
        raise UsageError(f"{path}: is no synthetic set, no run and no folder with a generator")
    run = open_run(path)
    weights = run.find_checkpoint()
    write_pretrained(run, weights, scratch, scores_of(weights, results), name)
    return "model", scratch


def scores_of(weights: Path, results: Path) -> list[Scored]:
    """The scores of the generator with these weights, the default protocol's first: the newest of
    each entry, size, protocol and real data. Empty without a record."""
    records, digest = read_records(results, quiet=True), sha256(weights)
    good = [record for record in records if record.error is None]
    ours = [each for each in good if each.entry.checkpoint == digest]
    newest = {
        (each.entry.name, each.entry.count, each.protocol["hash"], each.real): each for each in ours
    }
    found = sorted(newest.values(), key=lambda each: each.protocol["name"] != DEFAULT)
    return [_scored(each, good) for each in found]


def _scored(record: Record, others: list[Record]) -> Scored:
    real = [
        mean(other.accuracies)
        for other in others
        if other.entry.kind == "real"
        and (other.protocol["hash"], other.real) == (record.protocol["hash"], record.real)
    ]
    return Scored(
        record.entry.name,
        record.protocol["name"],
        record.real.name,
        record.dataset_key or record.real.name,
        record.entry.count,
        len(record.scores),
        mean(record.accuracies),
        real[-1] if real else None,
    )
