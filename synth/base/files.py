"""Reading and writing files. A file or folder appears whole, or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import lzma
import math
import os
import re
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from synth.base.errors import SynthError
from synth.base.locks import LOCKS, clear_leftovers, exclusive, scratch_folder

MOST_TEXT = 1 << 28  # bytes of a text file
# An array of an npz file may be larger than the file by this factor and this many bytes. Images,
# which are stored as they are, do not come near, and a small file cannot fill the memory.
EXPANSION, ROOM = 100, 1 << 26
MAPPED = 1 << 28  # bytes of an array from which on `map_array` maps it: 87,000 images
# Errors for npz files that are damaged, besides OSError
DAMAGE = (
    *(ValueError, EOFError, AttributeError, LookupError, SyntaxError, RecursionError, MemoryError),
    *(
        OverflowError,
        TypeError,
        RuntimeError,
        struct.error,
        tokenize.TokenError,
    ),  # no password, no such method
    *(zlib.error, lzma.LZMAError, zipfile.BadZipFile),
)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a path to write to, of the same name. It is renamed to `path` when the block ends
    without an error."""
    try:
        with scratch_folder(path.parent) as folder:
            temporary = folder / path.name
            yield temporary
            _sync(temporary)
            temporary.replace(path)
    except OSError as error:
        raise SynthError(f"{path}: cannot be written ({error.strerror or error})") from error


def _sync(path: Path) -> None:
    with path.open("rb") as written:
        os.fsync(written.fileno())


def cache_folder() -> Path:
    """The cache folder of synth, such as ~/.cache/synth on Linux."""
    return Path(platformdirs.user_cache_dir("synth", appauthor=False))


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def regular(path: Path) -> Path:
    """`path`. Raises `OSError` if it is missing, or no regular file: reading from a pipe or a
    device may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return path


def read_text(path: Path, errors: str = "strict") -> str:
    """Text of a regular file. Raises ValueError if it is no UTF-8, or too large; or `OSError`."""
    if regular(path).stat().st_size > MOST_TEXT:
        raise ValueError(f"larger than {MOST_TEXT:,} bytes")
    return path.read_text(encoding="utf-8", errors=errors)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `SynthError` if the file is missing or damaged."""
    try:
        value = json.loads(read_text(path))
        json.dumps(value, ensure_ascii=False).encode()  # raises if a text in it is no Unicode
    except OSError as error:
        raise SynthError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise SynthError(f"{path}: is damaged, not JSON ({error})") from error
    if not isinstance(value, dict):
        raise SynthError(f"{path}: is damaged, it holds no JSON object")
    return value


def read_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """These arrays of an npz file, those of them that it holds; by default all.

    Raises `SynthError` if the file is missing, damaged or pickled, or if an array is far larger
    than the file.
    """
    found = {}
    try:
        most = EXPANSION * regular(path).stat().st_size + ROOM
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if names and name not in names:
                    continue
                if member.file_size > most:
                    raise ValueError(f"{name} has {member.file_size:,} bytes, which is too much")
                with archive.open(member) as file:
                    found[name] = np.lib.format.read_array(file, allow_pickle=False)
        return found
    except (OSError, *DAMAGE) as error:
        raise SynthError(f"{path}: cannot be read ({error}); make it again") from error


def map_array(path: Path, name: str) -> np.ndarray | None:
    """An array of an npz file, whose values the system reads when they are needed, and can drop.

    None if it is small, is not stored as it is, or is damaged: `read_arrays` then reads it, or says
    why not. Changes of the array do not reach the file.
    """
    try:
        with regular(path).open("rb") as file, zipfile.ZipFile(file) as archive:
            member = archive.getinfo(f"{name}.npy")
            if member.compress_type != zipfile.ZIP_STORED or member.file_size < MAPPED:
                return None
            with archive.open(member) as stream:
                while stream.read(1 << 20):  # raises where the checksum at the end is wrong
                    pass
            file.seek(member.header_offset)
            name_length, extra_length = struct.unpack("<26xHH", file.read(30))
            start = file.seek(name_length + extra_length, os.SEEK_CUR)
            if np.lib.format.read_magic(file) != (1, 0):
                return None
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            whole = file.tell() - start + math.prod(shape) * dtype.itemsize == member.file_size
            if dtype.hasobject or fortran or not whole:
                return None
            return np.memmap(file, dtype, "c", file.tell(), shape)
    except (OSError, *DAMAGE):
        return None


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_arrays(*arrays: np.ndarray) -> str:
    """sha256 of the bytes of all arrays, in C order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def numbered_folders(root: Path) -> list[Path]:
    """The numbered folders in `root`, such as `00003-svhn`, oldest first."""
    return sorted(path for path in root.glob("[0-9]" * 5 + "-*") if path.is_dir())


def next_number(root: Path) -> int:
    """One above the highest number of the folders in `root`."""
    return max((int(path.name[:5]) + 1 for path in numbered_folders(root)), default=0)


def write_numbered_folder(
    root: Path, slug: str, fill: Callable[[Path], object], wanted: int | None = None
) -> Path:
    """Makes `root/00003-slug` with what `fill(folder)` writes. It appears whole, or not at all.

    The number is `wanted` if no folder has it, and else `next_number`. Clears what ended processes
    left in the folders there.
    """
    try:
        for folder in numbered_folders(root):
            clear_leftovers(folder, depth=1)
        with scratch_folder(root) as hidden:
            made = hidden / "made"
            made.mkdir()
            fill(made)
            for path in made.rglob("*"):
                if path.is_file():
                    _sync(path)
            with exclusive(root / LOCKS / "number", f"the next number in {root}", wait=True):
                taken = {int(path.name[:5]) for path in numbered_folders(root)}
                number = wanted if wanted not in {None, *taken} else next_number(root)
                return made.rename(root / f"{number:05d}-{slug}")
    except OSError as error:
        raise SynthError(
            f"{root}: no folder can be written there ({error.strerror or error}); choose another "
            "with --out"
        ) from error


def check_writable(folder: Path) -> None:
    """Raises `SynthError` if no file can be written in `folder`. Call it before hours of work."""
    try:
        with scratch_folder(folder) as scratch:
            (scratch / "probe").write_bytes(bytes(4096))
    except OSError as error:
        raise SynthError(f"{folder}: cannot be written ({error.strerror or error})") from error


def slug(text: str) -> str:
    """The text as a part of a file name: lower case, at most 100 characters."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower())[:100].strip("-") or "unnamed"


def portable(path: Path | str) -> str:
    """The path relative to the current folder, for a record that others read.

    If that would name a folder of this machine or its user, only the last part is kept. This
    happens where the way leads through the root, or through a parent of the home folder.
    """
    target = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
    here = Path.cwd()
    common = Path(os.path.commonpath([target, here]))
    if common in Path.home().parents or common == Path(common.anchor):
        return target.name if target != here else "."
    return Path(os.path.relpath(target, here)).as_posix()
