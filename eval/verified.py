"""How deep each record was verified: a note beside the records, for the leaderboard.

`synth verify` writes `results/verified/<id>.json` with the deepest stage from which a record held,
or with the stage at which it did not. A note counts only while the record's file is, byte for byte,
the one that was verified. It is the word of whoever ran `synth verify` in this folder, and no
proof: who was handed the folder runs it again.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic.dataclasses import dataclass

from synth.base.errors import SynthError
from synth.base.files import read_json, sha256, write_json
from synth.base.progress import say
from synth.base.schema import OPEN, dump, on_disk, parse
from synth.environment import git_commit

if TYPE_CHECKING:
    from eval.verification import Verification

Stage = Literal["record", "evaluate", "generate", "train"]  # "record" repeats nothing
FAILED = "fails"
# From the least to the most that can be said of a record; "" is nothing
DEPTHS = (FAILED, "", "record", "evaluate", "generate", "train")


@dataclass(frozen=True, config=OPEN)
class Note:
    """The content of a note."""

    record: str  # sha256 of the record's file
    stage: Annotated[Stage, on_disk("from")]
    holds: bool
    verdict: str
    date: str
    commit: str | None  # of the code that verified

    @property
    def depth(self) -> str:
        return self.stage if self.holds else FAILED


def keep_note(path: Path, found: Verification) -> None:
    """Notes what came out of a verification of the record at `path`, unless it is known to hold
    from a deeper stage. A failure is always noted, and stays until the record holds from there."""
    results = path.parent.parent
    nothing = found.holds and found.stage == "record" and not found.chained
    if nothing or path.parent.name != "records":
        return
    known, now = read_note(results, path), datetime.now(timezone.utc)
    deeper = known is not None and DEPTHS.index(known.stage) > DEPTHS.index(found.stage)
    if deeper and found.holds:
        return
    date = now.isoformat(timespec="seconds")
    note = Note(sha256(path), found.stage, found.holds, found.verdict, date, git_commit())
    try:
        write_json(_place(results, path), dump(note))
    except SynthError as error:  # perhaps the folder is somebody else's
        say(f"not noted: {error}")


def read_note(results: Path, path: Path) -> Note | None:
    """The note of the record at `path`. None if there is none, or none that counts."""
    place = _place(results, path)
    try:
        note = parse(Note, read_json(place), f"{place}: is damaged") if place.exists() else None
    except SynthError as error:
        say(f"skipped: {error}")
        return None
    return note if note is not None and note.record == sha256(path) else None


def depths(results: Path) -> dict[str, str]:
    """Record id → how deep it was verified, one of `DEPTHS`; without those that never were."""
    notes = {p.stem: read_note(results, p) for p in (results / "records").glob("*.json")}
    return {name: note.depth for name, note in notes.items() if note is not None}


def least(of: Iterable[str]) -> str | None:
    """What can be said of several records at once: a row is as deep as its least verified one."""
    return min(of, key=DEPTHS.index, default="") or None


def _place(results: Path, path: Path) -> Path:
    return results / "verified" / path.name
