"""Keeps leases: this server's own, those of the nodes that were heard, and those that have ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from geres.model.states import NodeState
from geres.model.wire import Frame
from geres.server.desk import Desk
from geres.server.dispatcher import Dispatcher
from geres.store import dispatching, nodes, pools, servers
from geres.store.database import Database, Order
from geres.store.nodes import Lease
from geres.store.servers import Introduction

_MOST_LEASES = 4  #: of ours that another server is believed to have granted
_START_LEASES = 2.0  #: an assignment that has not started after so many leases is taken back

log = logging.getLogger("geres.leases")


class Watch:
    """Which leases have ended, by this server's own stopwatch.

    Clocks are set, and servers notice it one after the other; so what counts is for how long a lease has
    stood unchanged in the store while this server was looking.  Where it looked away for half a lease nobody
    may have been able to renew any: all begin again.
    """

    def __init__(self, lease_us: int, clock: Callable[[], int]) -> None:
        self._lease_us, self._clock = lease_us, clock
        self._ends: dict[Lease, float] = {}
        self._looked = -float("inf")

    def ended(self, leases: Sequence[Lease]) -> list[Lease]:
        """Those of these leases that were there for their whole length.  Call it every second."""
        now = time.monotonic()  # after they were read: each was written before
        known = self._ends if now - self._looked <= self._lease_us / 2e6 else {}
        self._looked = now
        self._ends = {lease: known.get(lease) or now + self._length_us(lease) / 1e6 for lease in leases}
        return [lease for lease, end in self._ends.items() if end <= now]

    def _length_us(self, lease: Lease) -> int:
        """Ours, or what a server with longer leases has granted."""
        if lease.until is None:
            return self._lease_us
        granted_us = lease.until - max(self._clock(), lease.heartbeat_at or 0)
        return max(self._lease_us, min(granted_us, _MOST_LEASES * self._lease_us))


class Leases:
    """Two loops beside the dispatcher; each step may be called at any time."""

    def __init__(
        self,
        db: Database,
        clock: Callable[[], int],
        dispatcher: Dispatcher,
        me: Introduction,
        *,
        lease_seconds: float,
    ) -> None:
        self._db, self._clock, self._dispatcher, self._me = db, clock, dispatcher, me
        self._lease_seconds, self._lease_us = lease_seconds, int(lease_seconds * 1e6)
        self._watch = Watch(self._lease_us, clock)
        #: Nobody waits for the only server of a SQLite file; its lease need not cost a sync each second.
        self._renew_every = lease_seconds / (10 if db.dialect == "postgres" else 3)
        self._renewed = self._alive = self._looked = time.monotonic()

    async def renew_step(self) -> bool:
        """Renew the leases of the nodes that were heard, note who left, and move the states of nodes."""
        dispatcher = self._dispatcher
        beats = [(desk, desk.heard) for desk in dispatcher.desks.values() if desk.heartbeat]
        now_us = self._clock()
        if beats:
            for desk, _ in beats:
                desk.heartbeat = False
            held = await self._db.run_as(
                Order.HEARTBEAT,
                nodes.renew,
                [(desk.node_id, desk.epoch) for desk, _ in beats],
                server_id=self._me.id,
                lease_us=self._lease_us,
                now_us=now_us,
            )
            for desk, number in beats:
                if desk.node_id in held:
                    dispatcher.set_draining(desk, held[desk.node_id])
                    desk.send(Frame(heartbeat_ack=True, heard=number))
                else:
                    dispatcher.disconnect(desk, "another server holds this node")
        while dispatcher.left:
            node_id, epoch = next(iter(dispatcher.left.items()))
            await self._db.run_as(Order.HEARTBEAT, nodes.goodbye, node_id, epoch, now_us=now_us)
            if dispatcher.left.get(node_id) == epoch:
                del dispatcher.left[node_id]
        for desk in list(dispatcher.desks.values()):
            if (report := desk.start_to_store) is not None:
                await self._db.run_as(
                    Order.HEARTBEAT, pools.note_start, desk.node_id, desk.epoch, report, now_us=now_us
                )
                desk.start_to_store = None if desk.start_to_store is report else desk.start_to_store
        changed = [desk for desk in dispatcher.desks.values() if desk.shown != _state(desk)]
        if changed:
            states = [(desk.node_id, desk.epoch, _state(desk)) for desk in changed]
            await self._db.run_as(Order.HEARTBEAT, dispatching.show_busy, states, now_us=now_us)
            for desk, (_, _, state) in zip(changed, states, strict=True):
                desk.shown = state
        return False

    async def _take_back(self) -> None:
        """From nodes that have not started in time what they were given: a frame was lost, or they hang."""
        before = time.monotonic() - _START_LEASES * self._lease_us / 1e6
        for desk in list(self._dispatcher.desks.values()):
            late = desk.not_started(before)
            if not late:
                continue
            log.warning(
                "node %s has not started %d attempts in time; it has to connect again", desk.name, len(late)
            )
            now_us = self._clock()
            done = await self._db.run_as(
                Order.LOOP, nodes.take_back, desk.node_id, desk.epoch, late, now_us=now_us
            )
            self._dispatcher.disconnect(desk, "it does not start what it is given: connect again")
            self._dispatcher.after(done, now_us)

    async def lose_step(self) -> bool:
        """Hold our own lease, declare nodes lost and take back what they had."""
        now_us, now = self._clock(), time.monotonic()
        away = now - self._alive > self._lease_seconds / 2  # nor could we renew anything meanwhile
        if away or now - self._renewed >= self._renew_every:
            if away:
                log.warning("the store or this server was away; leases go on")
            await self._db.run_as(
                Order.HEARTBEAT,
                servers.renew,
                self._me,
                last_us=now_us - int((now - self._alive) * 1e6),
                lease_us=self._lease_us,
                now_us=now_us,
            )
            self._renewed = now
        done = await self._db.run_as(Order.LOOP, nodes.lose, self._watch.ended, now_us=now_us)
        self._alive = now
        if now - self._looked > self._lease_seconds / 4:
            self._looked = now
            await self._take_back()
        for node_id in done.stale_nodes:
            if desk := self._dispatcher.desks.get(node_id):
                self._dispatcher.disconnect(desk, "the lease has ended: connect again")
        self._dispatcher.after(done, now_us)
        if done.more:
            self._dispatcher.ring()
        return done.more


def _state(desk: Desk) -> NodeState:
    if desk.start.state is not None:
        return desk.start.state
    if desk.draining or desk.leaving:
        return NodeState.DRAINING
    return NodeState.RUNNING if desk.held else NodeState.IDLE
