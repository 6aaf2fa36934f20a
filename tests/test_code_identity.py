"""What tells two versions of the code apart: the commit in a record, the key of a cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eval.real_classifier
from eval.protocols import PROTOCOLS
from eval.real_classifier import _key, _sources, source_hash
from synth.data import ImageSet
from synth.environment import CODE, MACHINE, describe_environment
from synth.ops.native import describe_machine, kernel_sources


def git(folder: Path, *words: str) -> str:
    settings = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    command = ["git", "-C", str(folder), *settings, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", ["synth/a.py", "synth/ops/b.c"])
def test_a_changed_source_file_makes_the_commit_dirty(tmp_path: Path, name: str) -> None:
    git(tmp_path, "init")
    for each in ("synth/a.py", "synth/ops/b.c", "notes.md"):
        (tmp_path / each).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / each).write_text("one\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    (tmp_path / "notes.md").write_text("two\n")
    assert git(tmp_path, "status", "--porcelain", "--", *CODE) == ""
    (tmp_path / name).write_text("two\n")
    assert git(tmp_path, "status", "--porcelain", "--", *CODE) != ""


def test_the_cache_key_covers_what_trains_a_classifier() -> None:
    names = {path.name for path in _sources()}
    assert {"classifier_training.py", "classifiers.py", "layers.py", "dispatch.py"} <= names
    assert {"kernels.py", "tiles.py", "native.py", "kernels.c", "tiles.c"} <= names


def test_the_cache_key_follows_the_c_sources(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = source_hash()
    changed = tmp_path / "kernels.c"
    changed.write_bytes(kernel_sources()[0].read_bytes() + b"\n")
    monkeypatch.setattr(eval.real_classifier, "kernel_sources", lambda: [changed])
    assert source_hash() != before


@pytest.mark.parametrize("key", MACHINE)
def test_the_cache_key_follows_the_machine(
    key: str, drawn: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key_now() -> str:
        return _key(drawn, PROTOCOLS["fixed-v1"], torch.device("cpu"), "fp32", 0)

    before, environment = key_now(), describe_environment(torch.device("cpu"))
    other = {**environment, key: "another"}
    monkeypatch.setattr(eval.real_classifier, "describe_environment", lambda device: other)
    assert key_now() != before


def test_the_environment_names_processor_compiler_and_kernels() -> None:
    found = describe_machine()
    if sys.platform == "linux":
        assert found["processor"]
    assert bool(found["compiler"]) == found["kernels"]
    assert found["kernels"] or not found["tiles"]


def test_a_cache_key_of_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval.real_classifier, "_sources", set)
    with pytest.raises(RuntimeError, match="no source"):
        source_hash()
