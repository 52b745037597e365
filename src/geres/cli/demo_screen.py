"""What `geres demo` shows: progress while it runs, then tables; plain lines where there is no terminal."""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from geres.model.states import TaskState
from geres.model.tasks import Attempt
from geres.model.units import show_size

_SECONDS_BETWEEN_LINES = 2.0
_SLOWEST = 5


@dataclass
class Tally:
    """What the ends of the tasks add up to."""

    total: int
    begun: float = field(default_factory=time.monotonic)
    done: int = 0
    failed: int = 0
    running: int = 0
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    largest_bytes: int | None = None  #: None while no task was larger than the process that started it
    seconds: float = 0.0
    slowest: list[tuple[float, str]] = field(default_factory=list)  #: seconds and name, the slowest first

    def add(self, ends: list[Attempt], running: int) -> None:
        """Take over ends that just came, and how many run now."""
        self.running = running
        self.seconds = time.monotonic() - self.begun
        for end in ends:
            self.done += 1
            self.failed += end.state is not TaskState.SUCCEEDED
            self.user_seconds += end.usage.user_seconds
            self.system_seconds += end.usage.system_seconds
            if (used := end.usage.max_rss_bytes) is not None:
                self.largest_bytes = max(used, self.largest_bytes or 0)
        times = [(end.usage.wall_seconds, end.name or end.task_id) for end in ends]
        self.slowest = heapq.nlargest(_SLOWEST, [*self.slowest, *times])

    @property
    def rate(self) -> float:
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def left_seconds(self) -> float:
        return (self.total - self.done) / self.rate if self.rate else 0.0

    @property
    def cpu_seconds(self) -> float:
        return self.user_seconds + self.system_seconds


class Watch:
    """Shows a Tally as it grows: a bar on a terminal, else a line every two seconds."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._shown_at = 0.0
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("running"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[words]}"),
                console=console,
            )
            self._row = self._bar.add_task("", total=total, words="")

    def __enter__(self) -> Watch:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, tally: Tally) -> None:
        words = (
            f"{tally.failed} failed, {tally.running} running, {tally.rate:,.0f}/s, "
            f"{tally.left_seconds:.0f} s left"
        )
        if self._bar:
            self._bar.update(self._row, completed=tally.done, words=words)
        elif tally.done == tally.total or tally.seconds - self._shown_at >= _SECONDS_BETWEEN_LINES:
            self._shown_at = tally.seconds
            line = f"  {tally.done:,} of {tally.total:,} done, {words}"
            self._console.print(line, highlight=False, soft_wrap=True)


def totals(tally: Tally, *, read_bytes: int, own_bytes: int, cpus: int, checked: str) -> Table:
    """The table of the end.  `own_bytes` is what geres itself takes, `checked` the words about the sums."""
    table = _table("what", "result")
    share = tally.cpu_seconds / (tally.seconds * cpus) if tally.seconds else 0.0
    rows = {
        "tasks": f"{tally.done - tally.failed:,} succeeded, {tally.failed:,} failed",
        "files read": show_size(read_bytes),
        "time": f"{tally.seconds:.1f} s from the submit to the last end",
        "throughput": f"{tally.rate:,.0f} tasks/s",
        "CPU time of tasks": (
            f"{tally.cpu_seconds:.1f} s ({tally.user_seconds:.1f} user, {tally.system_seconds:.1f} system), "
            f"{share:.0%} of {cpus} cpus"
        ),
        "peak memory of a task": (
            show_size(tally.largest_bytes) if tally.largest_bytes else "below what can be told, some MB"
        ),
        "memory of geres itself": show_size(own_bytes),
        "sums": checked,
    }
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def slowest(tally: Tally) -> Table:
    table = _table("slowest tasks", "seconds")
    for seconds, name in tally.slowest:
        table.add_row(name, f"{seconds:.3f}")
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
