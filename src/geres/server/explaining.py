"""What the connected nodes of a pool say about a task, in words, and about their disks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from geres.model.demand import Demand
from geres.model.tasks import WhyNode
from geres.scheduling.rooms import Room, why_not
from geres.server.desk import Desk


class Connected(Protocol):
    """A node that is connected, here or to another server."""

    @property
    def name(self) -> str: ...

    @property
    def room(self) -> Room: ...


def explain(desks: Iterable[Connected], pool: str, demand: Demand) -> tuple[list[WhyNode], str | None]:
    """Why the nodes of the pool do not take such a task now, and the first that would."""
    reasons: dict[tuple[str, bool, bool], list[str]] = {}
    for desk in sorted(desks, key=lambda desk: desk.name):
        if desk.room.facts.pool != pool:
            continue
        refusal = why_not(demand, desk.room)
        if refusal is None:
            return [], desk.name
        in_service = desk.room.in_service or not refusal[1]
        reasons.setdefault((*refusal, in_service), []).append(desk.name)
    return [
        WhyNode(
            node=names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more",
            reason=why,
            ever=ever,
            in_service=in_service,
        )
        for (why, ever, in_service), names in reasons.items()
    ], None


def full_disks(desks: Iterable[Desk], pool: str, percent: float) -> list[tuple[str, float]]:
    """(node, percent in use) of the nodes of the pool whose disk is fuller, the fullest first."""
    found = [
        (desk.name, desk.disk_percent)
        for desk in desks
        if desk.disk_percent > percent and desk.room.facts.pool == pool
    ]
    return sorted(found, key=lambda one: (-one[1], one[0]))
