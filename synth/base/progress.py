"""Messages and progress bars on stderr. Bars are hidden if stderr is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

from rich import progress
from rich.console import Console
from rich.text import Text

CONSOLE = Console(stderr=True, highlight=False, soft_wrap=True)
_SHOWN: ContextVar[progress.Progress | None] = ContextVar(
    "the display that is on screen", default=None
)


class _Rate(progress.ProgressColumn):
    def render(self, task: progress.Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.3g} {task.fields['unit']}/s")


def say(message: str) -> None:
    """Prints one line, above any progress bar."""
    CONSOLE.print(message, markup=False)


def hide_bars() -> None:
    """This process shows no bars from now on. Its messages go on."""
    _SHOWN.set(progress.Progress(disable=True))


@contextmanager
def progress_bar(title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Shows a bar while the block runs. Yields a function: call it with the amount of new progress.

    A bar that starts inside the block of another one is shown below it.
    """
    shown = _SHOWN.get()
    if shown is not None:
        task = shown.add_task(title, total=total, unit=unit)
        yield partial(shown.advance, task)
        shown.remove_task(task)
        return
    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        _Rate(),
        progress.TimeRemainingColumn(),
    )
    hidden = not CONSOLE.is_terminal
    with progress.Progress(*columns, console=CONSOLE, transient=True, disable=hidden) as display:
        token = _SHOWN.set(display)
        try:
            with progress_bar(title, total, unit) as advance:
                yield advance
        finally:
            _SHOWN.reset(token)
