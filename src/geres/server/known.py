"""What a dispatcher remembers of specifications and jobs, so that it need not read them for each start."""

from __future__ import annotations

import time
from collections.abc import Mapping, Set
from typing import Any

import msgspec

from geres.model.tasks import KnownSpec
from geres.store import dispatching
from geres.store.database import Database
from geres.store.dispatching import JobFacts

MOST = 20_000  #: of each kind
_JOBS_SECONDS = 10.0  #: a change of a job's name or metadata is seen so soon, however little is heard of it


class Known:
    """For one event loop.  What was loaded is here until the next wait; then it may be forgotten."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.specs: dict[int, KnownSpec] = {}
        self.unreadable: dict[int, str] = {}  #: specifications that cannot be decoded or are gone, and why
        self.jobs: dict[int, JobFacts] = {}
        self._jobs_since = time.monotonic()

    async def load(self, job_ids: Set[int], spec_ids: Set[int], bodies: Mapping[int, str]) -> None:
        """Have these jobs and specifications; `bodies` are specifications that were read already.

        Those that cannot be decoded are in `unreadable` instead.  Raises StoreUnavailable.
        """
        if time.monotonic() - self._jobs_since > _JOBS_SECONDS:  # one may have been edited at another server
            self.jobs.clear()
            self._jobs_since = time.monotonic()
        self._decode(bodies)
        while True:  # what is here may be forgotten while the rest is read
            jobs = sorted(job_ids - self.jobs.keys())
            specs = sorted(spec_ids - self.specs.keys() - self.unreadable.keys())
            if not jobs and not specs:
                break
            if jobs:
                found = await self._db.read(dispatching.job_facts, jobs)
                self.jobs |= dict.fromkeys(jobs, JobFacts("", {}, False)) | found  # one may be gone
            if specs:
                bodies = await self._db.read(dispatching.specs, specs)
                self._decode(bodies)
                self.unreadable |= dict.fromkeys(set(specs) - bodies.keys(), "its specification is gone")
        _trim(self.jobs, job_ids)
        _trim(self.specs, spec_ids)
        _trim(self.unreadable, spec_ids)

    def _decode(self, bodies: Mapping[int, str]) -> None:
        for spec_id, body in bodies.items():
            try:
                self.specs[spec_id] = msgspec.json.decode(body, type=KnownSpec)
            except msgspec.MsgspecError as error:
                self.unreadable[spec_id] = str(error)


def _trim(known: dict[int, Any], needed: Set[int]) -> None:
    """Forget the oldest beyond MOST, but for what is needed now."""
    for key in list(known)[: max(0, len(known) - MOST)]:
        if key not in needed:
            del known[key]
