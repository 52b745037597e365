"""What happens to files on this node besides running: large outputs, kept folders, disk allowances."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from geres import trees
from geres.agent.ends import HEAD_BYTES
from geres.agent.link import ask
from geres.model.ids import show_task
from geres.model.wire import AttemptKey

log = logging.getLogger("geres.agent.upkeep")

_RETAIN = ".retain"  #: in a kept folder: until when, seconds since 1970
_DEFAULT_RETAIN_SECONDS = 7 * 86400.0
_PUNCH = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_BLOCK = 4096
_CLOSE_SECONDS = 1.0
_SLACK_BYTES = 1 << 20
_LOW_BYTES = 256 << 20
_FULL_BYTES = 64 << 20


class Upkeep:
    """Disk work goes to one thread, so that the event loop never waits for a disk."""

    def __init__(self, folder: Path, socket_path: str, clock: Callable[[], float] = time.time) -> None:
        self._tasks = folder / "tasks"
        self._socket_path = socket_path
        self._clock = clock
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="upkeep")
        self._kept: dict[AttemptKey, tuple[Path, dict[str, str], int]] = {}
        self._holes: dict[tuple[AttemptKey, str], int] = {}  # up to where the middle of an output is freed
        self._measuring: Future[None] | None = None
        self._looking: Future[None] | None = None
        #: how far live readers have come: (attempt, stream "o" or "e") to an offset
        self.readers: Callable[[AttemptKey, str], int | None] = lambda key, stream: None

    def keep(
        self, key: AttemptKey, folder: str, retain_seconds: float, files: dict[str, str], limit: int
    ) -> str | None:
        """Note that an attempt left a folder.  Returns where it is, None where it is to vanish."""
        path = Path(folder)
        self._kept[key] = (path, files, limit)
        self._holes.pop((key, "o"), None)
        self._holes.pop((key, "e"), None)
        try:
            has_files = bool(_task_files(path))
        except FileNotFoundError:  # removed to make room, before an earlier agent could tell of its end
            return None
        except OSError:  # the task has taken its rights away
            has_files = True
        if has_files:
            until = self._clock() + (retain_seconds or _DEFAULT_RETAIN_SECONDS)
            self._worker.submit(_mark, path, until)
            return folder
        return None

    def acknowledged(self, key: AttemptKey) -> None:
        """The server has the end: what was uploaded goes, and so does a folder that holds nothing else."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._worker.submit(_tidy, *kept[:2])

    def kept_files(self, key: AttemptKey) -> tuple[dict[str, str], int]:
        """(stream to file, output limit) of the outputs of an attempt whose end is not acknowledged."""
        _, files, limit = self._kept.get(key, (None, {}, 0))
        return files, limit

    def sweep(self) -> None:
        """Remove the folders whose time is over."""
        self._worker.submit(_sweep, self._tasks, self._clock())

    def grown(self, large: list[tuple[int, int, int, int]]) -> None:
        """Attempts have written more than is kept: free the middle of their files."""
        for task, attempt, _, _ in large:
            self._worker.submit(self._free_middle, (task, attempt))

    def make_room(self, tell: Callable[[AttemptKey, str], None], full: Callable[[bool], None]) -> None:
        """Look at the disk and make room where there is little; to be called every few seconds.

        First go the kept folders of tasks whose end is acknowledged, the oldest first.  Where that is not
        enough, large outputs that wait for a server, the largest first: `tell` of each (attempt, stream).  An
        end itself never goes.  `full` is told whether there is room for another task.
        """
        if self._looking is not None and not self._looking.done():
            return
        loop = asyncio.get_running_loop()
        waiting = {key: dict(files) for key, (_, files, _) in self._kept.items()}
        theirs = {path for path, _, _ in self._kept.values()}

        def look() -> None:
            try:
                free, low, little = self._disk()
                if free < low:
                    free = self._remove_kept(theirs, low)
                if free < little:
                    for key, stream in self._remove_outputs(waiting, little):
                        loop.call_soon_threadsafe(tell, key, stream)
                    free = self._disk()[0]
            except OSError as error:
                log.warning("the disk cannot be looked at: %s", error)
                return
            if free < little:
                loop.call_soon_threadsafe(full, True)
            elif free >= 2 * little:
                loop.call_soon_threadsafe(full, False)

        self._looking = self._worker.submit(look)

    def _disk(self) -> tuple[int, int, int]:
        """(free bytes, below which folders go, below which the disk counts as full)."""
        total, free = self._space()
        return free, min(_LOW_BYTES, total // 10), min(_FULL_BYTES, total // 20)

    def _space(self) -> tuple[int, int]:
        place = os.statvfs(self._tasks)
        return place.f_blocks * place.f_frsize, place.f_bavail * place.f_frsize

    def _remove_kept(self, theirs: set[Path], enough: int) -> int:
        """Remove kept folders until so much is free.  Returns how much is."""
        marked = [path for path in self._tasks.glob(f"[0-9]*/*/{_RETAIN}") if path.parent not in theirs]
        count, free = 0, self._disk()[0]
        for path in sorted(marked, key=_age):
            if free >= enough:
                break
            trees.remove(path.parent)
            count, free = count + 1, self._disk()[0]
        if count:
            log.warning(
                "the disk is nearly full: %d folders of ended tasks were removed, the oldest first", count
            )
        return free

    def _remove_outputs(
        self, waiting: dict[AttemptKey, dict[str, str]], enough: int
    ) -> Iterator[tuple[AttemptKey, str]]:
        """Remove outputs that wait for their upload until so much is free.  Yields (attempt, stream)."""
        sizes = [
            (_disk_bytes(path), key, stream, path)
            for key, files in waiting.items()
            for stream, path in files.items()
        ]
        for size, key, stream, path in sorted(sizes, reverse=True):
            if not size or self._disk()[0] >= enough:
                return
            Path(path).unlink(missing_ok=True)
            log.warning("the disk is full: the %s of %s is cut to its last part", stream, show_task(key[0]))
            yield key, stream

    def measure(
        self,
        allowed: list[tuple[int, int, int, bytes, int]],
        tell: Callable[[AttemptKey, int, int], None],
    ) -> None:
        """Measure folders, and `tell` of attempts over their allowance: (attempt, bytes used, allowance)."""
        if self._measuring is None or self._measuring.done():
            loop = asyncio.get_running_loop()

            def over(key: AttemptKey, used: int, limit: int) -> None:
                loop.call_soon_threadsafe(tell, key, used, limit)

            self._measuring = self._worker.submit(_measure, allowed, over)

    def close(self) -> None:
        """Do what waits, as far as a moment goes: a disk that hangs does not keep us."""
        with contextlib.suppress(TimeoutError):
            self._worker.submit(int).result(_CLOSE_SECONDS)
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _free_middle(self, key: AttemptKey) -> None:
        answer = ask(self._socket_path, "borrow", *key)
        if answer is None:
            return
        (_, _, streams, *rest), fds = answer
        limit = rest[1] if len(rest) > 1 else 0
        try:
            for stream, fd in zip(streams, fds, strict=True):
                self._punch(key, stream, fd, limit)
        finally:
            for fd in fds:
                os.close(fd)

    def _punch(self, key: AttemptKey, stream: str, fd: int, limit: int) -> None:
        size = os.fstat(fd).st_size
        head = min(HEAD_BYTES, limit // 2)
        end = size - (limit - head)
        reader = self.readers(key, stream)
        if reader is not None:
            end = min(end, reader)
        start = max(self._holes.get((key, stream), 0), -(-head // _BLOCK) * _BLOCK)
        end = end // _BLOCK * _BLOCK
        if limit <= 0 or size <= limit or end - start < _SLACK_BYTES:
            return
        if punch_hole(fd, start, end - start):
            self._holes[key, stream] = end


def _measure(
    allowed: list[tuple[int, int, int, bytes, int]], tell: Callable[[AttemptKey, int, int], None]
) -> None:
    for task, attempt, limit, folder, output_bytes in allowed:
        used = output_bytes + _disk_usage(os.fsdecode(folder), limit)
        if used > limit:
            tell((task, attempt), used, limit)


def _disk_usage(folder: str, enough: int) -> int:
    """Bytes on disk of the files below a folder; counting ends beyond `enough`."""
    total = 0
    for found in trees.files_below(folder):
        total += found.st_blocks * 512
        if total > enough:
            break
    return total


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Free a part of a file that keeps its size.  False where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        fallocate = libc.fallocate
    except AttributeError:
        return False
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return bool(fallocate(fd, _PUNCH, offset, length) == 0)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _disk_bytes(path: str) -> int:
    try:
        return os.stat(path).st_blocks * 512
    except OSError:
        return 0


def _task_files(folder: Path) -> list[Path]:
    """What a task left that is worth keeping: neither uploaded output nor temporary files."""
    found = []
    for path in folder.iterdir():
        if path.name in ("tmp", "out", _RETAIN):
            continue
        if path.name == "wd" and path.is_dir() and not path.is_symlink():
            try:
                found += list(path.iterdir())
            except PermissionError:
                found.append(path)
        else:
            found.append(path)
    return found


def _mark(folder: Path, until: float) -> None:
    try:
        (folder / _RETAIN).write_text(f"{until:.3f}\n")
        trees.remove(folder / "tmp")
    except OSError as error:
        log.warning("%s cannot be marked: %s", folder, error)


def _tidy(folder: Path, files: dict[str, str]) -> None:
    try:
        for path in files.values():
            Path(path).unlink(missing_ok=True)
        out = folder / "out"
        if out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        if not _task_files(folder):
            trees.remove(folder)
            folder.parent.rmdir()
    except OSError:
        pass  # the job's folder still holds others


def _sweep(tasks: Path, now: float) -> None:
    for lost in tasks.glob(".lost-*"):
        trees.remove(lost)
    for job in tasks.iterdir():
        if not job.name.isdigit():
            continue
        for folder in list(job.iterdir()):
            if _is_over(folder, now):
                trees.remove(folder)
        try:
            job.rmdir()
        except OSError:
            pass  # not empty


def _is_over(folder: Path, now: float) -> bool:
    try:
        return float((folder / _RETAIN).read_text()) <= now
    except (OSError, ValueError):
        try:
            return folder.stat().st_mtime + _DEFAULT_RETAIN_SECONDS <= now
        except OSError:
            return False
