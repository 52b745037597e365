"""Bugs to plant: each takes away one thing that a promise stands on.

A mutant replaces words in the source of a function, or in an SQL statement, and fails where they are not
there any more: then the product has changed, and so has to be the mutant.
"""

from __future__ import annotations

import contextlib
import inspect
import linecache
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from geres.agent import node as agent_node
from geres.model import lifecycle
from geres.server import dispatcher, leases
from geres.store import ends, nodes, turn
from geres.store.sql import statements
from tests.simulation import fleet

Mutant = Callable[[], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def source(
    owner: Any, name: str, *changes: tuple[str, str], module: ModuleType | None = None
) -> Iterator[None]:
    """A function of a module or a class with other words in it."""
    original = getattr(owner, name)
    linecache.checkcache()
    text = textwrap.dedent(inspect.getsource(original))
    for old, new in changes:
        assert text.count(old) == 1, f"{name} has no single {old!r} any more: mend the mutant"
        text = text.replace(old, new)
    home = module or inspect.getmodule(owner) or owner
    found: dict[str, Any] = {}
    code = compile(f"from __future__ import annotations\n{text}", f"<mutant of {name}>", "exec")
    exec(code, home.__dict__, found)
    setattr(owner, name, found[name])
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextlib.contextmanager
def sql(name: str, old: str, new: str) -> Iterator[None]:
    """An SQL statement with other words in it, on both databases."""
    saved = []
    for dialect in ("sqlite", "postgres"):
        texts = statements(dialect)  # type: ignore[arg-type]
        assert texts[name].count(old) == 1, f"{name} has no single {old!r} any more: mend the mutant"
        saved.append((texts, texts[name]))
        texts[name] = texts[name].replace(old, new)
    try:
        yield
    finally:
        for texts, text in saved:
            texts[name] = text


@contextlib.contextmanager
def numbers_outside_the_lock() -> Iterator[None]:
    """Finish numbers from a sequence, which no rollback takes back, instead of from the job's locked row."""
    given: Counter[int] = Counter()
    original = ends._count

    empty = fleet._empty

    def empty_all(db: Any) -> None:
        given.clear()
        empty(db)

    def count(tx: Any, job_id: int, its_ends: list[Any], now_us: int) -> tuple[int, bool]:
        _, ended = original(tx, job_id, its_ends, now_us)
        given[job_id] += len(its_ends)
        return given[job_id], ended

    ends._count, fleet._empty = count, empty_all
    try:
        yield
    finally:
        ends._count, fleet._empty = original, empty


MUTANTS: dict[str, Mutant] = {
    "the fence is dropped": lambda: source(
        turn,
        "_end",
        ("task.attempt == report.attempt", "setattr(report, 'attempt', task.attempt) is None"),
    ),
    "the node of a report is not looked at": lambda: source(turn, "_end", (" and task.node_id == node", "")),
    "the lease is not checked": lambda: source(
        leases.Watch, "_length_us", ("return self._lease_us", "return 0"), ("return max(", "return 0 * max(")
    ),
    "the clock says when a lease ends": lambda: source(
        leases.Watch, "ended", ("if end <= now", "if (lease.until or end) <= self._clock()")
    ),
    "a lease never ends": lambda: source(leases.Watch, "ended", ("known.get(lease) or ", "")),
    "finish numbers come from outside the lock": numbers_outside_the_lock,
    "a requeue is charged as a retry": lambda: source(
        lifecycle, "_after_loss", ("requeue=1, lost=1", "retry=1, lost=1")
    ),
    "the epoch is not looked at": lambda: source(
        turn, "_check_epochs", ("if rows.get(node) == epoch", "if node in rows")
    ),
    "what the store does not know is not killed": lambda: source(
        nodes, "_settle_attempts", ("sorted(has - known)", "[]")
    ),
    "reports of a turn that failed are dropped": lambda: source(
        dispatcher.Dispatcher, "_put_back", ("work.ended + self._ended", "self._ended"), module=dispatcher
    ),
    "assignments whose answer was lost are not looked for": lambda: source(
        dispatcher.Dispatcher, "step", ("if self._unsure:", "if False:"), module=dispatcher
    ),
    "a requeued task does not wake its lane": lambda: source(
        turn, "settle", ("wake_lanes(tx, (row[0] for row in requeued))", "pass")
    ),
    "ends are not repeated over a new connection": lambda: source(
        agent_node.Node, "connected", ("dict.fromkeys(self.ended)", "{}"), module=agent_node
    ),
    "orders to a new supervisor count as lost": lambda: source(
        agent_node.Node, "linked", ("set(self.attempts)", "_All()"), module=agent_node
    ),
}


class _All:
    """A set that holds everything."""

    def __contains__(self, key: object) -> bool:
        return True


agent_node._All = _All  # type: ignore[attr-defined]  # for the mutant's source
