"""Sees operators' wishes for nodes through: removing, rebooting, reviving; on any number of servers.

Hooks run beside the loops: one that hangs, as with a machine that is dead, must hold up nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
from anyio.abc import TaskGroup

from geres.api.context import Context
from geres.errors import StoreUnavailable
from geres.model.units import parse_duration
from geres.server import hooks
from geres.server.dispatcher import Dispatcher
from geres.store import node_actions
from geres.store.database import Order
from geres.store.node_actions import Going, Silent

log = logging.getLogger("geres.attending")

_MISSED_HEARTBEATS = 4
_MOST_HOOKS = 8  #: that run at once on this server
_AGAIN_SECONDS = 2.0


class Attendant:
    """Two loops; what is to be done stands in the store, so each step may be anyone's, and after a crash
    another server goes on."""

    def __init__(
        self,
        context: Context,
        dispatcher: Dispatcher,
        commands: Mapping[str, str],
        *,
        lease_seconds: float,
    ) -> None:
        """`commands` are the hooks of the settings."""
        self._context, self._dispatcher, self._commands = context, dispatcher, commands
        self._silent_us = int(lease_seconds / 3 * _MISSED_HEARTBEATS * 1e6)
        self._again_us = int(lease_seconds * 2 * 1e6)
        self._give_up_us = int(parse_duration(commands.get("give_up", "1h"), "give_up") * 1e6)
        self._group: TaskGroup | None = None
        self._limiter = anyio.CapacityLimiter(_MOST_HOOKS)
        self._busy: set[int] = set()  #: nodes whose hook runs here, or waits for its turn

    async def run(self) -> None:
        """Run hooks until cancelled, which ends them."""
        async with anyio.create_task_group() as self._group:
            await anyio.sleep_forever()

    async def step(self) -> bool:
        """Go on with the nodes that are to go.  True where more tasks have to be asked to leave."""
        db, clock = self._context.db, self._context.clock
        more = False
        for node in await db.read(node_actions.going):
            done = await db.run_as(Order.LOOP, node_actions.send_off, node, now_us=clock())
            if done.asked_nodes:
                self._dispatcher.asked(done.asked_nodes)
                more = True
            elif node.going.startswith("reboot") and not self._commands.get("reboot"):
                continue  # of a server that has the hook
            elif await db.run_as(Order.LOOP, node_actions.begin, node, now_us=clock()):
                if node.going.startswith("remove"):
                    self._say_goodbye(node)
                else:
                    self._begin(self._reboot, node)
        return more

    async def revive_step(self) -> bool:
        """Run the hook `kickstart` for nodes that are silent, once a try."""
        if not self._commands.get("kickstart"):
            return False
        nodes = await self._context.db.read(
            node_actions.silent,
            silent_us=self._silent_us,
            again_us=self._again_us,
            give_up_us=self._give_up_us,
            now_us=self._context.clock(),
        )
        for node in nodes:
            self._begin(self._kick, node)
        return False

    def _begin(self, work: Callable[[Any], Awaitable[None]], node: Going | Silent) -> None:
        if self._group is not None and node.id not in self._busy:
            self._busy.add(node.id)
            self._group.start_soon(self._one, work, node)

    async def _one(self, work: Callable[[Any], Awaitable[None]], node: Going | Silent) -> None:
        try:
            async with self._limiter:
                await work(node)
        except StoreUnavailable as error:
            log.warning("node %s: %s; its hook has another try", node.name, error)
        finally:
            self._busy.discard(node.id)

    def _say_goodbye(self, node: Going) -> None:
        log.info("node %s is removed", node.name, extra={"event": "node_removed", "node": node.name})
        if desk := self._dispatcher.desks.get(node.id):
            self._dispatcher.disconnect(desk, "this node was removed from the cluster")

    async def _reboot(self, node: Going) -> None:
        why = await hooks.run("reboot", self._commands.get("reboot", ""), node.name, _facts(node.host))
        while why is not None:
            try:
                await self._context.db.run_as(
                    Order.LOOP, node_actions.give_up, node, why, now_us=self._context.clock()
                )
                return
            except StoreUnavailable:  # nobody else knows that it failed
                await anyio.sleep(_AGAIN_SECONDS)

    async def _kick(self, node: Silent) -> None:
        clock = self._context.clock
        number = await self._context.db.run_as(Order.LOOP, node_actions.note_kick, node, now_us=clock())
        if number is None:
            return
        log.warning(
            "node %s is silent for %d s; the hook kickstart is run, try %d",
            *(node.name, (clock() - node.heard_at) // 1_000_000, number),
            extra={"event": "kickstart", "node": node.name},
        )
        await hooks.run(
            "kickstart",
            self._commands["kickstart"],
            node.name,
            {**_facts(node.host), "GERES_TRY": str(number)},
        )


def _facts(host: str) -> dict[str, str]:
    return {"GERES_NODE_HOST": host}
