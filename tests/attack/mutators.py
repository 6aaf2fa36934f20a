"""Damage to files: of their bytes, and of the values in them."""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import scipy.io
from PIL import Image
from safetensors.numpy import load, save

Mutate = Callable[[bytes, Random], bytes]

# The values that any value is changed to. @deep@ becomes a very deep list.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 255, 256, 2**31, 2**63, 2**64, 10**30, -(10**30)),
    *(0.5, -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), -float("inf")),
    *("", " ", "x", "0", "NaN", "../../x", "/etc/passwd", "a\nb", "\x00", "\ud800", "|", "a,b"),
    *("<script>alert(1)</script>", "![x](../../x)", "=cmd|' /C calc'!A0", "é" * 5000, "CON"),
    *([], [[]], [None], {}, {"a": 1}, [0] * 1000, [[[[[[1]]]]]], "@deep@", {"schema": 2}),
)
DEEP = 100_000


def damage_bytes(data: bytes, random: Random) -> bytes:
    """Flipped bits, cuts, holes, doubled or foreign parts."""
    size = len(data)
    at, to = sorted(random.sample(range(size + 1), 2)) if size else (0, 0)
    part = bytes(random.randrange(256) for _ in range(random.randrange(1, 40)))
    way = random.randrange(10)
    if way < 4:
        changed = bytearray(data)
        for _ in range(random.choice((1, 1, 1, 2, 30))):
            changed[random.randrange(size)] ^= 1 << random.randrange(8)
        return bytes(changed)
    ways = (
        lambda: data[:at],
        lambda: data[:at] + data[to:],
        lambda: data[:to] + data[at:],
        lambda: data[:at] + part + data[at:],
        lambda: data[:at] + bytes(to - at) + data[to:],
        lambda: random.choice((b"", b"\xff\xfe", b"\xef\xbb\xbf" + data, data * 2, data[::-1])),
    )
    return ways[way - 4]()


# JSON


def damage_json(data: bytes, random: Random) -> bytes:
    """One or two values changed, dropped or doubled; or its bytes."""
    if random.random() < 0.3:
        return damage_bytes(data, random)
    value = json.loads(data)
    for _ in range(random.choice((1, 1, 2))):
        change_json(value, random)
    text = json.dumps(value, indent=random.choice((None, 2)))
    text = text.replace('"@deep@"', "[" * DEEP + "]" * DEEP)
    return text.encode()


def change_json(value: dict[str, Any], random: Random) -> None:
    """Changes one value somewhere below a random key, in place."""
    at: Any = value
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = random.choice(keys)
        if isinstance(at[key], dict | list) and at[key] and random.random() < 0.8:
            at = at[key]
            continue
        way = random.random()
        if way < 0.15:
            del at[key]
        elif way < 0.25 and isinstance(at, dict):
            at[random.choice(("", "schema", "extra", "a.b", "../x"))] = copy.deepcopy(at[key])
        elif way < 0.35 and isinstance(at, list):
            at.append(copy.deepcopy(at[key]))
        elif way < 0.5 and isinstance(at[key], int | float):
            at[key] = random.choice((at[key] + 1, -at[key], at[key] * 1000, str(at[key])))
        else:
            at[key] = copy.deepcopy(random.choice(VALUES))  # else a later change changes it
        return


def damage_lines(data: bytes, random: Random) -> bytes:
    """Lines of JSON: one of them changed, doubled, dropped or moved."""
    lines = data.splitlines(keepends=True)
    at, way = random.randrange(len(lines)), random.randrange(6)
    if way < 3:
        lines[at] = damage_json(lines[at], random).rstrip(b"\n") + b"\n"
    elif way == 3:
        lines.insert(random.randrange(len(lines)), lines[at])
    elif way == 4:
        random.shuffle(lines)
    else:
        return damage_bytes(data, random)
    return b"".join(lines)


# TOML

TOML = (
    *("true", "false", "0", "-1", "1", "3", "2147483648", "9" * 30, "9" * 5000, "0.5", "1e308"),
    *("nan", "inf", "-inf", '""', '"x"', '"../../x"', '"a\\nb"', '"tiny"', "[]", "[1, 2]", "{}"),
    *("[" * DEEP, "[" * 500 + "]" * 500, "{a = 1}", "1979-05-27", '"\\u0000"', f'"{"é" * 5000}"'),
    *("'''", "0x_", '["training.batch=64"]', '["a=b"]', '{ augment = "x" }', "[-1, 0, 8]"),
)


def damage_toml(data: bytes, random: Random) -> bytes:
    """One line's value changed, a line dropped, doubled or added; or its bytes."""
    way = random.randrange(10)
    if way < 2:
        return damage_bytes(data, random)
    lines = data.decode().splitlines()
    at = random.choice([number for number, line in enumerate(lines) if line.strip()])
    if way < 7 and "=" in lines[at]:
        lines[at] = f"{lines[at].partition('=')[0]}= {random.choice(TOML)}"
    elif way == 7:
        del lines[at]
    elif way == 8:
        lines.insert(random.randrange(len(lines)), lines[at])
    else:
        key = random.choice(("x", "a.b.c", '""', "[x]", "[variants.x]\nset", "[[variants]]\nset"))
        lines.insert(at, f"{key} = {random.choice(TOML)}")
    return "\n".join(lines).encode()


# Arrays: npz, mat, safetensors


def change_array(array: np.ndarray, random: Random) -> np.ndarray:
    """Another type, shape, or value."""
    flat = array.reshape(-1)
    ways: tuple[Callable[[], np.ndarray], ...] = (
        lambda: array.astype(random.choice(("f4", "f8", "i1", "u8", "c16", "?", "U3", "S1"))),
        lambda: array[: len(array) // 2] if array.ndim else array,
        lambda: array[:0] if array.ndim else array,
        lambda: flat,
        lambda: array[None],
        lambda: array.T,
        lambda: np.array(random.choice((0, -1, 2**31, 2**62, "x"))),
        lambda: np.full(array.shape, random.choice((np.nan, np.inf, 1e300))),
        lambda: np.full(array.shape, random.choice((-1, 0, 99, 2**31, 2**62)), "i8"),
        lambda: np.concatenate([flat, flat]).reshape(2, *array.shape),
        lambda: np.zeros((0,) * random.randrange(9)),
    )
    return random.choice(ways)()


def damage_npz(data: bytes, random: Random) -> bytes:
    """Arrays of other types and shapes, with pickles, headers that lie, members twice; or bytes."""
    if random.random() < 0.4:
        return damage_bytes(data, random)
    with np.load(io.BytesIO(data)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    name = random.choice(list(arrays))
    members = {key: _npy(value) for key, value in arrays.items()}
    way, method = random.randrange(8), random.choice((zipfile.ZIP_STORED, zipfile.ZIP_LZMA))
    if way < 3:
        members[name] = _npy(change_array(arrays[name], random))
    elif way == 3:
        del members[name]
    elif way == 4:
        members[name] = _npy(np.array([{"a": print}], object))
    elif way == 5:
        size = str(len(arrays[name])).encode()
        members[name] = members[name].replace(size, random.choice((b"-1", b"9" * 30, b"1" * 9)), 1)
    elif way == 6:
        members[name] = damage_bytes(members[name], random)
    else:
        members[random.choice(("../../x", "", "x" * 300, "images", "labels"))] = bytes(5)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive_out:
        for key, value in members.items():
            archive_out.writestr(f"{key}.npy", value)
        if way == 7:
            archive_out.comment = b"PK\x05\x06" * 8
    return out.getvalue()


def _npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def damage_mat(data: bytes, random: Random) -> bytes:
    """X and y of other types and shapes, or none of them; or its bytes."""
    if random.random() < 0.5:
        return damage_bytes(data, random)
    found = scipy.io.loadmat(io.BytesIO(data), variable_names=["X", "y"])
    arrays: dict[str, Any] = {"X": found["X"], "y": found["y"]}
    name = random.choice(("X", "y"))
    way = random.randrange(4)
    if way < 2:
        arrays[name] = change_array(arrays[name], random)
    elif way == 2:
        arrays[name] = random.choice(({"a": 1}, "text", [["cell", 1]], np.eye(3), 1))
    else:
        del arrays[name]
    out = io.BytesIO()
    scipy.io.savemat(out, arrays, do_compression=random.random() < 0.5)
    return out.getvalue()


def damage_tensors(data: bytes, random: Random) -> bytes:
    """A header that lies, tensors of other types and shapes, other metadata; or its bytes."""
    if random.random() < 0.5:
        return damage_bytes(data, random)
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    way = random.randrange(4)
    if way == 0:
        change_json(header, random)
    elif way == 1:  # without hashes, as older versions wrote it
        tensors = load(data)
        name = random.choice(sorted(tensors))
        changed = np.ascontiguousarray(change_array(tensors[name], random))
        if changed.dtype.kind in "fiub":
            tensors[name] = changed
        else:
            del tensors[name]
        inner = json.loads(header["__metadata__"]["synth"])
        inner.pop("tensors_sha256", None), inner.pop("metadata_sha256", None)
        return save(tensors, {"synth": json.dumps(inner)})
    else:
        inner = json.loads(header["__metadata__"]["synth"])
        if way == 2:
            inner.pop("tensors_sha256", None), inner.pop("metadata_sha256", None)
        change_json(inner, random)
        text = json.dumps(inner).replace('"@deep@"', "[" * DEEP + "]" * DEEP)
        header["__metadata__"]["synth"] = text
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


# Images


def damage_image(data: bytes, random: Random) -> bytes:
    """An image of another mode, size or format; or its bytes."""
    if random.random() < 0.5:
        return damage_bytes(data, random)
    mode = random.choice(("1", "L", "P", "RGBA", "CMYK", "I", "F", "LA", "I;16", "YCbCr", "HSV"))
    size = random.choice(((1, 1), (1, 5000), (32, 32), (33, 31), (3000, 3000), (64, 64)))
    suited = {"CMYK": "TIFF", "F": "TIFF", "YCbCr": "JPEG", "HSV": "TIFF", "I": "TIFF"}
    form = suited.get(mode) or random.choice(("PNG", "TIFF", "WEBP" if mode == "RGBA" else "PNG"))
    out = io.BytesIO()
    image = Image.new(mode, size)
    if mode == "HSV":
        image = image.convert("RGB")
    image.save(out, form)
    changed = out.getvalue()
    if form == "PNG" and random.random() < 0.3:  # a header that lies about the size
        changed = changed[:16] + bytes(random.randrange(256) for _ in range(8)) + changed[24:]
    return changed
