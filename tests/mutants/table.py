"""results/MUTANTS.md and mutants.json beside it: the shares, and a word on each survivor."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.mutants.sample import Mutant

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib  # type: ignore[no-redef]

WORDS = Path(__file__).with_name("words.toml")
NOTICED = ("noticed", "loops")
OUTCOMES = {
    "noticed": "a test fails",
    "loops": "a test runs for more than 60 s and five times as long as it should: the mutant loops",
    "unnoticed": "every test that runs the statement passes",
    "not run": "no test runs the statement",
    "undecided": "tests that run the statement did not fit the time, and the others pass",
    "gone": "the code is no longer there",
}


@dataclass
class Fate:
    """What came of a mutant: the outcome and the test that brought it, first and last time."""

    mutant: Mutant
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)

    @property
    def last(self) -> list[str]:
        return self.after or self.before

    @property
    def key(self) -> str:
        return key(self.mutant)


@dataclass
class Sample:
    """A sample, what it was drawn from, and the commits whose tests it met."""

    seed: int
    count: int
    places: int
    cap: float
    commits: dict[str, str]
    fates: list[Fate]
    note: str = ""  # on how it was run

    def save(self, path: Path) -> None:
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        part.replace(path)


def key(mutant: Mutant) -> str:
    """Names a mutant in words.toml."""
    return f"{mutant.path}: {mutant.removed} → {mutant.added}"


def load(path: Path) -> Sample:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    fates = [Fate(Mutant(**f["mutant"]), f["before"], f["after"]) for f in value.pop("fates")]
    return Sample(**value, fates=fates)


def to_markdown(sample: Sample) -> str:
    words = tomllib.loads(WORDS.read_text(encoding="utf-8")) if WORDS.exists() else {}
    tried = [fate for fate in sample.fates if fate.before]
    lines = [
        "# Mutants",
        "",
        "What the tests notice of changes at random places of `eval/` and of the training loop.",
        f"`python -m tests.mutants --count {sample.count} --seed {sample.seed}`: the first "
        f"{len(tried)} of a random order of the {sample.places:,} places that can be changed. "
        "tests/mutants/sample.py says how, and what is left out. A mutant meets the tests that run "
        f"its statement, for {sample.cap:.0f} s.",
        *(["", sample.note] if sample.note else []),
        "",
        "| | commit | mutants | noticed | unnoticed | undecided | share unnoticed |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in sample.commits:
        ends = [fate.before[0] if name == "before" else fate.last[0] for fate in tried]
        seen, open_ = sum(end in NOTICED for end in ends), ends.count("undecided")
        unseen = ends.count("unnoticed") + ends.count("not run")
        share = f"{unseen / max(len(ends), 1):.1%}"
        share += f" to {(unseen + open_) / max(len(ends), 1):.1%}" if open_ else ""
        cells = (name, sample.commits[name], len(ends), seen, unseen, open_, share)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    if "after" in sample.commits:
        lines += [
            "",
            "*After* is the same sample, with the tests that its survivors led to: it says what "
            "these tests do, not what a new sample would give. What was noticed was not run again.",
        ]
    lines += ["", "| outcome | before | last | |", "| --- | ---: | ---: | --- |"]
    first, last = (Counter(f.before[0] for f in tried), Counter(f.last[0] for f in tried))
    lines += [f"| {o} | {first[o]} | {last[o]} | {text} |" for o, text in OUTCOMES.items()]
    for title, chosen in (
        ("Survivors", [f for f in tried if f.last[0] in ("unnoticed", "not run")]),
        ("Undecided", [f for f in tried if f.last[0] == "undecided"]),
        (
            "Noticed later, most of them by tests that were added",
            [f for f in tried if f.after and f.after[0] in NOTICED],
        ),
    ):
        lines += ["", f"## {title}: {len(chosen)}", ""]
        for fate in sorted(chosen, key=lambda fate: (fate.mutant.path, fate.mutant.line)):
            lines += _item(fate, words.get(fate.key, ""))
    return "\n".join(lines) + "\n"


def _item(fate: Fate, word: str) -> list[str]:
    mutant, (outcome, test) = fate.mutant, fate.last
    said = word or test or ("no test runs it" if outcome == "not run" else "no word yet")
    return [
        f"- {mutant.path}:{mutant.line}, {mutant.operator}: {said}",
        f"  - `{_short(mutant.removed)}`",
        f"  - `{_short(mutant.added)}`",
    ]


def _short(code: str) -> str:
    code = code.replace("`", "'")
    return code if len(code) <= 160 else code[:157] + "…"
