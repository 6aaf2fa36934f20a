"""What a verification compares, and its verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from operator import eq
from typing import Any

from eval.records import Record
from eval.verified import Stage
from synth.base.terminal import fit

SHOWN = 5  # differences that are told one by one


@dataclass(frozen=True)
class Check:
    """One thing compared. The record holds if all that is `needed` is `met`."""

    what: str
    met: bool
    needed: bool
    detail: str


@dataclass
class Verification:
    """What was compared, and what came out."""

    record: Record
    stage: Stage
    differences: list[str] = field(default_factory=list)  # of the environments
    unknown: list[str] = field(default_factory=list)  # what the record does not say of them
    notes: list[str] = field(default_factory=list)
    unchecked: dict[str, str] = field(default_factory=dict)  # links that are not at hand, and why
    checks: list[Check] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """True if every bit must be the same."""
        return not self.differences and not self.unknown

    @property
    def chained(self) -> bool:
        """True if the record has a chain of hashes; older ones have none."""
        return self.record.chain is not None

    @property
    def repeated(self) -> bool:
        """True if every bit is the same."""
        return all(check.met for check in self.checks)

    @property
    def failed(self) -> list[str]:
        return [check.what for check in self.checks if check.needed and not check.met]

    @property
    def holds(self) -> bool:
        return not self.failed

    @property
    def verdict(self) -> str:
        if self.failed:
            return f"does not hold: {', '.join(self.failed)}"
        if self.stage == "record":
            return "holds, by its chain" if self.chained else "has no chain"
        return "holds, bit for bit" if self.repeated else "holds, within its interval"

    def add(self, what: str, met: bool, detail: str, always: bool = False) -> None:
        """A check that is needed where bits must be the same, or `always`."""
        self.checks.append(Check(what, met, always or self.exact, detail))

    def add_equal(
        self, what: str, differing: Iterator[str], detail: str, always: bool = False
    ) -> None:
        """A check that is met if nothing differs. Otherwise its detail names what differs."""
        found = list(differing)
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        self.add(what, not found, "; ".join([*found[:SHOWN], *more]) or detail, always)

    def to_json(self) -> dict[str, Any]:
        return {
            "record": self.record.id,
            "from": self.stage,
            "holds": self.holds,
            "exact": self.exact,
            "verdict": self.verdict,
            "differences": self.differences,
            "unknown": self.unknown,
            "notes": self.notes,
            "chain": self.chained,
            "unchecked": self.unchecked,
            "checks": [asdict(check) for check in self.checks],
        }

    def to_text(self) -> str:
        lines = [f"{self.record.id}, from {self.stage}"]
        lines += [f"differs       {line}" for line in self.differences]
        lines += [f"unknown       {line}" for line in self.unknown]
        lines += [f"note          {line}" for line in self.notes]
        lines += [f"not checked   {name}: {why}" for name, why in self.unchecked.items()]
        for check in self.checks:
            word = "yes" if check.met else "NO" if check.needed else "no, and need not"
            lines.append(f"{check.what}: {word} ({check.detail})")
        return "\n".join(fit(line, 14) for line in [*lines, f"verdict       {self.verdict}"])


def differing(
    old: Any, new: Any, name: str = "", same: Callable[[Any, Any], bool] = eq
) -> Iterator[str]:
    """Every value that differs in nested dicts and lists, with the way to it. None is no value."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            way = f"{name}.{key}" if name else str(key)
            yield from differing(old.get(key), new.get(key), way, same)
    elif isinstance(old, list | tuple) and isinstance(new, list | tuple):
        if len(old) != len(new):
            yield f"{name} has {len(old)} values, not {len(new)}"
        for index, pair in enumerate(zip(old, new, strict=False)):
            yield from differing(*pair, f"{name}.{index}", same)
    elif not same(old, new):
        yield f"{name} is {old!r}, not {new!r}"
