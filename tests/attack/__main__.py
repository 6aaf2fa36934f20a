"""Attacks synth. Prints for each part a table of what was tried and what went wrong."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHORT = 0.02  # of the whole attack
PARTS = ("kills", "writers", "mutations", "forgeries")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a fiftieth, in three minutes")
    parser.add_argument("--share", type=float, default=1.0, help="this share of all attacks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="attacks at a time")
    parser.add_argument("--parts", default=",".join(PARTS), help="with commas between")
    parser.add_argument("--table", type=Path, help="also write each part's table into this file")
    options = parser.parse_args()
    if options.short:
        options.share = SHORT
    if "ATTACK_FOLDER" not in os.environ:
        sys.exit(start_again())

    from tests.attack.parts import carry_out
    from tests.attack.table import to_markdown, update

    wrong = False
    start = time.monotonic()
    for part, rows in carry_out(Path(os.environ["ATTACK_FOLDER"]), options):
        text = to_markdown(part, rows, options, time.monotonic() - start)
        print(text, flush=True)
        if options.table:
            update(options.table, part, text)
        wrong |= any(row.wrong for row in rows)
        start = time.monotonic()
    sys.exit(wrong)


def start_again() -> int:
    """Runs this program with shim.c before libc, where there is a compiler, in an empty folder in
    memory, where there is one. Returns its exit code."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        settings = {
            **{"OMP_NUM_THREADS": "1", "CC": "no-compiler", "PYTHONDONTWRITEBYTECODE": "1"},
            **{"ATTACK_FOLDER": folder, "PYTHONPATH": str(Path(__file__).parents[2])},
        }
        library, source = Path(folder) / "shim.so", Path(__file__).with_name("shim.c")
        compiler = shutil.which("cc")
        if compiler:
            build = [compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"]
            subprocess.run(build, check=True)
            settings["LD_PRELOAD"] = str(library)
        again = [sys.executable, "-m", "tests.attack", *sys.argv[1:]]
        return subprocess.run(again, env={**os.environ, **settings}).returncode


if __name__ == "__main__":
    main()
