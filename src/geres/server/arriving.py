"""Counts the attempts of a node that has just connected: which have room there, which wait for it."""

from __future__ import annotations

from collections.abc import Sequence

from geres.model import demand as demands
from geres.model.wire import AttemptKey
from geres.scheduling.rooms import why_not
from geres.server.desk import Desk
from geres.store.nodes import Held


def take_in(
    desk: Desk,
    held: Sequence[Held],
    resend: Sequence[Held],
    running: Sequence[AttemptKey],
    gpu_ids: Sequence[tuple[int, int, list[int]]],
) -> tuple[list[tuple[Held, int]], list[Held]]:
    """Count the attempts that a node has at its new desk, and those that are to be sent to it again.

    What runs has room; of what waits there as much as fits, and the rest was sent ahead.  Returns the
    attempts to send, each with its `ahead`, and those that were sent ahead of something that is gone by now
    and do not fit: they are to be given back.
    """
    runs, again = set(running), {(one.id, one.attempt) for one in resend}
    stays = {(one.id, one.attempt) for one in held}  # the others are killed before anything starts there
    gpus = {(task, attempt): ids for task, attempt, ids in gpu_ids if (task, attempt) in stays}
    taken = {number for ids in gpus.values() for number in ids}
    desk.free_gpus = [number for number in desk.free_gpus if number not in taken]
    there = [one for one in held if (one.id, one.attempt) not in again]
    for one in sorted(there, key=lambda one: (one.id, one.attempt) not in runs):
        key, demand = (one.id, one.attempt), demands.from_text(one.demand)
        lane = desk.lanes.get(one.lane_id)
        ahead = key not in runs and lane is not None and why_not(demand, desk.room) is not None
        desk.add(key, one.lane_id, demand, ahead=ahead, gpu_ids=gpus.get(key)).started = key in runs
    send, give_back = list[tuple[Held, int]](), list[Held]()
    for one in resend:
        demand, lane = demands.from_text(one.demand), desk.lanes.get(one.lane_id)
        fits = why_not(demand, desk.room) is None
        if not fits and (lane is None or demand.exclusive or demand.gpus or not desk.room.accepting):
            give_back.append(one)
            continue
        desk.add((one.id, one.attempt), one.lane_id, demand, ahead=not fits)
        send.append((one, 0 if fits or lane is None else lane.in_room))
    return send, give_back
