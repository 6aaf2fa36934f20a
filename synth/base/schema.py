"""Typed JSON and TOML. A schema is a pydantic dataclass, configured as `CLOSED` or `OPEN`.

An error names the value and the reason. If a key is unknown, it names the nearest known one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from synth.base.errors import SynthError

T = TypeVar("T")
Count = Annotated[int, Field(ge=1, lt=1 << 63)]
Size = Annotated[int, Field(ge=1, le=1 << 16)]  # of a layer
Whole = Annotated[int, Field(ge=0, lt=1 << 63)]
Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Proportion = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]
# CLOSED refuses unknown keys. OPEN ignores them, because other versions may have written them.
CLOSED = ConfigDict(extra="forbid", validate_by_name=True, validate_by_alias=True)
OPEN = ConfigDict(extra="ignore", validate_by_name=True, validate_by_alias=True)


def on_disk(key: str) -> Any:
    """For `Annotated`: the field has this key in files, instead of its name."""
    return Field(validation_alias=key, serialization_alias=key)


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def dump(value: Any) -> dict[str, Any]:
    """An instance of a schema as a JSON object, with the keys of its file."""
    made: dict[str, Any] = _adapter(type(value)).dump_python(value, mode="json", by_alias=True)
    return made


def parse(
    kind: type[T], value: Any, what: str, error: type[SynthError] = SynthError, strict: bool = False
) -> T:
    """The inverse of `dump`. Raises `error` with a message that begins with `what`.

    strict: converts no types, for files that users write. A date of TOML is a text.
    """
    adapter: TypeAdapter[T] = _adapter(kind)
    try:
        if strict:
            return adapter.validate_json(json.dumps(value, default=str), strict=True)
        return adapter.validate_python(value)
    except ValidationError as found:
        raise error(f"{what}: {_explain(kind, found)}") from found


def _explain(kind: type, found: ValidationError) -> str:
    """The first error as a clause. For an unknown key it names the nearest known one."""
    first = found.errors(include_url=False)[0]
    key, reason = ".".join(map(str, first["loc"])), first["msg"]
    reason = reason.removeprefix("Value error, ")
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = nearest(key, list(all_keys(kind)))
        return f"there is no {key}; did you mean {near}?"
    if first["type"] in ("missing", "missing_argument"):
        return f"{key} is missing"
    if first["type"] in ("dataclass_type", "dataclass_exact_type"):
        inside = [name for name in all_keys(kind) if name.startswith(f"{key}.")]
        return f"{key} is a group; set a value in it, such as {inside[0]}" if inside else reason
    held = repr(first["input"])
    held = held if len(held) < 200 else f"{held[:200]}…"
    shown = f"{key} is {held}; " if key and first["type"] != "value_error" else ""
    return f"{shown}{reason[0].lower()}{reason[1:]}"


def nearest(key: str, known: list[str]) -> str:
    """The known key with the most similar last word. The whole key decides between several."""
    words = list(dict.fromkeys(name.split(".")[-1] for name in known))
    word = get_close_matches(key.split(".")[-1], words, 1, cutoff=0.0)[0]
    similar = [name for name in known if name.split(".")[-1] == word]
    return get_close_matches(key, similar, 1, cutoff=0.0)[0]


def all_keys(kind: Any, above: str = "") -> Iterator[str]:
    """The keys of all values in a schema, such as `generator.norm.epsilon`."""
    for key, field in kind.__pydantic_fields__.items():
        name, inner = above + (field.serialization_alias or key), field.annotation
        if is_dataclass(inner) and fields(inner):
            yield from all_keys(inner, f"{name}.")
        else:
            yield name
