"""What is free on a node, and whether a demand fits there, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import NamedTuple

from geres.errors import Invalid
from geres.model.demand import Demand
from geres.model.expressions import node_matcher
from geres.model.units import plural, show_size


class Facts(NamedTuple):
    """What stays while a node is connected.  Nodes with equal facts, but for the name, are alike."""

    name: str
    pool: str
    arch: str
    os: str
    host: str
    host_id: str
    cpus_milli: int
    memory_bytes: int
    gpus: int
    counts: tuple[tuple[str, int], ...]
    labels: tuple[tuple[str, str], ...]
    shared_paths: tuple[str, ...]
    slots: int  #: most tasks at once; 0: no such limit


@dataclass(slots=True)
class Room:
    """What is free on one node at this moment.  Changed by `take` and `give` alone."""

    node_id: int
    facts: Facts
    cpus_milli: int
    memory_bytes: int
    gpus: int
    counts: dict[str, int] = field(default_factory=dict)
    tasks: int = 0  #: that take room here
    exclusive: bool = False  #: one task has the node for itself
    accepting: bool = True  #: False: drained, disconnected
    reserved_for: int | None = None  #: the task that this node is being emptied for
    outside_cpus_milli: int = 0  #: used by programs that are none of ours
    outside_memory_bytes: int = 0
    why_closed: str = ""  #: where it does not accept for a reason of its own
    in_service: bool = True  #: False: its start task runs, or has failed

    def take(self, demand: Demand) -> None:
        self.cpus_milli -= demand.cpus_milli
        self.memory_bytes -= demand.memory_bytes
        self.gpus -= demand.gpus
        for name, count in demand.counts:
            self.counts[name] = self.counts.get(name, 0) - count
        self.tasks += 1
        self.exclusive = self.exclusive or demand.exclusive

    def give(self, demand: Demand) -> None:
        self.cpus_milli += demand.cpus_milli
        self.memory_bytes += demand.memory_bytes
        self.gpus += demand.gpus
        for name, count in demand.counts:
            self.counts[name] = self.counts.get(name, 0) + count
        self.tasks -= 1
        if demand.exclusive:
            self.exclusive = False

    def copy(self) -> Room:
        return Room(
            self.node_id,
            self.facts,
            self.cpus_milli,
            self.memory_bytes,
            self.gpus,
            dict(self.counts),
            self.tasks,
            self.exclusive,
            self.accepting,
            self.reserved_for,
            self.outside_cpus_milli,
            self.outside_memory_bytes,
            self.why_closed,
            self.in_service,
        )


def empty_room(node_id: int, facts: Facts) -> Room:
    """The room of a node with nothing on it."""
    return Room(node_id, facts, facts.cpus_milli, facts.memory_bytes, facts.gpus, dict(facts.counts))


@lru_cache(maxsize=65536)
def never(demand: Demand, facts: Facts) -> str | None:
    """Why a node with these facts can never run such a task, not even when empty; None: it can."""
    if demand.cpus_milli > facts.cpus_milli:
        return f"needs {_cpus(demand.cpus_milli)} cpus, the node has {_cpus(facts.cpus_milli)}"
    if demand.memory_bytes > facts.memory_bytes:
        has_size = show_size(facts.memory_bytes, down=True)
        return f"needs {show_size(demand.memory_bytes)} of memory, the node has {has_size}"
    if demand.gpus > facts.gpus:
        return f"needs {plural(demand.gpus, 'gpu')}, the node has {facts.gpus}"
    has = dict(facts.counts)
    for name, count in demand.counts:
        if count > has.get(name, 0):
            return f"needs {count} of the resource {name}, the node has {has.get(name, 0)}"
    if demand.nodelist and not any(fnmatchcase(facts.name, pattern) for pattern in demand.nodelist):
        return f"is not in the node list {','.join(demand.nodelist)}"
    if demand.match is not None and not _matches(demand.match, facts):
        return f"does not match {demand.match}"
    if demand.host is not None and not _sees(demand, facts):
        return f"does not see the directory {demand.see_path} of the machine where the task was submitted"
    return None


def _sees(demand: Demand, facts: Facts) -> bool:
    return demand.host == facts.host_id or sees_by_path(demand, facts)


def sees_by_path(demand: Demand, facts: Facts) -> bool:
    """Whether the node sees the demand's directory through a path that machines share."""
    path = demand.see_path or "/"
    return any(path == root or path.startswith(root.rstrip("/") + "/") for root in facts.shared_paths)


def _matches(expression: str, facts: Facts) -> bool:
    try:
        return node_matcher(expression)(match_facts(facts))
    except Invalid:
        return False


def match_facts(facts: Facts) -> Mapping[str, object]:
    """The facts under the names that `--match` uses."""
    return {
        "name": facts.name,
        "pool": facts.pool,
        "arch": facts.arch,
        "os": facts.os,
        "host": facts.host,
        "cpus": facts.cpus_milli / 1000,
        "memory_bytes": facts.memory_bytes,
        "gpus": facts.gpus,
        "labels": dict(facts.labels),
        "resources": dict(facts.counts),
    }


def not_now(demand: Demand, room: Room) -> str | None:
    """Why this node, which could, does not take such a task at this moment; None: it does."""
    if not room.accepting:
        return room.why_closed or "is being drained or not connected"
    if room.exclusive:
        return "is used by one task exclusively"
    if demand.exclusive and room.tasks:
        return f"runs {room.tasks} tasks, and this one wants the node for itself"
    if demand.cpus_milli > room.cpus_milli - room.outside_cpus_milli:
        return f"needs {_cpus(demand.cpus_milli)} cpus, {_cpus(max(0, room.cpus_milli))} are free"
    if demand.memory_bytes > room.memory_bytes - room.outside_memory_bytes and demand.memory_bytes:
        free = max(0, room.memory_bytes - room.outside_memory_bytes)
        return f"needs {show_size(demand.memory_bytes)} of memory, {show_size(free, down=True)} is free"
    if demand.gpus > room.gpus:
        return f"needs {plural(demand.gpus, 'gpu')}, {room.gpus} {'is' if room.gpus == 1 else 'are'} free"
    for name, count in demand.counts:
        if count > room.counts.get(name, 0):
            return f"needs {count} of the resource {name}, {room.counts.get(name, 0)} are free"
    if room.facts.slots and room.tasks >= room.facts.slots:
        return f"all of its {room.facts.slots} slots are taken"
    if room.reserved_for is not None:
        return "is being emptied for a task that has waited long"
    return None


def why_not(demand: Demand, room: Room) -> tuple[str, bool] | None:
    """(why not, whether it could later); None where the task could start there now."""
    if reason := never(demand, room.facts):
        return reason, False
    if reason := not_now(demand, room):
        return reason, True
    return None


def how_many(demand: Demand, room: Room) -> int:
    """How many such tasks could start there now, side by side."""
    if demand.cpus_milli > room.cpus_milli - room.outside_cpus_milli or not room.accepting:
        return 0  # most often so, and many nodes are asked: without the words of a refusal
    if why_not(demand, room) is not None:
        return 0
    if demand.exclusive:
        return 1
    most = room.facts.slots - room.tasks if room.facts.slots else 1_000_000
    for need, free in (
        (demand.cpus_milli, room.cpus_milli - room.outside_cpus_milli),
        (demand.memory_bytes, room.memory_bytes - room.outside_memory_bytes),
        (demand.gpus, room.gpus),
        *((count, room.counts.get(name, 0)) for name, count in demand.counts),
    ):
        if need:
            most = min(most, free // need)
    return most


def _cpus(milli: int) -> str:
    return f"{milli / 1000:g}"
