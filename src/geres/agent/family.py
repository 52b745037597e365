"""Who our children are, and whose task a process belongs to: no process of a task outlives it."""

from __future__ import annotations

import os
import time

from geres.agent.attempts import Key

_KILL = 9


class Children:
    """The pids of our direct children, the dead ones that nobody has waited for included."""

    def __init__(self) -> None:
        try:
            self._fd = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
            self.is_cheap = True
        except OSError:
            self._fd = -1
            self.is_cheap = False

    def read(self) -> list[bytes]:
        if self._fd < 0:
            return _children_by_parent(os.getpid())
        data = os.pread(self._fd, 65536, 0)
        if len(data) < 65536 - 16:
            return data.split()
        return _read_whole(self._fd).split()


def _read_whole(fd: int) -> bytes:
    pieces, at = [], 0
    while piece := os.pread(fd, 1 << 20, at):
        pieces.append(piece)
        at += len(piece)
    return b"".join(pieces)


def _children_by_parent(parent: int) -> list[bytes]:
    found = []
    for pid in _pids():
        status = stat_of(pid)
        if status is not None and status[1] == parent:
            found.append(b"%d" % pid)
    return found


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def stat_of(pid: int) -> tuple[bytes, int, int, int, int] | None:
    """(state, parent, group, session, start in ticks since boot) of a process; None where there is none."""
    data = _proc(pid, "stat")
    if not data:
        return None
    fields = data[data.rindex(b")") + 2 :].split()
    return fields[0], int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19])


def _proc(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except OSError:
        return b""


def owner_by_environment(pid: int, tag: bytes) -> Key | None:
    """The attempt whose environment the process carries; None where it carries none of this home."""
    data = b"\0" + _proc(pid, "environ")
    if b"\0GERES_TASK_DIR=" + tag not in data:
        return None
    task, attempt = _value(data, b"GERES_TASK_ID"), _value(data, b"GERES_ATTEMPT")
    job, _, number = task.partition(b".")
    if job.isdigit() and number.isdigit() and attempt.isdigit():
        return (int(job) << 32 | int(number), int(attempt))
    return None


def _value(data: bytes, name: bytes) -> bytes:
    _, found, rest = data.partition(b"\0" + name + b"=")
    return rest.partition(b"\0")[0] if found else b""


def kill(pid: int, group: bool = False) -> None:
    try:
        if group:
            os.killpg(pid, _KILL)
        else:
            os.kill(pid, _KILL)
    except (ProcessLookupError, PermissionError):
        pass


def kill_leftovers(tag: bytes, started: dict[Key, tuple[int, int] | None], seconds: float) -> None:
    """Kill what an earlier supervisor of this home left alive: by the journal's pids and by the environment.

    Comes back when nothing of it is left, at the latest after `seconds`.
    """
    until = time.monotonic() + seconds
    for entry in started.values():
        if entry is not None and _is_group_of(*entry):
            kill(entry[0], group=True)
    while time.monotonic() < until:
        alive = [pid for pid in _pids() if pid != os.getpid() and _belongs(pid, tag)]
        if not alive:
            return
        for pid in alive:
            kill(pid)
        time.sleep(0.01)


def _belongs(pid: int, tag: bytes) -> bool:
    return b"\0GERES_TASK_DIR=" + tag in b"\0" + _proc(pid, "environ")


def _is_group_of(pid: int, started_us: int) -> bool:
    """True where the session that the journal names is still the one that it meant."""
    status = stat_of(pid)
    if status is None or status[3] != pid:
        return False
    with open("/proc/uptime", "rb") as file:
        uptime = float(file.read().split()[0])
    began = time.time() - uptime + status[4] / os.sysconf("SC_CLK_TCK")
    return abs(began - started_us / 1e6) < 2.0
