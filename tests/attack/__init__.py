"""An attack on the claim that nothing is lost and nothing is let in: `python -m tests.attack`.

Kills, full disks, many writers, mutated files and forged records, with fixed seeds. It prints a
table in Markdown, and ends with 1 if anything was found. `shim.c` makes the faults, `world.py` the
folders, `run.py` runs commands, and each other module is one part.
"""
