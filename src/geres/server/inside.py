"""A look into the running server, for people who search for a fault."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
import traceback
from types import FrameType

import psutil

from geres.aio import Pulse
from geres.api.context import Context
from geres.model.inside import LoopInside, NodeInside, ServerInside, Stack
from geres.server.desk import Desk
from geres.server.dispatcher import Dispatcher

_MOST_STACKS = 200
_MOST_FRAMES = 12


class Inside:
    def __init__(self, context: Context, dispatcher: Dispatcher) -> None:
        self._context, self._dispatcher = context, dispatcher
        self._began_at = time.monotonic()

    def look(self) -> ServerInside:
        """The state at this moment.  Call it in the event loop."""
        context, desks = self._context, self._dispatcher.desks
        tasks = asyncio.all_tasks()
        return ServerInside(
            version=context.version,
            pid=os.getpid(),
            url=context.url,
            server_id=str(context.server_id),
            stopping=context.stopping,
            up_seconds=round(time.monotonic() - self._began_at, 3),
            memory_bytes=psutil.Process().memory_info().rss,
            objects=len(gc.get_objects()),
            loops=[_loop(name, pulse) for name, pulse in context.pulses.items()],
            nodes=[_node(desk) for desk in sorted(desks.values(), key=lambda desk: desk.name)],
            queues={**self._dispatcher.queue_lengths(), "tasks of the event loop": len(tasks)},
            store=context.db.inside(),
            tasks=[_task(task) for task in sorted(tasks, key=lambda task: task.get_name())[:_MOST_STACKS]],
            threads=_threads(),
        )


def _loop(name: str, pulse: Pulse) -> LoopInside:
    now = time.monotonic()
    return LoopInside(
        name=name,
        rounds=pulse.rounds,
        last_round_seconds_ago=None if pulse.ended_at is None else round(now - pulse.ended_at, 3),
        runs_for_seconds=None if pulse.began_at is None else round(now - pulse.began_at, 3),
        last_seconds=round(pulse.last_seconds, 6),
        mean_seconds=round(pulse.total_seconds / pulse.rounds, 6) if pulse.rounds else 0.0,
        longest_seconds=round(pulse.longest_seconds, 6),
        error=pulse.error,
        error_seconds_ago=None if pulse.error is None else round(now - pulse.error_at, 3),
    )


def _node(desk: Desk) -> NodeInside:
    return NodeInside(
        name=desk.name,
        id=str(desk.node_id),
        epoch=desk.epoch,
        attempts=len(desk.held),
        cpus_free=desk.room.cpus_milli / 1000,
        memory_bytes_free=desk.room.memory_bytes,
        gpus_free=len(desk.free_gpus),
        accepting=desk.room.accepting,
        heard_seconds_ago=round(time.monotonic() - desk.heartbeat_at, 3),
    )


def _task(task: asyncio.Task[object]) -> Stack:
    return Stack(name=task.get_name(), frames=_frames(task.get_stack(limit=_MOST_FRAMES)))


def _threads() -> list[Stack]:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return [
        Stack(
            name=names.get(number, str(number)),
            frames=[_place(one) for one in traceback.extract_stack(frame)[-_MOST_FRAMES:]],
        )
        for number, frame in sys._current_frames().items()
    ]


def _frames(frames: list[FrameType]) -> list[str]:
    return [f"{one.f_code.co_filename}:{one.f_lineno} {one.f_code.co_name}" for one in frames]


def _place(summary: traceback.FrameSummary) -> str:
    return f"{summary.filename}:{summary.lineno} {summary.name}"
