"""What this server knows of the others of its store: who is there, and how to reach them."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

from geres.model.wire import Frame
from geres.server.dispatcher import Dispatcher
from geres.server.hints import Hint, Hints
from geres.server.waiters import Waiters
from geres.store import servers
from geres.store.database import Database, Order
from geres.store.servers import Introduction, Peer

log = logging.getLogger("geres.fleet")

_ANYWHERE = "192.0.2.1"  #: an address that nobody has, to ask by which way one would go out
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Fleet:
    """Looks every second who is there, and forgets who is gone."""

    def __init__(self, db: Database, clock: Callable[[], int], me: Introduction, hints: Hints) -> None:
        self._db, self._clock, self._me, self._hints = db, clock, me, hints
        self.others: list[Peer] = []  #: that were there a second ago
        self.tell: Callable[[list[str]], None] = lambda urls: None  #: called with all addresses, ours too

    async def step(self) -> bool:
        now_us = self._clock()
        peers = await self._db.read(servers.living, now_us=now_us)
        self.others = [peer for peer in peers if peer.id != self._me.id]
        self._hints.alone = not self.others
        self.tell(sorted({self._me.url, *(peer.url for peer in self.others)}))
        for number, url in await self._db.run_as(Order.LOOP, servers.bury, self._me.id, now_us=now_us):
            log.warning(
                "server %d at %s is gone; its nodes are held by nobody until they connect again",
                number,
                url,
                extra={"event": "server_gone"},
            )
        return False

    async def leave(self) -> None:
        """Tell the others, by the store, that this server stops."""
        await self._db.run(servers.leave, self._me.id)


def tell_nodes(dispatcher: Dispatcher, urls: list[str]) -> None:
    """Have our nodes know where the servers are: the one that they joined at may go for good."""
    if urls != dispatcher.servers and (dispatcher.servers or len(urls) > 1):
        dispatcher.servers = urls
        for desk in dispatcher.desks.values():
            desk.send(Frame(servers=urls))


def hear(hint: Hint | None, dispatcher: Dispatcher, waiters: Waiters) -> None:
    """Ring here what another server says; for None all."""
    if hint is None or hint.everything:
        dispatcher.forget_job_here(None)
        dispatcher.ring_here()
        dispatcher.asked_here(None)
        waiters.ring_all()
        return
    for job_id in hint.edited:
        dispatcher.forget_job_here(job_id)
    if hint.queued:
        dispatcher.ring_here()
    if hint.nodes:
        dispatcher.asked_here(hint.nodes)
    waiters.job_changed_here(hint.jobs)
    if hint.whole_jobs:
        waiters.tasks_changed_here(hint.jobs)
    else:
        waiters.task_ended_here(hint.tasks)


def reachable_url(configured: str, local: str, listener: socket.socket, store: str) -> str:
    """Where the other servers find this one: as configured, else at the address that it listens at.

    For one that listens at all addresses, that is the one by which it reaches the store.
    """
    if configured:
        return configured.rstrip("/")
    if listener.family == socket.AF_UNIX:
        return local
    host, port = listener.getsockname()[:2]
    if not ipaddress.ip_address(host).is_unspecified:
        return local
    store_host = urlsplit(store).hostname or _ANYWHERE
    own = _own_address(store_host if store_host not in _LOOPBACK else _ANYWHERE) or socket.gethostname()
    return f"{urlsplit(local).scheme}://{f'[{own}]' if ':' in own else own}:{port}"


def _own_address(host: str) -> str | None:
    """Our address on the way to `host`; nothing is sent."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as asking:
            asking.connect(place)
            return str(asking.getsockname()[0])
    except OSError:
        return None
