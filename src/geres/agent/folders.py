"""The private folders of attempts: empty ones are used again; one gets its task's name only to be kept."""

from __future__ import annotations

import os
import time

WD, TMP = "wd", "tmp"
_INSIDE = (b"tmp", b"wd")
_MOST_SPARE = 64
_PASS = 0o711  #: others may pass through to what is theirs, and see nothing

Owner = tuple[int, int]  # (uid, gid)
#: Two changes within one tick of the kernel's coarse clock may carry the same time.
_TICK_NS = 20_000_000


class Slot:
    """A folder with `wd` (to work in) and `tmp` (TMPDIR) inside.

    Where the task has another account than ours, these two are that account's, and the folder around them
    stays ours: what we write into it later cannot be led astray by links.
    """

    __slots__ = ("changed", "owner", "path", "tmp", "wd")

    def __init__(self, path: bytes, owner: Owner | None = None) -> None:
        self.path = path
        self.wd = path + b"/wd"
        self.tmp = path + b"/tmp"
        self.owner = owner  # None: ours
        self.changed: tuple[int, int, int] = (0, 0, 0)

    def make(self) -> None:
        os.mkdir(self.path, 0o700)
        os.mkdir(self.wd, 0o700)
        os.mkdir(self.tmp, 0o700)
        if self.owner is not None:
            os.chown(self.wd, *self.owner)
            os.chown(self.tmp, *self.owner)
            os.chmod(self.path, _PASS)
        self.changed = self.look()

    @property
    def task_dir(self) -> bytes:
        """What the task is told as its folder: one that it may write to."""
        return self.path if self.owner is None else self.wd

    def look(self) -> tuple[int, int, int]:
        stat = os.stat
        return (stat(self.path).st_ctime_ns, stat(self.wd).st_ctime_ns, stat(self.tmp).st_ctime_ns)

    def is_bare(self) -> bool:
        """True where it holds what `make` made and nothing else, with the same rights."""
        return (
            sorted(os.listdir(self.path)) == list(_INSIDE)
            and not os.listdir(self.wd)
            and not os.listdir(self.tmp)
            and all(os.stat(path).st_mode & 0o7777 == 0o700 for path in (self.wd, self.tmp))
            and os.stat(self.path).st_mode & 0o7777 == (0o700 if self.owner is None else _PASS)
        )


class Folders:
    """Gives and takes back slots in `root`/.slots; kept folders are `root`/JOB/NUMBER."""

    def __init__(self, root: str) -> None:
        self._root = os.fsencode(root)
        self._slots = self._root + b"/.slots"
        self._spare: dict[Owner | None, list[Slot]] = {}
        self._spare_count = 0
        self._count = 0
        os.makedirs(self._slots, exist_ok=True)
        os.chmod(self._slots, _PASS)
        self._count = max((int(name) for name in os.listdir(self._slots) if name.isdigit()), default=0)

    def clear(self) -> None:
        """Remove the slots of an earlier supervisor; what is not empty is set aside as `.lost-*`."""
        for name in os.listdir(self._slots):
            slot = Slot(self._slots + b"/" + name)
            self._remove(slot)
            if os.path.lexists(slot.path):
                os.rename(slot.path, self._root + b"/.lost-%d-" % time.time_ns() + name)

    @property
    def tag(self) -> bytes:
        """What the GERES_TASK_DIR of every process of this home begins with."""
        return self._slots

    def take(self, owner: Owner | None = None) -> Slot:
        """An empty folder, for a task of this account.  Raises OSError, as for a full disk."""
        spare = self._spare.get(owner)
        if spare:
            self._spare_count -= 1
            return spare.pop()
        self._count += 1
        slot = Slot(self._slots + b"/%d" % self._count, owner)
        slot.make()
        return slot

    def settle(self, slot: Slot, task: int, attempt: int, started_us: int, outputs: list) -> bytes | None:  # type: ignore[type-arg]
        """Where the attempt's folder is kept, or None where it left nothing and the slot goes back.

        `outputs` are (name, function that puts the file at a path), for what outgrew the report.
        """
        if not outputs and self._untouched(slot, started_us):
            if self._spare_count < _MOST_SPARE:
                self._spare_count += 1
                self._spare.setdefault(slot.owner, []).append(slot)
            else:
                self._remove(slot)
            return None
        kept = self._name(task, attempt)
        os.rename(slot.path, kept)
        if outputs:
            os.mkdir(kept + b"/out", 0o700 if slot.owner is None else _PASS)
            for name, put in outputs:
                put(kept + b"/out/" + name)
        return kept

    def _untouched(self, slot: Slot, started_us: int) -> bool:
        """True where the attempt left nothing in it."""
        try:
            seen = slot.look()
            settled = max(slot.changed) + _TICK_NS < started_us * 1000
            if settled and seen == slot.changed:
                return True
            if not slot.is_bare():
                return False
        except OSError:  # the task took it away, or its rights
            return False
        slot.changed = seen
        return True

    def _name(self, task: int, attempt: int) -> bytes:
        folder = self._root + b"/%d" % (task >> 32)
        os.makedirs(folder, _PASS, exist_ok=True)
        kept = folder + b"/%d" % (task & 0xFFFFFFFF)
        return kept if not os.path.lexists(kept) else kept + b"-%d-%d" % (attempt, time.time_ns())

    def _remove(self, slot: Slot) -> None:
        for path in (slot.wd, slot.tmp, slot.path):
            try:
                os.rmdir(path)
            except OSError:
                pass  # not empty, or never made
