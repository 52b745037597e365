"""What happened in the store, for the other servers: gathered here, bounded, sent by notifier.py.

A hint is never the only way: each server asks the store again after a second or two.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Struct

from geres.aio import Doorbell
from geres.model.ids import job_of

#: What PostgreSQL takes in one NOTIFY is less than 8,000 bytes.
MOST_BYTES = 7900
_MOST_JOBS = 250
_MOST_TASKS = 150
_MOST_NODES = 150


class Hint(Struct, frozen=True, omit_defaults=True):
    """One NOTIFY.  Names are short, because its room is."""

    origin: int = msgspec.field(name="s")  #: the server that tells
    queued: bool = msgspec.field(name="q", default=False)  #: something may start now
    nodes: list[int] = msgspec.field(name="n", default_factory=list)  #: something was asked of their tasks
    jobs: list[int] = msgspec.field(name="j", default_factory=list)  #: have new results, or another state
    tasks: list[int] = msgspec.field(name="t", default_factory=list)  #: have another state
    whole_jobs: bool = msgspec.field(name="w", default=False)  #: any task of `jobs` may have
    edited: list[int] = msgspec.field(name="e", default_factory=list)  #: jobs with another name or metadata
    everything: bool = msgspec.field(name="a", default=False)  #: too much to name


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Hint).decode


def read(payload: str) -> Hint | None:
    """The hint; None for what is none (of a newer server, perhaps): then everything may have changed."""
    try:
        return _decode(payload)
    except msgspec.MsgspecError:
        return None


class Hints:
    """Gathers for one event loop.  `bell` rings when there is something to send."""

    def __init__(self, server_id: int) -> None:
        self.server_id = server_id
        self.alone = True  #: no other server is there, and nothing is gathered
        self.bell = Doorbell()
        self._clear()

    def _clear(self) -> None:
        self._queued = self._whole_jobs = self._everything = False
        self._nodes: set[int] = set()
        self._jobs: set[int] = set()
        self._tasks: set[int] = set()
        self._edited: set[int] = set()

    def queued(self) -> None:
        """Something may start now."""
        if not self.alone:
            self._queued = True
            self.bell.ring()

    def asked(self, node_ids: Iterable[int]) -> None:
        """Something was asked of tasks on these nodes."""
        if not self.alone:
            self._nodes.update(node_ids)
            self.bell.ring()

    def changed(self, job_ids: Iterable[int] = (), keys: Iterable[int] = ()) -> None:
        """Jobs have new results or another state; tasks have another state."""
        if self.alone:
            return
        self._jobs.update(job_ids)
        if not self._whole_jobs:
            self._tasks.update(keys)
            if len(self._tasks) > _MOST_TASKS:
                self._whole_jobs = True
                keys, self._tasks = self._tasks, set()
        if self._whole_jobs:
            self._jobs.update(job_of(key) for key in keys)
        if len(self._jobs) > _MOST_JOBS:
            self._everything = True
            self._jobs.clear()
        self.bell.ring()

    def edited(self, job_id: int) -> None:
        """A job has another name, or other metadata."""
        if not self.alone:
            self._edited.add(job_id)
            self.bell.ring()

    def take(self) -> bytes | None:
        """All that has gathered, as one payload; None where nothing has."""
        if not (self._queued or self._everything or self._nodes or self._jobs or self._tasks or self._edited):
            return None
        everything = self._everything or max(len(self._nodes), len(self._edited)) > _MOST_NODES
        payload = b""
        if not everything:
            payload = _encode(
                Hint(
                    self.server_id,
                    self._queued,
                    sorted(self._nodes),
                    sorted(self._jobs),
                    sorted(self._tasks),
                    self._whole_jobs,
                    sorted(self._edited),
                )
            )
        if everything or len(payload) > MOST_BYTES:
            payload = _encode(Hint(self.server_id, everything=True))
        self._clear()
        return payload
