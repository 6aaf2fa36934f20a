"""Texts from users and from files that become paths, Markdown, YAML or cells of a table.

They are checked where they come in, and escaped where they go out.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

LONGEST = 240  # bytes of a file name, which leaves room for what is added


def check_line(text: str) -> str:
    """`text`, if it is one line that can be printed. Raises ValueError otherwise."""
    if not text.isprintable():
        raise _wrong("it has line breaks or other characters that cannot be printed")
    return text


def check_file_name(text: str) -> str:
    """`text`, if it can name a visible file in a folder, and nothing elsewhere. Raises ValueError
    otherwise."""
    if check_line(text).strip() == "" or text.startswith(".") or set(text) & {"/", "\\"}:
        raise _wrong("it cannot be the name of a folder")
    if len(text.encode()) > LONGEST:
        raise _wrong("it is too long for the name of a folder")
    return text


def _wrong(reason: str) -> ValueError:
    """`schema` puts the name of the value before the reason."""
    return PydanticCustomError("text", reason)


Line = Annotated[str, AfterValidator(check_line)]
Name = Annotated[str, Field(min_length=1), AfterValidator(check_line)]
FileName = Annotated[str, AfterValidator(check_file_name)]


def in_markdown(text: object) -> str:
    """Text that stays in its cell, and is neither HTML nor an image there."""
    line = " ".join(str(text).split())
    return line.replace("|", r"\|").replace("<", "&lt;").replace("![", r"!\[")


def in_csv(text: object) -> object:
    """A text that no spreadsheet takes for a formula (OWASP, CSV injection). Numbers stay."""
    return f"'{text}" if isinstance(text, str) and text.startswith(("=", "+", "-", "@")) else text
