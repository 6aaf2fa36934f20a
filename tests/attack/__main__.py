"""Runs the attack and prints its table."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.attack.run import with_faults


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a sample, in about five minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="attacks at a time")
    parser.add_argument("--parts", default="kills,writers,mutations,forgeries")
    options = parser.parse_args()
    with_faults()

    from tests.attack.parts import carry_out, table

    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows = carry_out(Path(folder), options.parts.split(","), options)
    print(table(rows, options, time.monotonic() - start))
    sys.exit(any(row.wrong for row in rows))


if __name__ == "__main__":
    main()
