"""Checkpoints: tensors and JSON metadata in one safetensors file, with hashes of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from synth.base.errors import SynthError
from synth.base.files import atomic_file, regular

METADATA = "synth"  # the key in a safetensors file
# Keys that are added to the metadata: sha256 of the tensors, and of all the rest. Older files lack
# them.
TENSORS, REST = "tensors_sha256", "metadata_sha256"


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes a safetensors file. The metadata is one JSON text, because the format keeps several
    texts in no fixed order, and the files of equal runs must be equal."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    whole = {**metadata, TENSORS: _hash_of_tensors(held)}
    data = _serialise(held, {**whole, REST: _hash_of_json(whole)})
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)  # safetensors' own writer raises no OSError if the disk is full


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and metadata in a file. Raises `SynthError` if it is missing or damaged."""
    with _reading(path):
        tensors, metadata = load_file(regular(path)), _read(path)
        if metadata.pop(TENSORS, None) not in (None, _hash_of_tensors(tensors)):
            raise ValueError("its tensors do not match their sha256")
        return tensors, metadata


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata in a file. Raises `SynthError` if it is missing or damaged."""
    with _reading(path):
        metadata = _read(path)
        metadata.pop(TENSORS, None)
        return metadata


def read_count(path: Path, key: str) -> int:
    """The whole number `key` in the metadata. Raises `SynthError` if there is none."""
    found = read_metadata(path).get(key)
    if type(found) is not int or not 0 <= found < 1 << 63:
        raise SynthError(f"{path}: is damaged ({key} is {found!r}); train the run again")
    return found


def old_sha256(path: Path) -> str:
    """sha256 of the file that versions without hashes in it would have written."""
    return hashlib.sha256(_serialise(*load_tensors(path))).hexdigest()


def _serialise(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> bytes:
    data: bytes = save(tensors, {METADATA: json.dumps(metadata)})
    return data


def _read(path: Path) -> dict[str, Any]:
    """The metadata with the hash of the tensors, checked by its own hash."""
    with safe_open(regular(path), framework="pt") as file:
        metadata = json.loads((file.metadata() or {})[METADATA])
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is no JSON object")
    recorded = metadata.pop(REST, None)
    if (recorded is not None or TENSORS in metadata) and recorded != _hash_of_json(metadata):
        raise ValueError("its metadata does not match its sha256")
    return metadata


def _hash_of_json(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _hash_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names, types, shapes and bytes, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RecursionError, SafetensorError) as error:
        if path.exists():
            raise SynthError(f"{path}: is damaged ({error}); train the run again") from error
        raise SynthError(
            f"{path}: is missing, so the run has no weights yet; "
            "finish it with: synth train --resume"
        ) from error
