"""An attack on the claim that nothing is lost and nothing is let in: `python -m tests.attack`.

Kills, full disks, many writers, mutated files and forged records, with fixed seeds. It prints a
table in Markdown, and ends with 1 if anything went wrong.

world.py      the folders to attack, the commands, and what must be true afterwards
run.py        a command in a forked child; shim.c makes its faults, and is loaded before libc
kills.py      SIGKILL, SIGTERM and full disks, at writes and at random moments
writers.py    eight processes at once
mutations.py  files of every kind, damaged by mutators.py
forgeries.py  records and manifests, each value changed in turn, for `synth verify`
parts.py      shares the attacks out among processes; table.py prints what came out
"""
