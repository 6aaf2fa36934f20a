"""Files that are damaged: one line names them, and what does not need them goes on."""

from __future__ import annotations

import io
import json
import math
import os
import resource
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from eval.evaluate import find_set
from eval.protocols import Protocol
from eval.real_classifier import real_classifier
from synth.base.errors import SynthError
from synth.base.files import read_json, sha256
from synth.checkpoints import load_tensors, old_sha256, read_metadata, save_tensors
from synth.data import DATASETS, ImageSet, load_training_images
from synth.generation import generate
from synth.recipes import read_toml
from synth.runs import Run, load_generator, newest_run, open_run
from synth.synthetic_set import Generated, read_synthetic, write_synthetic
from synth.training import train_run
from synth.visuals import draw_losses
from tests.conftest import Ran, tiny
from tests.test_cli import one_line
from tests.test_generation import MANIFEST
from tests.test_training import CPU, make_run

Synth = Callable[..., Ran]
TENSORS = {
    "weight": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
    "count": torch.tensor(7),
    "mask": torch.tensor([True, False]),
    "nothing": torch.zeros(0),
}
BLACK = Generated(lambda: iter([np.zeros((10, 32, 32, 3), np.uint8)]), 10, None, lambda: 10)
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


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", -1), ("classes", []), ("precision", "x"), ("fingerprint", "a\nb"), ("select", "")],
)
def test_a_configuration_that_no_run_can_have_is_named(
    tmp_path: Path, drawn: ImageSet, key: str, value: object
) -> None:
    run = make_run(tmp_path, drawn, tiny("tiny", True), 160)
    path = run.folder / "config.json"
    path.write_text(json.dumps({**read_json(path), key: value}))
    with pytest.raises(SynthError, match=rf"config\.json: is damaged.*{key} is"):
        open_run(run.folder)


@pytest.mark.parametrize("step", [None, "x", -5, True, 2**63])
def test_a_state_without_a_number_of_steps_is_named(
    tmp_path: Path, drawn: ImageSet, step: object
) -> None:
    run = make_run(tmp_path, drawn, tiny("tiny", True), 160)
    save_tensors(run.state, TENSORS, {"step": step})
    with pytest.raises(SynthError, match=r"latest\.safetensors: is damaged \(step is"):
        train_run(run, drawn, CPU)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, drawn: ImageSet) -> Run:
    """A run whose state has 20 of its 30 steps."""
    run = make_run(tmp_path_factory.mktemp("stopped"), drawn, tiny("tiny", True), 320)
    train_run(run, drawn, CPU)
    config = {**read_json(run.folder / "config.json"), "images": 480}
    (run.folder / "config.json").write_text(json.dumps(config))
    return open_run(run.folder)


def refuse_state(run: Run, images: ImageSet, tensors: dict[str, torch.Tensor], why: str) -> None:
    """The run does not go on from a state with these tensors, without hashes, as older versions
    wrote it."""
    whole = run.state.read_bytes()
    try:
        save_file(tensors, run.state, {"synth": json.dumps({"step": 20})})
        with pytest.raises(SynthError, match=rf"latest\.safetensors: does not fit the run.*{why}"):
            train_run(run, images, CPU)
    finally:
        run.state.write_bytes(whole)


@given(st.data())
@settings(max_examples=60)
def test_a_state_of_other_shapes_is_refused(
    stopped: Run, drawn: ImageSet, data: st.DataObject
) -> None:
    """torch's fused Adam would write outside of it."""
    tensors = load_file(stopped.state)
    name = data.draw(st.sampled_from(sorted(tensors)))
    shapes = st.sampled_from([(), (0,), (2,), (2, *tensors[name].shape), (3, 0)])
    shape = data.draw(shapes.filter(lambda shape: shape != tensors[name].shape))
    if tensors[name].numel() == 1 == math.prod(shape):
        return  # torch takes a number for a list of one, and the other way round
    tensors[name] = torch.zeros(shape, dtype=tensors[name].dtype)
    refuse_state(stopped, drawn, tensors, "")


@pytest.mark.parametrize("lost", ["g_adam.0.step", "d_adam.1.exp_avg", "g_adam.2.exp_avg_sq"])
def test_a_state_without_a_moment_is_refused(stopped: Run, drawn: ImageSet, lost: str) -> None:
    tensors = load_file(stopped.state)
    del tensors[lost]
    refuse_state(stopped, drawn, tensors, "moments of ._adam are missing")


def test_what_a_library_says_of_a_damaged_file_is_shortened(checkpoint: Path) -> None:
    header = json.dumps({"é" * 5000: {"dtype": "F32", "shape": [1], "data_offsets": [0]}})
    damaged = checkpoint.with_name("damaged.safetensors")
    damaged.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(SynthError) as refused:
        load_tensors(damaged)
    assert "damaged.safetensors: is damaged" in str(refused.value)
    message = str(refused.value)
    assert len(message) < 1300 and message.endswith("; train the run again")


def test_the_next_command_clears_what_a_killed_process_left(
    tmp_path: Path, drawn: ImageSet
) -> None:
    """A process that was killed before it removed its scratch folder."""
    run = make_run(tmp_path, drawn, tiny("tiny", True), 160)
    places = run.folder.parent, run.folder, run.folder / "state"
    for command in (
        lambda: train_run(run, drawn, CPU),
        lambda: newest_run(run.folder.parent, finished=True),
    ):
        left = [place / ".partial-12345678" for place in places if place.exists()]
        for folder in left:
            folder.mkdir()
            (folder / "lock").touch()
        command()
        assert not any(folder.exists() for folder in left)


# The log


def test_a_log_without_numbers_is_drawn_and_selects_nothing(logged: Run, tmp_path: Path) -> None:
    for line in ({"g_loss": None}, {"heldout_d_losses": 1, "validation_accuracy": None}):
        logged.append_log({"images": 640, **line})
    log = logged.read_log()
    for last in log:
        draw_losses([*log, last], tmp_path / "losses.png")
    assert logged.validation_scores() == {}


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


# The environment


@pytest.mark.parametrize(
    "damage",
    [
        *({"threads": "x"}, {"threads": 0}, {"blas_threads": 1e9}, {"device": 5}, {"resumed": 5}),
        *({"resumed": [5]}, {"resumed": [{}]}, {"resumed": [{"images": "x"}]}),
    ],
)
def test_a_damaged_environment_is_named(logged: Run, damage: dict[str, object]) -> None:
    """It is read when a run goes on, and copied into manifests and records."""
    path = logged.folder / "environment.json"
    path.write_text(json.dumps({"device": "CPU", "threads": 1, **damage}))
    for read in (logged.read_environment, lambda: logged.note_start(160, {})):
        with pytest.raises(SynthError, match=r"environment\.json: is damaged.*environment"):
            read()


# Files that are far larger than they seem, or never end


@contextmanager
def little_memory(more: int) -> Iterator[None]:
    """The block cannot take `more` bytes of memory than there are in use."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def write_npz(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            with archive.open(f"{name}.npy", "w") as file:
                file.write(data)
                for _ in range(MANY if data == ZEROS else 0):
                    file.write(bytes(1_000_000))


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


IMAGES = npy(np.zeros((20, 32, 32, 3), np.uint8))
MANY = 300  # millions of zeros, in 300 KB
ZEROS = npy(np.zeros(0, np.uint8)).replace(b"(0,), }" + b" " * 9, b"(300000000,), } ")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"images": ZEROS}, r"images\.npz: cannot be read \(images has 300,000,128 bytes"),
        ({"images": IMAGES, "labels": npy(np.array([2**31] + [0] * 19))}, "labels are from 0 to 2"),
        ({"images": IMAGES, "labels": npy(np.array([2**30] + [0] * 19))}, "has the label 1073741"),
        ({"images": IMAGES, "labels": npy(np.full(20, 2**64 - 1, np.uint64))}, "labels are from"),
        ({"images": IMAGES[:128].replace(b"(20", b"(2000000000") + bytes(60_000)}, "cannot be re"),
        ({"images": npy(np.array(5, np.uint8))}, "not uint8"),
        ({"images": IMAGES.replace(b"'|u1'", b"()   ")}, "cannot be read"),
    ],
)
def test_a_set_cannot_fill_the_memory(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    write_npz(tmp_path / "images.npz", **members)
    with little_memory(250_000_000), pytest.raises(SynthError, match=message):
        read_synthetic(tmp_path)


def test_an_array_that_nobody_asked_for_is_not_read(tmp_path: Path) -> None:
    labels = npy(np.arange(20) % 10)
    write_npz(tmp_path / "images.npz", images=IMAGES, labels=labels, extra=ZEROS)
    with little_memory(250_000_000):
        assert len(read_synthetic(tmp_path).images) == 20


def test_an_image_cannot_fill_the_memory(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.new("L", (9000, 9000)).save(tmp_path / "train" / "a" / "0.png")
    with little_memory(100_000_000), pytest.raises(SynthError, match=r"0\.png.*9000×9000 pixels"):
        DATASETS["folder"].load("train", tmp_path)


def test_whatever_pillow_raises_names_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.new("L", (32, 32)).save(tmp_path / "train" / "a" / "0.png")
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", lambda image: {}[image])
    with pytest.raises(SynthError, match=r"0\.png: cannot be read"):
        DATASETS["folder"].load("train", tmp_path)


@pytest.mark.parametrize(
    "name", ["train/a/0.png", "train_32x32.mat", "images.npz", "manifest.json", "x.json", "x.toml"]
)
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    readers: dict[str, Callable[[], object]] = {
        "train/a/0.png": lambda: DATASETS["folder"].load("train", tmp_path),
        "train_32x32.mat": lambda: DATASETS["svhn"].load("train", tmp_path),
        "images.npz": lambda: read_synthetic(tmp_path),
        "manifest.json": lambda: read_synthetic(tmp_path),
        "x.json": lambda: read_json(path),
        "x.toml": lambda: read_toml(path),
    }
    with pytest.raises(SynthError, match=f"{path.name}: cannot be read .*no regular file"):
        readers[name]()


def test_a_full_cache_costs_time_alone(
    mats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr("eval.real_classifier.cache_folder", lambda: tmp_path / "cache")
    protocol = Protocol("short", "disk", steps=2, batch=16, seeds=1)
    real = load_training_images("svhn", mats)
    assert real_classifier(real, protocol, CPU, "fp32") is not None
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("where", ["word", "variable"])
def test_a_name_that_is_no_text_is_refused_at_once(
    synth: Synth, mats: Path, where: str, monkeypatch: pytest.MonkeyPatch, tiny_names: None
) -> None:
    train = ("train", "--recipe", "tiny", "--data-root", mats, "--dry-run")
    if where == "variable":
        monkeypatch.setenv("SYNTH_TRAIN_OUT", "runs\udcff")
        one_line(synth(*train), 2, r"'runs\udcff': is no UTF-8")
    else:
        one_line(synth(*train, "--out", "runs\udcff"), 2, r"'runs\udcff': is no UTF-8")


# Manifests


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("images_shown", "x"), ("images_shown", -1), ("training_log", -1), ("config", 3)),
        *(("training_log", [{"images": 1, "d_loss": "x"}]), ("schema", 2), ("labels", "mine")),
        *(("recipe", "a\nb"), ("count", 2**70), ("environment", [])),
    ],
)
def test_a_bad_field_of_a_manifest_reaches_no_record(
    tmp_path: Path, key: str, value: object
) -> None:
    folder = write_synthetic(tmp_path, "set", BLACK, MANIFEST)
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({**read_json(manifest), key: value}))
    with pytest.raises(SynthError, match=rf"manifest\.json: is damaged; .*({key}|images|d_loss)"):
        read_synthetic(folder)


@pytest.mark.parametrize(("key", "value"), [("count", 19), ("per_class", [3, *[2] * 9])])
def test_a_manifest_with_other_counts_is_refused(tmp_path: Path, key: str, value: object) -> None:
    folder = write_synthetic(tmp_path, "set", BLACK, MANIFEST)
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({**read_json(manifest), key: value}))
    with pytest.raises(SynthError, match=r"not as many as its manifest\.json says"):
        read_synthetic(folder)


def test_a_damaged_set_stops_no_search_for_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_synthetic(tmp_path, "set", BLACK, MANIFEST)
    damaged = write_synthetic(tmp_path, "set", BLACK, MANIFEST)
    (damaged / "manifest.json").write_text("{")
    assert find_set(tmp_path, MANIFEST, 10) == whole
    assert f"skipped: {damaged}/manifest.json: is damaged" in capsys.readouterr().err
