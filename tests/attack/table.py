"""The tables of an attack."""

from __future__ import annotations

import argparse
import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from synth.environment import git_commit

SHOWN = 20  # of what is wrong in one row
LONGEST = 240  # characters of one of them


@dataclass
class Row:
    """One line of the table."""

    part: str
    note: str = ""
    tried: int = 0
    wrong: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)  # known not to be covered

    def add(self, what: str, wrong: Sequence[str], tried: int = 1) -> None:
        self.tried += tried
        self.wrong += [f"{what}: {each}" if what else each for each in wrong]


HEAD = """# Reliability

What `make attack` did to synth, and what went wrong. Each part says of which commit it speaks.
"""


def update(path: Path, part: str, text: str) -> None:
    """Writes the section of a part into the file. The sections of other parts stay, and what
    somebody wrote before them."""
    whole = path.read_text(encoding="utf-8") if path.exists() else HEAD
    head, *old = whole.split("\n## ")
    sections = {section.partition("\n")[0]: f"## {section}".rstrip() for section in old}
    sections[part] = text
    path.write_text("\n\n".join([head.strip(), *sections.values()]) + "\n", encoding="utf-8")


def to_markdown(part: str, rows: Sequence[Row], options: argparse.Namespace, seconds: float) -> str:
    """The section of a part: how it was made, the table, what is open, and what is wrong."""
    share = "" if options.share == 1 else f" --share {options.share:g}"
    made = [
        f"`python -m tests.attack --parts {part} --seed {options.seed}{share}`: ",
        f"{options.jobs} at a time, {seconds / 60:.0f} minutes, on {_processor()}, ",
        f"commit {git_commit()}, {time.strftime('%Y-%m-%d')}.",
    ]
    lines = ["| attack | tried | wrong | |", "| --- | ---: | ---: | --- |"]
    for row in rows:
        note = f"{row.note}; {len(row.open)} not covered, see below" if row.open else row.note
        lines.append(f"| {row.part} | {row.tried:,} | {len(row.wrong):,} | {note} |")
    counts = Counter(each for row in rows for each in row.open)
    if counts:
        lines += ["", "Not covered: no depth of `synth verify` can tell these values.", ""]
    lines += [f"- {count} of a forged {each}" for each, count in sorted(counts.items())]
    told = [f"- {row.part}: {' '.join(w.split())}" for row in rows for w in row.wrong[:SHOWN]]
    wrong = [line if len(line) <= LONGEST else f"{line[:LONGEST]} …" for line in told]
    more = [f"- {r.part}: and {len(r.wrong) - SHOWN} more" for r in rows if len(r.wrong) > SHOWN]
    if wrong:
        lines += ["", "Wrong:", "", *wrong, *more]
    return "\n".join([f"## {part}", "", "".join(made), "", *lines])


def _processor() -> str:
    """The model of the processor, where the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()
