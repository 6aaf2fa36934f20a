"""Checkpoints: tensors and JSON metadata in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from synth.base.errors import SynthError
from synth.base.files import atomic_file

METADATA = "synth"  # the key in a safetensors file


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes a safetensors file. The metadata is one JSON text, because the format keeps several
    texts in no fixed order, and the files of equal runs must be equal."""
    texts = {METADATA: json.dumps(metadata)}
    with atomic_file(path) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, texts)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and metadata in a file. Raises `SynthError` if it is missing or damaged."""
    with _reading(path):
        return load_file(path), read_metadata(path)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata in a file. Raises `SynthError` if it is missing or damaged."""
    with _reading(path), safe_open(path, framework="pt") as file:
        metadata: dict[str, Any] = json.loads((file.metadata() or {})[METADATA])
        return metadata


def get_entry(metadata: dict[str, Any], key: str, path: Path) -> Any:
    """`metadata[key]`. Raises `SynthError` that names `path` if there is none."""
    if key not in metadata:
        raise SynthError(f"{path}: is damaged (it lacks {key}); train the run again")
    return metadata[key]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if path.exists():
            raise SynthError(f"{path}: is damaged ({error}); train the run again") from error
        raise SynthError(
            f"{path}: is missing, so the run has no weights yet; "
            "finish it with: synth train --resume"
        ) from error
