"""Changing a recipe's dials from text: `--set training.batch=64`, or a TOML file."""

from __future__ import annotations

import math
import sys
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from synth.base.errors import SynthError, UsageError
from synth.published import find_recipe
from synth.recipes import Recipe

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
    return _with_dial(recipe, key.strip(), text.strip(), f"--set {assignment}")


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
    base = value.pop("base", "cdcgan")
    if not isinstance(base, str):
        raise UsageError(f"--recipe {path}: base is {base!r}; give the name of a recipe")
    try:
        recipe = find_recipe(base, None)
    except UsageError as error:
        raise UsageError(f"--recipe {path}: base {str(error).removeprefix('--recipe ')}") from None
    recipe = replace(recipe, name=path.stem, source=path.name)
    for dial, leaf in _leaves(value):
        recipe = _with_dial(recipe, dial, leaf, f"--recipe {path}")
    return recipe


def _leaves(value: dict[str, Any], above: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, item in value.items():
        name = above + key
        leaves += _leaves(item, f"{name}.") if isinstance(item, dict) else [(name, item)]
    return leaves


def _with_dial(recipe: Recipe, dial: str, value: Any, option: str) -> Recipe:
    known = all_dials(recipe)
    if dial not in known:
        inside = [name for name in known if name.startswith(f"{dial}.")]
        if inside:
            raise UsageError(f"{option}: {dial} is a group; set a dial such as {inside[0]}")
        around = [name for name in known if dial.startswith(f"{name}.")]
        if around:
            raise UsageError(f"{option}: {around[0]} is a dial, not a group; set {around[0]}")
        raise UsageError(
            f"{option}: there is no dial {dial}; did you mean {_nearest(dial, known)}?"
        )
    changed: Recipe = _replaced(recipe, dial.split("."), value, f"{option}: {dial}")
    return changed


def _nearest(dial: str, known: list[str]) -> str:
    """The likest by its last word; among those, by the whole."""
    words = list(dict.fromkeys(name.split(".")[-1] for name in known))
    word = get_close_matches(dial.split(".")[-1], words, 1, cutoff=0.0)[0]
    likest = [name for name in known if name.split(".")[-1] == word]
    return get_close_matches(dial, likest, 1, cutoff=0.0)[0]


def _replaced(part: Any, keys: list[str], value: Any, what: str) -> Any:
    key, *rest = keys
    if rest:
        new = _replaced(getattr(part, key), rest, value, what)
    else:
        new = _parsed(value, get_type_hints(type(part))[key], what)
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
            near = get_close_matches(str(value), get_args(kind), 1)
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
    if kind is bool:
        if str(value).lower() not in ("true", "false"):
            raise UsageError(f"{what} is {value!r}; choose true or false")
        return str(value).lower() == "true"
    if kind is str:
        if not isinstance(value, str) or not value:
            raise UsageError(f"{what} is {value!r}; give a text")
        return value
    return _number(value, kind, what)


def _number(value: Any, kind: type[int] | type[float], what: str) -> int | float:
    try:
        number = kind(value)
        exact = isinstance(value, str) or number == value  # int() would cut 64.7
        if isinstance(value, bool) or not exact or not 0 <= number < math.inf:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise UsageError(
            f"{what} is {value!r}; give {'a whole number' if kind is int else 'a number'}, "
            "0 or more"
        ) from None
    return number
