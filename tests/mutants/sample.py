"""Which mutants there are, and a seeded sample of them.

cosmic-ray's operators make the mutants: another operator, a number one larger or smaller, `not`,
`and` for `or`, `break` for `continue`, no exception caught, no decorator, no iteration. `Delete`
adds one: a statement becomes `pass`. A place of the source is drawn first, then one of its mutants,
so that a `+`, which has eleven mutants, is not drawn eleven times as often as a `not`.

Left out, since no test of behaviour could notice them or since they change nothing: docstrings,
annotations (never evaluated), `if TYPE_CHECKING`, `__all__`, the text of an exception or of a
message on stderr, `is` for `==` and the other way. Left out as too easy: the deletion of the only
statement that gives a name its value, and what does not compile.
"""

from __future__ import annotations

import ast
import difflib
import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cosmic_ray.plugins
import parso
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from parso.tree import search_ancestor

LOOP = ("training", "gan", "batches", "losses", "checkpoints")  # modules of synth/
MESSAGES = ("say", "note")  # functions that write to stderr
DELETABLE = ("expr_stmt", "atom_expr", "return_stmt", "raise_stmt", "del_stmt", "assert_stmt")


@dataclass(frozen=True)
class Mutant:
    """`path` is relative to the repository; `removed` and `added` are the lines that differ."""

    path: str
    line: int
    operator: str
    occurrence: int
    removed: str
    added: str

    def code(self, source: str) -> str:
        """The mutated source of the file. Where the file has changed since the mutant was drawn,
        the same change of the same lines. Raises LookupError where these are gone."""
        operator = operators()[self.operator]
        found = mutated(source, operator, self.occurrence)
        for occurrence in range(1000):
            if found and change(source, found)[1:] == (self.removed, self.added):
                return found
            found = mutated(source, operator, occurrence)
        raise LookupError(f"{self.path} no longer has {self.removed!r}")


class Delete(Operator):
    """Replaces a statement with `pass`, but for the only one that gives a name its value."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if node.type != "simple_stmt" or node.children[0].type not in DELETABLE:
            return
        uses = node.get_root_node().get_used_names()
        names = getattr(node.children[0], "get_defined_names", list)()
        others = [other for name in names for other in uses[name.value] if other is not name]
        scope = search_ancestor(node, "funcdef", "classdef")
        again = {
            o.value
            for o in others
            if o.is_definition() and search_ancestor(o, "funcdef", "classdef") == scope
        }
        if all(name.value in again or name.parent.type == "trailer" for name in names):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        first = node.children[0].get_first_leaf()
        node.children[0] = parso.python.tree.Keyword("pass", node.start_pos, first.prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


def operators() -> dict[str, Operator]:
    found: dict[str, Operator] = {"Delete": Delete()}
    for name in cosmic_ray.plugins.operator_names():
        kind = cosmic_ray.plugins.get_operator(name)
        words = name.rpartition("/")[2].split("_")
        mixed = "Comparison" in name and ("Is" in words[1][:2]) != ("Is" in words[2][:2])
        if not mixed and not kind.arguments():
            found[name.rpartition("/")[2]] = kind()
    return found


def targets(root: Path) -> list[Path]:
    loop = [root / "synth" / f"{name}.py" for name in LOOP]
    return sorted([*root.glob("eval/**/*.py"), *loop])


def draw(root: Path, count: int, seed: int) -> tuple[list[Mutant], int]:
    """The first `count` mutants of a random order, and the number of places to choose from."""
    places: dict[tuple[Path, Any, Any], list[tuple[str, int]]] = {}
    sources = {path: path.read_text(encoding="utf-8") for path in targets(root)}
    for path, source in sources.items():
        nodes = list(ast_nodes(parso.parse(source)))
        skipped = list(untestable(source))
        for name, operator in operators().items():
            found = (position for node in nodes for position in operator.mutation_positions(node))
            for occurrence, (start, end) in enumerate(found):
                if not any(low <= tuple(start) < high for low, high in skipped):
                    places.setdefault((path, start, end), []).append((name, occurrence))
    order = sorted(places)
    chance = random.Random(seed)
    chance.shuffle(order)
    drawn: list[Mutant] = []
    for path, start, end in order:
        choices = places[path, start, end]
        for name, occurrence in chance.sample(choices, len(choices)):
            code = mutated(sources[path], operators()[name], occurrence)
            if code:
                _, removed, added = change(sources[path], code)
                where = path.relative_to(root).as_posix()
                drawn.append(Mutant(where, start[0], name, occurrence, removed, added))
                break
        if len(drawn) == count:
            break
    return drawn, len(order)


def mutated(source: str, operator: Operator, occurrence: int) -> str | None:
    """The mutated source, or None where there is no such mutant, or it means the same."""
    try:
        code: str | None = mutate_code(source, operator, occurrence)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if code and ast.dump(ast.parse(code)) != ast.dump(ast.parse(source)):
                compile(code, "mutant", "exec", dont_inherit=True)
                return code
    except (SyntaxError, SyntaxWarning, AssertionError, AttributeError, IndexError):
        pass  # an operator met code that it does not know
    return None


def change(old: str, new: str) -> tuple[int, str, str]:
    """The first line that differs, and what was there and is there."""
    before, after = old.splitlines(), new.splitlines()
    for tag, low, high, new_low, new_high in difflib.SequenceMatcher(
        None, before, after, autojunk=False
    ).get_opcodes():
        if tag != "equal":
            return low + 1, _joined(before[low:high]), _joined(after[new_low:new_high])
    return 0, "", ""


def _joined(lines: list[str]) -> str:
    return " ".join(line.strip() for line in lines)


def untestable(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Ranges of the source (line, column) that are left out."""
    lines = source.splitlines()

    def spot(line: int, column: int) -> tuple[int, int]:
        return line, len(lines[line - 1].encode()[:column].decode())

    for node in ast.walk(ast.parse(source)):
        out: list[ast.AST | None] = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            out = [node.annotation]
        elif isinstance(node, ast.FunctionDef):
            out = [node.returns]
        elif (
            (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
            or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
            or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        ):
            out = [node]
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            out = [*node.exc.args]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in MESSAGES:
            out = [*node.args]
        for each in out:
            if each is not None:
                end = spot(each.end_lineno, each.end_col_offset)
                yield spot(each.lineno, each.col_offset), end
