"""Runs the start task of the node's pool: once a boot and version of it, before the node takes tasks.

It runs as the agent's own account, in a process group of its own.  An agent that finds one under way, of an
agent that died, ends it and begins anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import select
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import msgspec
import psutil

from geres.agent.supervisor import boot_id
from geres.files import write_private
from geres.model.units import plural, show_duration
from geres.model.wire import StartOrder, StartReport

log = logging.getLogger("geres.agent.start_task")

LOG_NAME = "start-task.log"
_MARK = "GERES_START_TASK"
_MOST_LOG_BYTES = 1 << 20  #: of each of two files
_TAIL_BYTES = 1000
_LOOK_SECONDS = 0.1
_LAST_WORDS_SECONDS = 0.5  #: for what still comes when it has ended: something in the background has its pipe
_GRACE_SECONDS = 5.0
_CLOSE_GRACE_SECONDS = 1.0
_CLOSE_SECONDS = 5.0
_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0


class _Record(msgspec.Struct):
    """What stands on disk."""

    boot_id: str = ""
    digest: str = ""
    is_done: bool = False
    mark: str = ""  #: in the environment of what runs


class StartTask:
    """One for each agent; its methods belong to the event loop, the work to a thread of its own.

    `tell` is called, on the event loop, with each new state.
    """

    def __init__(
        self,
        folder: Path,
        logs: Path,
        environment: Mapping[str, str],
        cwd: Path,
        tell: Callable[[StartReport], None],
    ) -> None:
        """`folder` is the agent's; `environment` is all that the start task gets, beside its own."""
        self._path, self._log = folder / "start-task.json", _Log(logs / LOG_NAME)
        self._environment, self._cwd, self._tell = dict(environment), cwd, tell
        self._boot_id = boot_id()
        self._record = self._read()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.report = StartReport()
        if self._record.is_done and self._record.boot_id == self._boot_id:
            self.report = StartReport(self._record.digest, "done")

    def begin(self, order: StartOrder | None) -> None:
        """The server says what the start task is, at each connection; None: there is none."""
        if order is not None and order.digest == self.report.digest:
            self._tell(self.report)
        elif order is not None:
            self._say(StartReport(order.digest, "running"))
            self._work(order)
        else:
            was = self.report.state
            if was in ("running", "failed"):
                self._say(StartReport())
            if was == "running" or self._record.mark:
                self._work(None)

    def close(self) -> None:
        """End what runs; the next agent begins it anew."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)

    def _say(self, report: StartReport) -> None:
        self.report = report
        self._tell(report)

    def _work(self, order: StartOrder | None) -> None:
        """Have a thread do it, when the one before has ended what it does."""
        before, loop = self._thread, asyncio.get_running_loop()
        self._stop.set()
        stop = self._stop = threading.Event()

        def work() -> None:
            if before is not None:
                before.join()
            report = self._run(order, stop)
            if report is not None and not stop.is_set():
                loop.call_soon_threadsafe(self._over, report)

        self._thread = threading.Thread(target=work, name="start-task", daemon=True)
        self._thread.start()

    def _over(self, report: StartReport) -> None:
        if report.digest == self.report.digest:
            self._say(report)

    # -- in the thread

    def _run(self, order: StartOrder | None, stop: threading.Event) -> StartReport | None:
        """All tries.  None where it was stopped, or there is nothing to run."""
        if self._record.mark:
            _kill_marked(self._record.mark)
            self._write(_Record())
        if order is None:
            return None
        why, tail, tries = "", "", order.retries + 1
        for number in range(1, tries + 1):
            mark = secrets.token_hex(8)
            self._write(_Record(self._boot_id, order.digest, mark=mark))
            began = time.monotonic()
            self._log.write(f"==> {_now()} try {number} of {tries}: {shlex.join(order.argv)}\n".encode())
            why, tail = self._try(order, number, mark, stop)
            if why:
                _kill_marked(mark)
            if stop.is_set():
                return None
            took = show_duration(time.monotonic() - began)
            words = f"the start task failed: {why}" if why else "the start task succeeded"
            self._log.write(f"==> {_now()} {words}\n".encode())
            log.log(
                logging.WARNING if why else logging.INFO,
                *("%s, try %d of %d, after %s", words, number, tries, took),
                extra={"event": "start_task"},
            )
            if not why:
                self._write(_Record(self._boot_id, order.digest, is_done=True))
                return StartReport(order.digest, "done", tail=tail)
            if number < tries and stop.wait(min(_PAUSE_SECONDS * 2 ** (number - 1), _LONGEST_PAUSE_SECONDS)):
                return None
        self._write(_Record())
        times = f", after {plural(tries, 'try', 'tries')}" if tries > 1 else ""
        return StartReport(order.digest, "failed", f"{why}{times}", tail)

    def _try(self, order: StartOrder, number: int, mark: str, stop: threading.Event) -> tuple[str, str]:
        """(what went wrong; empty where nothing did, the last part of its output)."""
        env = {**self._environment, **order.env, "GERES_START_TRY": str(number), _MARK: mark}
        try:
            process = subprocess.Popen(
                order.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=self._cwd,
                start_new_session=True,
                umask=0o022,  # the agent's own is for its own files
            )
        except FileNotFoundError:
            return f"there is no program {order.argv[0]!r} on the node", ""
        except (OSError, ValueError) as error:
            return f"it cannot be started: {error}", ""
        assert process.stdout is not None
        with process.stdout:
            return self._follow(process, process.stdout, order.time_limit_seconds, stop)

    def _follow(
        self, process: subprocess.Popen[bytes], output: IO[bytes], limit: float, stop: threading.Event
    ) -> tuple[str, str]:
        tail, is_open, deadline, over = bytearray(), True, time.monotonic() + limit, ""
        os.set_blocking(output.fileno(), False)

        def read(seconds: float) -> bool:
            """Take in what there is.  False at its end."""
            if not select.select([output], [], [], seconds)[0]:
                return True
            piece = output.read(65536)
            if piece:
                self._log.write(piece)
                tail.extend(piece)
                del tail[:-_TAIL_BYTES]
            return piece != b""

        while not _has_ended(process):
            if stop.is_set() or time.monotonic() > deadline:
                over = f"it was over its time limit of {show_duration(limit)}"
                if not _end(process, _CLOSE_GRACE_SECONDS if stop.is_set() else _GRACE_SECONDS):
                    return f"{over}, and cannot be ended", tail.decode("utf-8", "replace")
            elif is_open:
                is_open = read(_LOOK_SECONDS)
            else:
                stop.wait(_LOOK_SECONDS)
        until = time.monotonic() + _LAST_WORDS_SECONDS
        while is_open and time.monotonic() < until:
            is_open = read(_LOOK_SECONDS)
        status = process.wait()
        if over:
            why = over
        elif status < 0:
            why = f"signal {-status}"
        else:
            why = f"exit {status}" if status else ""
        return why, tail.decode("utf-8", "replace")

    def _read(self) -> _Record:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Record)
        except FileNotFoundError:
            return _Record()
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("%s cannot be read, so that the start task runs again: %s", self._path, error)
            return _Record()

    def _write(self, record: _Record) -> None:
        self._record = record
        try:
            write_private(self._path, msgspec.json.encode(record).decode())
        except OSError as error:
            log.warning("%s cannot be written; the next agent may run it again: %s", self._path, error)


class _Log:
    """What start tasks write: the last of it, in two files of bounded size."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, data: bytes) -> None:
        """A full disk does not stop a start task."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                size = file.tell()
                file.write(data)
            if size + len(data) > _MOST_LOG_BYTES:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """True for a zombie too: as long as it is one, its number is nobody else's."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end(process: subprocess.Popen[bytes], grace: float) -> bool:
    """TERM, the grace, KILL, for its group.  False where it has not ended even so."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, _GRACE_SECONDS)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        until = time.monotonic() + seconds
        while not _has_ended(process) and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS / 10)
    return _has_ended(process)


def _kill_marked(mark: str, seconds: float = 5.0) -> None:
    """Kill what a start task has left, in its process group and out of it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        alive = [process for process in psutil.process_iter() if _is_marked(process, mark)]
        if not alive:
            return
        for process in alive:
            try:
                process.kill()
            except psutil.Error:
                pass
        time.sleep(_LOOK_SECONDS / 10)


def _is_marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(_MARK) == mark
    except (psutil.Error, OSError):
        return False
