"""Messages and progress bars on stderr. If it is no terminal, bars become a line now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from threading import Event, Thread

from rich import progress
from rich.console import Console
from rich.text import Text

CONSOLE = Console(stderr=True, highlight=False, soft_wrap=True)
EVERY = 30.0  # seconds between two lines about progress
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
def progress_bar(
    title: str, total: int, unit: str, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """Shows a bar while the block runs. Yields a function: call it with the amount of new progress.

    A bar that starts inside the block of another one is shown below it. done: the amount of
    progress that was made before.
    """
    shown = _SHOWN.get()
    if shown is not None:
        task = shown.add_task(title, total=total, completed=done, unit=unit)
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
    display = progress.Progress(*columns, console=CONSOLE, transient=True, disable=hidden)
    with display, _told(display) if hidden else nullcontext():
        token = _SHOWN.set(display)
        try:
            with progress_bar(title, total, unit, done) as advance:
                yield advance
        finally:
            _SHOWN.reset(token)


@contextmanager
def _told(display: progress.Progress) -> Iterator[None]:
    """Says every `EVERY` seconds how far all bars are. A thread does it, because some steps take
    longer."""
    ended = Event()

    def tell() -> None:
        while not ended.wait(EVERY):
            say("; ".join(map(_describe, display.tasks)))

    thread = Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _describe(task: progress.Task) -> str:
    unit, left = task.fields["unit"], task.time_remaining
    text = f"{task.description}: {task.completed:,.0f} of {task.total:,.0f} {unit}"
    if task.speed is not None:
        text += f", {task.speed:,.3g} {unit}/s"
    return text if left is None else f"{text}, {timedelta(seconds=int(left))} left"
