"""Files that are damaged: one line names them, and what does not need them goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from synth.base.errors import SynthError
from synth.base.files import sha256
from synth.checkpoints import load_tensors, old_sha256, read_metadata, save_tensors
from synth.data import ImageSet
from synth.generation import generate
from synth.runs import Run, load_generator, newest_run
from synth.training import train_run
from tests.conftest import Ran, tiny
from tests.test_training import CPU, make_run

Synth = Callable[..., Ran]
TENSORS = {
    "weight": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
    "count": torch.tensor(7),
    "mask": torch.tensor([True, False]),
    "nothing": torch.zeros(0),
}
METADATA = {"images": 64, "config": {"seed": 1, "precision": "fp32"}}


# Weights and state


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "x.safetensors"
    save_tensors(path, TENSORS, METADATA)
    return path


def test_tensors_and_metadata_come_back(checkpoint: Path) -> None:
    tensors, metadata = load_tensors(checkpoint)
    assert metadata == METADATA == read_metadata(checkpoint)
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    again = checkpoint.with_name("again.safetensors")
    save_tensors(again, dict(reversed(TENSORS.items())), METADATA)
    assert again.read_bytes() == checkpoint.read_bytes()


def test_files_of_versions_without_hashes_are_read(checkpoint: Path) -> None:
    old = checkpoint.with_name("old.safetensors")
    save_file(TENSORS, old, {"synth": json.dumps(METADATA)})
    tensors, metadata = load_tensors(old)
    assert metadata == METADATA and tensors.keys() == TENSORS.keys()
    assert old_sha256(checkpoint) == old_sha256(old)
    assert old_sha256(checkpoint) == sha256(old)


@given(st.data())
@settings(max_examples=300)
def test_a_flipped_bit_is_noticed(checkpoint: Path, data: st.DataObject) -> None:
    """In the metadata, the names and types of the tensors, or their values."""
    whole = bytearray(checkpoint.read_bytes())
    place = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[place // 8] ^= 1 << place % 8
    damaged = checkpoint.with_name("damaged.safetensors")
    damaged.write_bytes(whole)
    try:
        tensors, metadata = load_tensors(damaged)
    except SynthError as error:
        assert "damaged.safetensors: is damaged" in str(error)
    else:  # a bit that means nothing, such as that of a blank
        assert metadata == METADATA
        assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_metadata_alone_is_checked_too(checkpoint: Path) -> None:
    text = checkpoint.read_bytes()
    damaged = checkpoint.with_name("longer.safetensors")
    damaged.write_bytes(text.replace(rb"\"images\": 64", rb"\"images\": 65"))
    assert damaged.read_bytes() != text
    with pytest.raises(SynthError, match="metadata does not match"):
        read_metadata(damaged)


def test_images_that_are_not_finite_are_refused(tmp_path: Path, drawn: ImageSet) -> None:
    """As those of a file without a hash may be."""
    run = make_run(tmp_path, drawn, tiny("tiny", True), 160)
    train_run(run, drawn, CPU)
    with safe_open(run.weights, "pt") as file:
        metadata = json.loads(file.metadata()["synth"])
    tensors, _ = load_tensors(run.weights)
    tensors["stem.weight"][0] = torch.nan
    del metadata["tensors_sha256"], metadata["metadata_sha256"]
    save_file(tensors, run.weights, {"synth": json.dumps(metadata)})
    with pytest.raises(SynthError, match="not finite"):
        _ = generate(load_generator(run.folder), 10, 1, seed=0).images


def test_a_damaged_state_stops_no_other_command(
    tmp_path: Path, drawn: ImageSet, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_run(tmp_path, drawn, tiny("tiny", True), 160) for _ in range(2)]
    for run in runs:
        save_tensors(run.state, TENSORS, {"step": 10})
    runs[1].state.write_bytes(runs[1].state.read_bytes()[:50])
    assert newest_run(tmp_path, finished=True).folder == runs[0].folder
    assert "latest.safetensors: is damaged" in capsys.readouterr().err
    with pytest.raises(SynthError, match="holds no unfinished run"):
        newest_run(tmp_path, finished=False)


def test_a_full_disk_during_a_checkpoint_is_no_fault_of_synth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SynthError, match=r"x\.safetensors: cannot be written \(No space left"):
        save_tensors(tmp_path / "x.safetensors", TENSORS, METADATA)
    assert list(tmp_path.iterdir()) == []


# The log


@pytest.fixture
def logged(tmp_path: Path, drawn: ImageSet) -> Run:
    run = make_run(tmp_path, drawn, tiny("tiny", True), 480)
    for images in (160, 320, 480):
        run.append_log(
            {"images": images, "d_loss": 1 / images, "memory_mib": None, "all": [1, 2.5]}
        )
    return run


@pytest.mark.parametrize(
    "line",
    [b'{"images": 9, "d\xff": 1}\n', b"\xff\n", b"[1]\n", b'{"d_loss": 1}\n', b'{"images": "x"}\n'],
)
def test_a_damaged_line_of_the_log_is_left_out(
    logged: Run, line: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = logged.read_log()
    first, *rest = logged.log.read_bytes().splitlines(keepends=True)
    logged.log.write_bytes(b"".join([first, line, *rest]))
    if line.startswith(b'{"images": 9'):  # a byte that is no text in a name
        assert [each["images"] for each in logged.read_log()] == [160, 9, 320, 480]
        return
    assert logged.read_log() == whole
    if line.endswith(b"}\n"):
        assert "log.jsonl: line 2 is damaged" in capsys.readouterr().err
    logged.rewind_log(480)
    assert logged.log.read_bytes() == first + b"".join(rest)
