"""`synth train --log` with the real wandb and mlflow: what they wrote on this machine is read back.

They are too heavy for the `test` extra: `pip install 'synth-cas[wandb,mlflow]'` brings these tests.
tests/test_terminal.py has TensorBoard, and stubs of these two."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from synth.trackers import numbers_of
from tests.conftest import TRAIN, Ran

Synth = Callable[..., Ran]
pytestmark = pytest.mark.filterwarnings("default")  # theirs are no fault of synth


def train(synth: Synth, mats: Path, name: str) -> tuple[str, list[dict[str, Any]]]:
    """The name of the new run and its log."""
    planned = ("--recipe", "tiny", *TRAIN[:2], "--images", "2k", "--tick", "1k")
    ran = synth(
        *("train", *planned, "--precision", "fp32", "--data-root", mats, "--log", name, "--json")
    )
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert len(found["log"]) >= 2
    return Path(found["run"]).name, found["log"]


def test_wandb_has_the_log(
    tiny_names: None, synth: Synth, mats: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    name, log = train(synth, mats, "wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    records = []
    for data in read_entries(path.read_bytes()):
        records.append(Record())
        records[-1].ParseFromString(data)
    (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (run.project, run.display_name, run.run_group) == ("synth", name, name)
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["recipe"]["name"] == "tiny"
    lines = [line.history for line in records if line.WhichOneof("record_type") == "history"]
    told = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in line.item}
        for line in lines
    ]
    assert [line["_step"] for line in told] == [line["images"] for line in log]
    for line, ours in zip(told, log, strict=True):
        assert {key: value for key, value in line.items() if key[0] != "_"} == numbers_of(ours)


def read_entries(data: bytes) -> Iterator[bytes]:
    """The entries of a .wandb file: a log of LevelDB, in blocks of 32 KiB, after a head of 7 bytes
    (https://github.com/google/leveldb/blob/main/doc/log_format.md)."""
    at, entry = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        if kind == 0:
            return
        entry += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield entry
            entry = b""


def test_mlflow_has_the_log(
    tiny_names: None, synth: Synth, mats: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    name, log = train(synth, mats, "mlflow")
    import mlflow

    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("synth")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (name, "FINISHED")
    artifact = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/config.json")
    assert artifact["recipe"]["name"] == "tiny"
    keys = numbers_of(log[0])
    assert keys.keys() == run.data.metrics.keys()
    for key in keys:
        history = client.get_metric_history(run.info.run_id, key)
        assert [(point.step, point.value) for point in history] == [
            (line["images"], pytest.approx(numbers_of(line)[key])) for line in log
        ]
