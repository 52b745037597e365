"""The nodes that are connected to other servers, as the store shows them: for who asks why a task waits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from geres.model import demand as demands
from geres.model.wire import Hello
from geres.scheduling.rooms import Facts, Room, empty_room
from geres.server.frames import facts_of
from geres.store import dispatching
from geres.store.database import Database

_hello = msgspec.json.Decoder(Hello)


class FarNode(NamedTuple):
    name: str
    tenant_id: int
    room: Room


class FarNodes:
    """Looks every few seconds; what it knows may be that old.  On SQLite there are none."""

    def __init__(self, db: Database, server_id: int) -> None:
        self._db, self._server_id = db, server_id
        self._nodes: list[FarNode] = []
        self._facts: dict[tuple[int, int], Facts] = {}  #: by node and epoch

    def of_tenant(self, tenant_id: int) -> Iterator[FarNode]:
        return (node for node in self._nodes if node.tenant_id == tenant_id)

    async def step(self) -> bool:
        rows = await self._db.read(dispatching.far_nodes, self._server_id)
        known = {(row.node_id, row.epoch) for row in rows}
        self._facts = {key: facts for key, facts in self._facts.items() if key in known}
        new = [row.node_id for row in rows if (row.node_id, row.epoch) not in self._facts]
        for node_id, epoch, info in await self._db.read(dispatching.infos, new) if new else []:
            try:
                self._facts[node_id, epoch] = facts_of(_hello.decode(info))
            except msgspec.MsgspecError:  # of a version that says other things
                continue
        uses = await self._db.read(dispatching.classes_on_far_nodes, self._server_id) if rows else {}
        found = []
        for row in rows:
            if (facts := self._facts.get((row.node_id, row.epoch))) is None:
                continue
            room = empty_room(row.node_id, facts)
            room.accepting = not (row.draining or row.out_of_service)
            room.in_service, room.why_closed = not row.out_of_service, row.out_of_service or ""
            for body, count in uses.get(row.node_id, ()):
                for _ in range(count):  # what was sent ahead waits for room, and takes none
                    demand = demands.from_text(body)
                    if room.cpus_milli >= demand.cpus_milli:
                        room.take(demand)
            found.append(FarNode(facts.name, row.tenant_id, room))
        self._nodes = found
        return False
