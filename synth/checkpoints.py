"""Checkpoints: tensors and JSON metadata in one safetensors file, written whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from synth.base.errors import SynthError
from synth.base.files import atomic_file

METADATA = "synth"  # the key in a safetensors file


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes a safetensors file whole. The metadata is one JSON text, since the format keeps
    several in no fixed order, and equal runs are to give equal files."""
    texts = {METADATA: json.dumps(metadata)}
    with atomic_file(path) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, texts)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inverse of `save_tensors`. Raises `SynthError` when missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise damaged(path, error) from error
    return tensors, read_metadata(path)


def read_metadata(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = json.loads((file.metadata() or {})[METADATA])
            return metadata
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise damaged(path, error) from error


def get_entry(metadata: dict[str, Any], key: str, path: Path) -> Any:
    if key not in metadata:
        raise SynthError(f"{path}: is damaged (it lacks {key}); train the run again")
    return metadata[key]


def damaged(path: Path, error: Exception) -> SynthError:
    if not path.exists():
        return SynthError(
            f"{path}: is missing, so the run has no weights yet; "
            "finish it with: synth train --resume"
        )
    return SynthError(f"{path}: is damaged ({error}); train the run again")
