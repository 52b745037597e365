"""Tells nodes what was asked of their tasks: cancel, suspend, signal, recall, and what was ended by force."""

from __future__ import annotations

from geres.model.wire import Ask, Frame
from geres.server.dispatcher import Dispatcher
from geres.server.frames import ask_action, ask_signal
from geres.store import agent_actions, dispatching
from geres.store.database import Database


class Asking:
    """A loop beside the dispatcher.  What was asked stands in the store, and is repeated until answered."""

    def __init__(self, db: Database, dispatcher: Dispatcher) -> None:
        self._db, self._dispatcher = db, dispatcher

    async def step(self) -> bool:
        dispatcher = self._dispatcher
        named, dispatcher.asked_nodes = dispatcher.asked_nodes & dispatcher.desks.keys(), set()
        named |= {desk.node_id for desk in dispatcher.desks.values() if dispatcher.is_silent(desk)}
        await self._ask(sorted(dispatcher.desks))
        await self._kill(sorted(dispatcher.desks))
        looked_at = await self._db.read(dispatching.look_at, sorted(named)) if named else {}
        wishes = await self._db.read(agent_actions.asked, sorted(dispatcher.desks))
        if wishes:
            await self._db.run(agent_actions.told, [node_id for node_id, _ in wishes])
        self._send({node_id: Frame(agent=what) for node_id, what in wishes})
        for node_id, (epoch, draining) in looked_at.items():
            desk = dispatcher.desks.get(node_id)
            if desk is not None and desk.epoch < epoch:
                dispatcher.disconnect(desk, "another server holds this node")
            elif desk is not None:
                dispatcher.set_draining(desk, draining)
        return False

    async def _ask(self, node_ids: list[int]) -> None:
        """All of it, piece by piece: those who do not answer must not hide what was asked of the others."""
        after, more = 0, True
        while more:
            asked = await self._db.read(dispatching.asked_on, node_ids, after)
            frames: dict[int, Frame] = {}
            for node_id, task, attempt, action, message, asked_at in asked:
                after = task
                desk = self._dispatcher.desks.get(node_id)
                if desk is None or (ask_signal(action) and not desk.signal_once(task, attempt, asked_at)):
                    continue
                frames.setdefault(node_id, Frame()).ask.append(
                    Ask(task, attempt, ask_action(action), ask_signal(action), message or "")
                )
            self._send(frames)
            more = len(asked) == dispatching.PIECE

    async def _kill(self, node_ids: list[int]) -> None:
        after, more = (0, 0, 0), True
        while more:
            kills = await self._db.read(dispatching.kills_on, node_ids, after)
            frames: dict[int, Frame] = {}
            for after in kills:
                node_id, task, attempt = after
                frames.setdefault(node_id, Frame()).ask.append(Ask(task, attempt, "cancel"))
            self._send(frames)
            more = len(kills) == dispatching.PIECE

    def _send(self, frames: dict[int, Frame]) -> None:
        for node_id, frame in frames.items():
            if desk := self._dispatcher.desks.get(node_id):
                desk.send(frame)
