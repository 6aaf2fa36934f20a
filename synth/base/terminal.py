"""Text for a terminal of 80 columns."""

from __future__ import annotations

from textwrap import fill

COLUMNS = 80


def fit(text: str, indent: int = 0) -> str:
    """One paragraph in lines of at most `COLUMNS`. Those after the first are indented. Only a word
    that is too long for a line is cut."""
    return fill(text, COLUMNS, subsequent_indent=" " * indent, break_on_hyphens=False)
