"""One way to show progress: what is being done, how far, how fast, and how long it will still take."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console(stderr=True)


class Advance(Protocol):
    """Callback that moves a progress bar on by `n` units."""

    def __call__(self, n: float = 1, /) -> None:
        """Moves the bar on by `n` units."""
        ...


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:,.1f} {task.fields['unit']}/s", style="progress.data.speed")


@contextmanager
def progress(what: str, total: int, *, unit: str, done: int = 0) -> Iterator[Advance]:
    """Shows a bar with rate and time left on a terminal, or one line at the end where there is no terminal.

    Args:
        what: What is being done, a few words.
        total: How many units there are.
        unit: Name of a unit, for the rate.
        done: Units finished by an earlier run.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, completed=done, unit=unit)
        yield lambda n=1: bar.advance(task, n)
        elapsed = bar.tasks[0].elapsed or 0.0
    worked = total - done
    if elapsed < 1:
        console.print(f"  {what}: {worked} {unit}, at once", highlight=False, markup=False)
    else:
        rate = f"{worked / elapsed:,.1f} {unit}/s"
        console.print(f"  {what}: {worked} {unit} in {elapsed:.0f} s, {rate}", highlight=False, markup=False)
