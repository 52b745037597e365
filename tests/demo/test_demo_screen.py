"""What the demo shows, from ends made by hand."""

from __future__ import annotations

import io

from rich.console import Console

from geres.cli.demo_screen import Tally, Watch, slowest, totals
from geres.model.states import TaskState
from geres.model.tasks import Attempt, Usage


def end(number, *, wall=0.1, state=TaskState.SUCCEEDED, rss=None):
    usage = Usage(wall_seconds=wall, user_seconds=wall / 2, system_seconds=wall / 4, max_rss_bytes=rss)
    return Attempt(task_id=f"1.{number}", attempt=1, state=state, name=f"file {number}", usage=usage)


def shown(thing):
    console = Console(file=io.StringIO(), width=100)
    console.print(thing)
    return console.file.getvalue()


def test_a_tally_adds_up_ends_and_keeps_the_slowest():
    tally = Tally(total=20)

    tally.add([end(number, wall=number / 10) for number in range(1, 11)], running=2)
    tally.add([end(11, wall=9.0, state=TaskState.FAILED, rss=50 << 20)], running=1)

    assert (tally.done, tally.failed, tally.running) == (11, 1, 1)
    assert tally.largest_bytes == 50 << 20
    assert round(tally.user_seconds, 3) == round((5.5 + 9.0) / 2, 3)
    assert [name for _, name in tally.slowest] == ["file 11", "file 10", "file 9", "file 8", "file 7"]
    assert tally.left_seconds > 0
    assert "file 11" in shown(slowest(tally))


def test_the_table_of_the_end_has_all_that_was_promised():
    tally = Tally(total=1)
    tally.add([end(1, wall=4.0)], running=0)
    tally.seconds = 2.0

    text = shown(totals(tally, read_bytes=3 << 20, own_bytes=150 << 20, cpus=2, checked="all 1 equal"))

    for part in ("1 succeeded, 0 failed", "3.0M", "2.0 s from", "0 tasks/s", "3.0 s (2.0 user, 1.0 system)"):
        assert part in text
    assert "75% of 2 cpus" in text
    assert "150M" in text
    assert "all 1 equal" in text


def test_without_a_terminal_progress_is_lines_at_most_every_two_seconds():
    console = Console(file=io.StringIO(), width=100)
    tally = Tally(total=3)
    with Watch(console, 3) as watch:
        for seconds, number in ((2.5, 1), (2.6, 2), (2.7, 3)):
            tally.add([end(number)], running=1)
            tally.seconds = seconds
            watch.show(tally)

    lines = console.file.getvalue().splitlines()

    assert len(lines) == 2
    assert lines[0].startswith("  1 of 3 done, 0 failed, 1 running, ")
    assert lines[0].endswith("left")
    assert lines[1].startswith("  3 of 3 done")


def test_on_a_terminal_progress_is_a_bar():
    console = Console(file=io.StringIO(), width=100, force_terminal=True, legacy_windows=False)
    tally = Tally(total=2)
    with Watch(console, 2) as watch:
        tally.add([end(1), end(2)], running=0)
        watch.show(tally)

    text = console.file.getvalue()
    assert "2/2" in text
    assert "0 failed" in text
