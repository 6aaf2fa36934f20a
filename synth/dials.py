"""Changing a recipe's dials from text: `--set training.batch=64`, or a TOML file."""

from __future__ import annotations

import difflib
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from synth.errors import SynthError, UsageError
from synth.recipes import Recipe, find_recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def set_dial(recipe: Recipe, assignment: str) -> Recipe:
    """`recipe` with one dial changed, e.g. by `training.batch=64` or `generator.widths=64,32`.

    Raises `UsageError` that names the nearest right key or the right values.
    """
    key, equals, text = assignment.partition("=")
    if not equals:
        raise UsageError(f"--set {assignment}: give KEY=VALUE, such as training.batch=64")
    changed: Recipe = _replaced(
        recipe, key.strip().split("."), text.strip(), f"--set {assignment}", ""
    )
    return changed


def read_recipe(path: Path) -> Recipe:
    """A recipe from TOML: `base` names the one to start from; tables and keys change its dials.

    Without a `name` it is called after the file.
    """
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SynthError(f"--recipe {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise SynthError(f"--recipe {path}: is no TOML ({error})") from error
    recipe = find_recipe(value.pop("base", None), None)
    recipe = replace(recipe, name=path.stem, source=path.name)
    for keys, leaf in _leaves(value):
        recipe = _replaced(recipe, keys, leaf, f"--recipe {path}", "")
    return recipe


def _leaves(value: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[list[str], Any]]:
    leaves: list[tuple[list[str], Any]] = []
    for key, item in value.items():
        if isinstance(item, dict):
            leaves += _leaves(item, (*above, key))
        else:
            leaves.append(([*above, key], item))
    return leaves


def _replaced(part: Any, keys: list[str], value: Any, option: str, above: str) -> Any:
    names = [field.name for field in fields(part)]
    key, rest = keys[0], keys[1:]
    if key not in names:
        known = all_dials(part, above)
        asked = above + ".".join(keys)
        leaf = [name for name in known if name.split(".")[-1] == keys[-1]]
        near = leaf or difflib.get_close_matches(asked, known, 1, cutoff=0.0)
        raise UsageError(f"{option}: there is no dial {asked}; did you mean {near[0]}?")
    current = getattr(part, key)
    if is_dataclass(current):
        if not rest:
            inner = f"{above}{key}.{fields(current)[0].name}"
            raise UsageError(f"{option}: {above}{key} is a group; set a dial such as {inner}")
        new = _replaced(current, rest, value, option, f"{above}{key}.")
    elif rest:
        raise UsageError(f"{option}: {above}{key} is a dial, not a group; set {above}{key}")
    else:
        new = _parsed(value, get_type_hints(type(part))[key], f"{option}: {above}{key}")
    return replace(part, **{key: new})


def all_dials(part: Any, above: str = "") -> list[str]:
    """The names of all dials below a recipe or a part of it, e.g. `generator.norm.epsilon`."""
    names = []
    for field in fields(part):
        value = getattr(part, field.name)
        name = above + field.name
        names += all_dials(value, f"{name}.") if is_dataclass(value) else [name]
    return names


def _parsed(value: Any, kind: Any, what: str) -> Any:
    """`value`, a text or what TOML gave, as a dial of this type."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            near = difflib.get_close_matches(str(value), get_args(kind), 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError(f"{what} is {value!r}; {hint}choose {' or '.join(get_args(kind))}")
        return value
    if get_origin(kind) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        inner = get_args(kind)
        same = inner[-1] is Ellipsis
        if not isinstance(parts, list) or not parts or (not same and len(parts) != len(inner)):
            raise UsageError(f"{what} is {value!r}; give {'numbers' if same else len(inner)}, …")
        return tuple(_parsed(part, inner[0], what) for part in parts)
    assert not isinstance(kind, UnionType)
    if kind is bool:
        truths = {"true": True, "false": False, True: True, False: False}
        if value not in truths:
            raise UsageError(f"{what} is {value!r}; choose true or false")
        return truths[value]
    try:
        number = kind(value)
        if isinstance(value, bool) or (kind is not str and (number != number or number < 0)):
            raise ValueError
    except (TypeError, ValueError):
        raise UsageError(
            f"{what} is {value!r}; give {'a whole number' if kind is int else 'a number'}, "
            "0 or more"
        ) from None
    return number
