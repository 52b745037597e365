"""What the routes work with.  The server makes one Context and gives it to the application."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import anyio.to_thread

from geres.aio import Doorbell, Pulse
from geres.api import agents
from geres.blobs.folder import FolderBlobs
from geres.model.demand import Demand
from geres.model.identity import IdentityProvider
from geres.model.inside import ServerInside
from geres.model.tasks import WhyNode
from geres.model.webhooks import WebhookTested
from geres.store.database import Database


class Waiters(Protocol):
    """See server/waiters.py."""

    def job_changed(self, job_ids: Collection[int]) -> None: ...

    def task_ended(self, keys: Collection[int]) -> None: ...

    def is_streaming(self, job_id: int) -> bool: ...

    def job(self, job_id: int) -> AbstractContextManager[Doorbell]: ...

    def task(self, key: int) -> AbstractContextManager[Doorbell]: ...


class Dispatcher(agents.Dispatcher, Protocol):
    """What the API asks of the part that talks to the agents (server/dispatcher.py)."""

    def ring(self) -> None:
        """Something may start now: tasks were queued, released, freed."""

    def asked(self, node_ids: Iterable[int]) -> None:
        """Something was asked of these nodes, or of tasks on them; tell them, whichever server has them."""

    def forget_job(self, job_id: int) -> None:
        """A job's name, cap or priority was changed."""

    def explain(self, tenant_id: int, pool: str, demand: Demand) -> tuple[list[WhyNode], str | None]:
        """Why the nodes of the tenant's pool do not take such a task now, and the node that would."""

    def full_disks(self, tenant_id: int, pool: str, percent: float) -> list[tuple[str, float]]:
        """(node, percent in use) of the pool's connected nodes with a fuller disk, the fullest first."""

    async def open_stream(self, task: int, attempt: int, path: str, with_stdin: bool) -> bool:
        """Ask the task's node to connect to `path`.  False where no node of this server has the attempt."""


class Poster(Protocol):
    """See api/posting.py."""

    async def post(self, url: str, secret: str, delivery_id: str, body: bytes) -> WebhookTested: ...

    async def close(self) -> None: ...


def _load_poster(version: str) -> Poster:
    from geres.api import posting  # loads an HTTP client: only where something is posted

    return posting.Poster(version)


@dataclass
class Context:
    db: Database
    clock: Callable[[], int]  #: microseconds since 1970 UTC
    dispatcher: Dispatcher
    waiters: Waiters
    blobs: FolderBlobs
    unfolder: Doorbell = field(default_factory=Doorbell)  #: rung when an array was created
    attendant: Doorbell = field(default_factory=Doorbell)  #: rung when a node is to go
    private: bool = False  #: users see only their own tasks and jobs
    hooks: Collection[str] = ()  #: the operator's commands for nodes that there are
    job_ender: Doorbell = field(default_factory=Doorbell)  #: rung when a job may have ended
    server_id: int = 0  #: of this server, in the store
    server_secret: str = ""  #: what other servers sign with when they ask this one
    version: str = ""
    disk_warn_percent: int = 90  #: from here on a node's disk is warned about at submit
    provider: IdentityProvider | None = None  #: whose tokens are good here, beside our own
    task_key: bytes = b""  #: of the tokens of tasks
    requests_per_second: float = 0.0  #: of one token, over some seconds; 0 for no limit
    used_tokens: dict[int, int] = field(default_factory=dict)  #: id to when: what is not stored yet
    #: Called where a token was revoked, or a user or tenant changed.
    forget_callers: Callable[[], None] = lambda: None
    url: str = ""  #: by which other machines reach this server
    fingerprint: str = ""  #: of its certificate, where clients have to pin it
    pulses: dict[str, Pulse] = field(default_factory=dict)  #: of the loops, by name
    inside: Callable[[], ServerInside] | None = None  #: a dump of what the server has in memory
    stopping: bool = False  #: new requests are refused; open ones finish
    _poster: Poster | None = None

    async def poster(self) -> Poster:
        """Posts to webhooks; loaded beside the event loop when it is asked for first."""
        if self._poster is None:
            made = await anyio.to_thread.run_sync(_load_poster, self.version)
            self._poster = self._poster or made
        return self._poster

    async def close(self) -> None:
        """Close connections to elsewhere."""
        if self._poster is not None:
            await self._poster.close()

    @property
    def users_come(self) -> bool:
        """True where users come by themselves: accounts of the machine, or of an identity provider."""
        return self.private or self.provider is not None
