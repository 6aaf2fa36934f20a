"""Which tests reach which lines, from one run of every test file under coverage."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from coverage import CoverageData

from tests.mutants.sample import Mutant, targets

# These compare sources, imports and formats, or test rooms that have no mutants.
LEFT_OUT = {
    *("test_code_identity", "test_rooms", "test_benchmarks", "test_mutants", "test_svhn_part"),
    *("test_kernels", "test_tiles", "test_layers", "test_rendering"),
}

NEAR, RARE = 10, 5  # a line of at most RARE tests, at most NEAR lines away
LONG = 15  # seconds that a test may take which comes early


@dataclass
class Reach:
    """`lines`: path → line → tests that run it, and in set-up or not. `imported`: the lines that
    ran at the import. `seconds`: of each test that passes."""

    lines: dict[str, dict[int, dict[str, bool]]]
    imported: dict[str, set[int]]
    seconds: dict[str, float]

    def tests(self, root: Path, mutant: Mutant) -> list[str]:
        """The tests that run the mutated statement: first those of a line near it that few tests
        run, then those named after the module, then quick ones. A statement of a module is also
        reached by who runs its body, or a line that names it, and by the tests named after it; if
        there are none, by all."""
        source = (root / mutant.path).read_text(encoding="utf-8")
        low, high, body = statement(source, mutant.line)
        found = self._of(mutant.path, range(low, high + 1)) | self._of(mutant.path, body)
        name = re.match(r"(\w+)(: [^=]*)? = ", source.splitlines()[low - 1])
        if name:
            found |= self._naming(root, name[1])
        if self.imported[mutant.path] & {*range(low, high + 1)}:
            own = [test for test in self.seconds if _own(test, mutant.path)]
            found |= dict.fromkeys(own or self.seconds, False)
        order = self._in_order(found)
        near = self._rare(mutant.path, range(low - NEAR, high + NEAR + 1))
        ranks = {test: 0 if test in near else 1 + (not _own(test, mutant.path)) for test in order}
        early = [t for t in order if ranks[t] < 2 and self.seconds[t] < LONG]
        early.sort(key=lambda test: (ranks[test], self.seconds[test]))
        return [*early, *(test for test in order if test not in early)]

    def _rare(self, path: str, lines: Iterable[int]) -> set[str]:
        known = (self.lines[path].get(line, {}) for line in lines)
        return {test for tests in known if len(tests) <= RARE for test in tests}

    def _of(self, path: str, lines: Iterable[int]) -> dict[str, bool]:
        found: dict[str, bool] = {}
        for line in lines:
            for test, is_setup in self.lines[path].get(line, {}).items():
                found[test] = found.get(test, True) and is_setup
        return found

    def _naming(self, root: Path, name: str) -> dict[str, bool]:
        found: dict[str, bool] = {}
        for path in targets(root):
            source, where = path.read_text(encoding="utf-8"), path.relative_to(root).as_posix()
            for number, line in enumerate(source.splitlines(), 1):
                if re.search(rf"\b{name}\b", line):
                    low, high, _ = statement(source, number)
                    found |= self._of(where, range(low, high + 1))
        return found

    def _in_order(self, found: dict[str, bool]) -> list[str]:
        """A fixture of a whole file runs in the set-up of one test, for all tests of that file."""
        files = {test.partition("::")[0] for test, is_setup in found.items() if is_setup}
        direct = [test for test in found if test in self.seconds]
        others = [t for t in self.seconds if t.partition("::")[0] in files and t not in found]
        return [*self._by_file(direct), *self._by_file(others)]

    def _by_file(self, tests: Sequence[str]) -> list[str]:
        """Quick ones first. Those of a file stand together, since they share its fixtures."""
        total: dict[tuple[int, str], float] = {}

        def group(test: str) -> tuple[int, str]:
            return sum(self.seconds[test] > limit for limit in (0.3, 3)), test.partition("::")[0]

        for test in tests:
            total[group(test)] = total.get(group(test), 0) + self.seconds[test]
        order = {test: (group(test)[0], total[group(test)], group(test)) for test in tests}
        return sorted(tests, key=lambda test: (order[test], self.seconds[test]))


def _own(test: str, module: str) -> bool:
    """Has the test's file the name of the module, or of its folder, at least in its beginning?"""
    name = Path(test.partition("::")[0]).stem.removeprefix("test_")
    return any(name[:5] == part[:5] for part in Path(module).with_suffix("").parts)


def statement(source: str, line: int) -> tuple[int, int, range]:
    """First and last line of the innermost statement at a line (of a compound one, the head), and
    the lines of its body. A field of a class has the class as its body."""
    low, high, body = line, line, range(0)
    for node, outer in _statements(ast.parse(source), None):
        start = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        end = node.end_lineno or node.lineno
        inner = getattr(node, "body", [])
        head = max(node.lineno, inner[0].lineno - 1) if inner else end
        if start <= line <= head:
            low, high, body = start, head, range(head + 1, end + 1)
            if not inner and isinstance(outer, ast.ClassDef):
                body = range(outer.lineno, (outer.end_lineno or line) + 1)
    return low, high, body


def _statements(node: ast.AST, outer: ast.AST | None) -> Iterator[tuple[ast.stmt, ast.AST | None]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield child, node
        yield from _statements(child, node)


def measure(root: Path, folder: Path, jobs: int) -> None:
    """Runs under coverage each test file that has changed since it was last measured."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [path for path in root.glob("tests/test_*.py") if path.stem not in LEFT_OUT]
    # The longest first, so that no job is left alone with it at the end.
    paths.sort(key=lambda path: -path.stat().st_size)
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda path: measure_file(root, path, folder), paths))


def measure_file(root: Path, path: Path, folder: Path) -> None:
    base = folder / path.stem
    version = sha256(path.read_bytes()).hexdigest()
    mark = base.with_suffix(".sha256")
    if mark.exists() and mark.read_text() == version:
        return
    base.with_suffix(".db").unlink(missing_ok=True)
    measured = f"[run]\nsource = eval,synth\ndata_file = {base.with_suffix('.db')}\n"
    base.with_suffix(".rc").write_text(measured)
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"),
        *("--cov", f"--cov-config={base.with_suffix('.rc')}", "--cov-context=test"),
        *("--cov-report=", f"--junitxml={base.with_suffix('.xml')}", f"tests/{path.name}"),
    ]
    settings = {**os.environ, "PYTHONPATH": str(root), "CI": "1"}
    subprocess.run(command, cwd=root, env=settings, stdout=subprocess.DEVNULL)
    mark.write_text(version)
    print(path.name, flush=True)


def read(root: Path, folder: Path) -> Reach:
    reach = Reach({}, {}, {})
    for path in targets(root):
        name = path.relative_to(root).as_posix()
        reach.lines[name], reach.imported[name] = {}, set()
    for path in sorted(folder.glob("*.db")):
        data = CoverageData(str(path))
        data.read()
        for measured in data.measured_files():
            name = next((name for name in reach.lines if measured.endswith(f"/{name}")), None)
            for line, contexts in data.contexts_by_lineno(measured).items() if name else ():
                for test, _, phase in (context.rpartition("|") for context in contexts):
                    if not test:
                        reach.imported[name].add(line)
                    elif phase != "teardown":
                        tests = reach.lines[name].setdefault(line, {})
                        tests[test] = tests.get(test, True) and phase == "setup"
        data.close()
    for path in folder.glob("*.xml"):
        for case in ET.parse(path).iter("testcase"):
            if not any(case.find(tag) is not None for tag in ("failure", "error", "skipped")):
                file = case.get("classname", "").replace(".", "/")
                reach.seconds[f"{file}.py::{case.get('name')}"] = float(case.get("time", 0))
    return reach
