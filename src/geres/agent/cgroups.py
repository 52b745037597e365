"""Memory limits by control groups, version 2 or 1, below our own group and only where we may write."""

from __future__ import annotations

import os


class MemoryGroups:
    """Makes one group per attempt that asks for a limit; the group above them is there only while needed."""

    def __init__(self) -> None:
        self._root = ""
        self._version = 0
        self._is_barred = False  # none can be made here

    def _open(self) -> bool:
        """Make the group above; True where it is there and may limit memory."""
        if self._root or self._is_barred:
            return bool(self._root)
        for version, folder in _own_groups():
            _clear_after_the_dead(folder)
            root = f"{folder}/geres-{os.getpid()}"
            try:
                os.mkdir(root, 0o755)
            except OSError:
                continue
            limit = "memory.max" if version == 2 else "memory.limit_in_bytes"
            if version == 2:
                _write(f"{root}/cgroup.subtree_control", "+memory")
            if os.path.exists(f"{root}/{limit}"):
                self._root, self._version = root, version
                return True
            _rmdir(root)
        self._is_barred = True
        return False

    def make(self, name: str, limit_bytes: int) -> str | None:
        """The folder of a new group; None where limits need another way."""
        if not self._open():
            return None
        folder = f"{self._root}/{name}"
        try:
            os.mkdir(folder, 0o755)
        except OSError:
            return None
        if self._version == 2:
            fine = _write(f"{folder}/memory.max", str(limit_bytes))
            _write(f"{folder}/memory.swap.max", "0")
            _write(f"{folder}/memory.oom.group", "1")
        else:
            fine = _write(f"{folder}/memory.limit_in_bytes", str(limit_bytes))
            _write(f"{folder}/memory.memsw.limit_in_bytes", str(limit_bytes))
        if not fine:
            _rmdir(folder)
            return None
        return folder

    def was_over(self, folder: str) -> bool:
        """True where the kernel killed something in it for memory."""
        name = "memory.events" if self._version == 2 else "memory.oom_control"
        for line in _read(f"{folder}/{name}").splitlines():
            if line.startswith("oom_kill ") and int(line.split()[1]) > 0:
                return True
        return False

    def peak_bytes(self, folder: str) -> int | None:
        name = "memory.peak" if self._version == 2 else "memory.max_usage_in_bytes"
        text = _read(f"{folder}/{name}").strip()
        return int(text) if text.isdigit() else None

    def pids(self, folder: str) -> list[int]:
        return [int(line) for line in _read(f"{folder}/cgroup.procs").split()]

    def remove(self, folder: str) -> bool:
        """True where it is gone."""
        return _rmdir(folder)

    def close(self) -> None:
        """Remove the group above, unless attempts still have theirs.  The next attempt makes it anew."""
        if self._root and _rmdir(self._root):
            self._root = ""


def _clear_after_the_dead(folder: str) -> None:
    """Remove what supervisors that were killed left here."""
    for name in os.listdir(folder):
        pid = name.removeprefix("geres-")
        if pid != name and pid.isdigit() and not os.path.exists(f"/proc/{pid}"):
            for inside in os.listdir(f"{folder}/{name}"):
                if os.path.isdir(f"{folder}/{name}/{inside}"):
                    _rmdir(f"{folder}/{name}/{inside}")
            _rmdir(f"{folder}/{name}")


def _own_groups() -> list[tuple[int, str]]:
    """(version, folder) of the groups that we are in and that may limit memory."""
    mounts: dict[str, tuple[str, str]] = {}
    for line in _read("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if kind[0] == "cgroup2":
            mounts["2"] = (fields[3], fields[4])
        elif kind[0] == "cgroup" and "memory" in kind[-1].split(","):
            mounts["1"] = (fields[3], fields[4])
    found = []
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" and "2" in mounts:
            found.append((2, _below(mounts["2"], path)))
        elif "memory" in controllers.split(",") and "1" in mounts:
            found.append((1, _below(mounts["1"], path)))
    return found


def _below(mount: tuple[str, str], path: str) -> str:
    root, point = mount
    inside = path[len(root) :] if root != "/" and path.startswith(root) else path
    return (point + "/" + inside.strip("/")).rstrip("/")


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, text: str) -> bool:
    try:
        with open(path, "w") as file:
            file.write(text)
        return True
    except OSError:
        return False


def _rmdir(path: str) -> bool:
    try:
        os.rmdir(path)
        return True
    except FileNotFoundError:
        return True
    except OSError:
        return False
