"""`geres demo`: a cluster of its own, real work on real files, and a check of every result."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from rich.console import Console
from rich.markup import escape

from geres.cli.demo_screen import Tally, Watch, slowest, totals
from geres.cli.demo_work import MOST_TASKS, Method, Work, choose_method, collect
from geres.errors import GeresError, Unreachable
from geres.sdk.client import Client
from geres.sdk.group import Tasks
from geres.sdk.job import Job

_START_SECONDS = 30.0
_STOP_SECONDS = 30.0
_LOOK_SECONDS = 0.1
_READERS = 4
_FAILING = {
    "name": "fails on purpose",
    "shell": "echo \"attempt $GERES_ATTEMPT: this line is stdout\"; echo 'I fail on purpose' >&2; exit 3",
    "retries": 1,
}
_NEXT = (
    ("geres up --detach", "start a cluster that stays"),
    ("geres run hostname", "run a command on it, as if it ran here"),
    ("geres submit --array 1-10 -- sh -c 'sleep {}'", "ten tasks in one job"),
    ("geres top", "watch them"),
    ("geres why 1.1", "why a task is as it is: waiting, failed or done"),
    ("geres down", "stop the cluster"),
)


@dataclass(frozen=True)
class _Place:
    """The demo's own cluster."""

    home: Path
    client: Client
    keeper: psutil.Process

    @property
    def own_bytes(self) -> int:
        """Memory of all its parts."""
        total = 0
        for process in [self.keeper, *self.keeper.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if "geres" in " ".join(process.cmdline()):
                    total += process.memory_info().rss
        return total


def run_demo(most: int = MOST_TASKS, console: Console | None = None) -> int:
    """Run at most `most` tasks; the exit status: 0 where every result was right, 130 after Ctrl-C.

    Whatever happens, the cluster that it started is stopped and its folder removed.
    """
    console = console or Console(highlight=False)
    try:
        with _signals_as_interrupt():
            return _demo(console, most)
    except KeyboardInterrupt:
        console.print("interrupted; the demo's cluster is stopped")
        return 130


def _demo(console: Console, most: int) -> int:
    works = collect(most)
    method = choose_method()
    if not works:
        raise GeresError("this Python has no .py files to work on")
    if method.missing:
        console.print(f"{' and '.join(method.missing)} missing here: Python does the work, only slower")
    console.print(
        f"{len(works):,} tasks: each compresses a Python file of this machine and prints the SHA-256 of the "
        "result.  One more fails on purpose.",
        soft_wrap=True,
    )
    with _cluster(console) as place:
        job = place.client.create_job("demo")
        tally, tasks = _run(console, place.client, job, works, method)
        own_bytes = place.own_bytes
        wrong = _compare(console, place.client, tasks, works, method)
        checked = (
            f"{len(works) - len(wrong):,} of {len(works):,} equal those computed here without geres"
            if wrong
            else f"all {len(works):,} equal those computed here without geres"
        )
        console.print()
        console.print(
            totals(
                tally,
                read_bytes=sum(work.size_bytes for work in works),
                own_bytes=own_bytes,
                cpus=os.cpu_count() or 1,
                checked=checked,
            )
        )
        console.print()
        console.print(slowest(tally))
        told = _dead_letters(console, place.client)
    for path in wrong[:5]:
        console.print(f"wrong sum: {escape(path)}", style="red")
    _say_next(console)
    return 0 if not wrong and tally.failed == 1 and told else 1


def _run(
    console: Console, client: Client, job: Job, works: Sequence[Work], method: Method
) -> tuple[Tally, Tasks]:
    """Submit all, and watch until the last has ended."""
    rows: list[dict[str, Any]] = [{"shell": method.line(work), "name": _name(work.label)} for work in works]
    tally = Tally(total=len(rows) + 1)
    tasks = client.submit_many([*rows, _FAILING], job=job)
    console.print(f"job {job.id} has them, {time.monotonic() - tally.begun:.2f} s after the submit began\n")
    after = 0
    with Watch(console, tally.total) as watch:
        while tally.done < tally.total:
            page = client.results_page(job.id, after=after, limit=10_000, wait_seconds=_LOOK_SECONDS)
            after = page.last
            tally.add(page.items, running=client.job_info(job.id).counts.running)
            watch.show(tally)
            time.sleep(_LOOK_SECONDS)
    return tally, tasks


def _compare(
    console: Console, client: Client, tasks: Tasks, works: Sequence[Work], method: Method
) -> list[str]:
    """The labels of those whose sum is not the one that is computed here."""

    def printed(task_id: str) -> str:
        words = b"".join(client.logs(task_id)).split()
        return words[0].decode("ascii", "replace") if words else ""

    with console.status("reading every task's output, and computing the same without geres"):
        with ThreadPoolExecutor(_READERS) as threads:
            found = list(threads.map(printed, list(tasks.ids())[: len(works)]))
        wanted = method.sums(works)
    return [work.label for work, one, other in zip(works, found, wanted, strict=True) if one != other]


def _dead_letters(console: Console, client: Client) -> bool:
    """Show the task that failed on purpose; False where it is not there, or not as it should be."""
    console.print("\n[bold]dead letters[/bold]: tasks whose retries are used up (`geres dead-letter`)")
    dead = list(client.tasks(dead=True))
    for task in dead:
        info = client.task_info(task.id)
        why = client.why(task.id)
        lines = [f"{task.id}  {info.name}  {len(info.attempts)} attempts, exit {info.exit_code}"]
        for attempt in info.attempts:
            for stream in ("stdout", "stderr"):
                written = b"".join(client.logs(task.id, stream=stream, attempt=attempt.attempt))
                lines += [f"  {stream}: {line}" for line in written.decode(errors="replace").splitlines()]
        lines += [f"  why: {why.summary}", *(f"  {line}" for line in why.lines)]
        console.print("\n".join(f"  {line}" for line in lines), markup=False, soft_wrap=True)
    return [(task.exit_code, task.attempt) for task in dead] == [(3, 2)]


def _say_next(console: Console) -> None:
    console.print("\n[bold]what to try next[/bold]")
    if shutil.which("geres") is None:  # as after `make demo`: the environment is not active
        folder = os.path.relpath(Path(sys.executable).parent)
        console.print(
            f'  export PATH="$PWD/{escape(folder)}:$PATH"', "so that your shell finds geres", soft_wrap=True
        )
    width = max(len(command) for command, _ in _NEXT)
    for command, words in _NEXT:
        console.print(f"  {escape(command.ljust(width))}  {words}", soft_wrap=True)


def _name(label: str) -> str:
    """A task's name: at most 200 characters, the end of the path."""
    return label[-200:]


@contextlib.contextmanager
def _cluster(console: Console) -> Iterator[_Place]:
    """`geres up` in a temporary home; stopped and removed at the end, also after Ctrl-C."""
    home = Path(tempfile.mkdtemp(prefix="geres-demo-"))
    env = {name: value for name, value in os.environ.items() if not name.startswith("GERES_")}
    env["GERES_HOME"] = str(home)
    keeper: subprocess.Popen[bytes] | None = None
    try:
        with open(home / "demo.log", "wb") as log:
            keeper = subprocess.Popen(
                [sys.executable, "-m", "geres", "up"],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is ours: we stop it in order
            )
        client = _connect(home, keeper)
        console.print(f"a cluster of its own runs at {client.url} (GERES_HOME={home})", soft_wrap=True)
        yield _Place(home, client, psutil.Process(keeper.pid))
        client.close()
    finally:
        with _no_interrupt():
            if keeper is not None:
                _stop(keeper, env)
            shutil.rmtree(home, ignore_errors=True)


def _connect(home: Path, keeper: subprocess.Popen[bytes]) -> Client:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            client = Client(home=home, patience=0)
            if client.nodes():
                return Client(home=home)
        except GeresError:
            pass  # not there yet
        if keeper.poll() is not None or time.monotonic() > deadline:
            said = (home / "demo.log").read_text(errors="replace").strip().splitlines()
            last = said[-1].removeprefix("geres: ") if said else "it said nothing"
            raise Unreachable(f"the demo's cluster did not start: {last}")
        time.sleep(0.05)


def _stop(keeper: subprocess.Popen[bytes], env: Mapping[str, str]) -> None:
    """`geres down --now`; what does not end by it is killed."""
    try:
        family = psutil.Process(keeper.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    down = [sys.executable, "-m", "geres", "down", "--now"]
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(down, env=env, capture_output=True, timeout=_STOP_SECONDS)
        keeper.wait(_STOP_SECONDS)
    if keeper.poll() is None:
        keeper.kill()
        keeper.wait()
    for process in psutil.wait_procs(family, timeout=5)[1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@contextlib.contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """SIGTERM and a lost terminal end the demo as Ctrl-C does, so that its cluster goes too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handlers({signal.SIGTERM: interrupt, signal.SIGHUP: interrupt}):
        yield


@contextlib.contextmanager
def _no_interrupt() -> Iterator[None]:
    """A second Ctrl-C must not leave half of the cluster behind."""
    ignored = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_IGN)
    with _handlers(ignored):
        yield


@contextlib.contextmanager
def _handlers(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
