"""A few fields of many tasks, for long lists: only their columns are read and only they are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from geres.errors import Invalid
from geres.model.ids import number_of, show_task
from geres.model.states import TaskState
from geres.model.tasks import Task
from geres.model.units import rfc3339
from geres.store import show
from geres.store.database import Row, Tx

_NAMES = frozenset(field.name for field in msgspec.structs.fields(Task))


class _Shown(NamedTuple):
    """Columns of the list's query, and what makes the field out of them and of what is known of the page."""

    columns: tuple[str, ...]
    make: Callable[..., Any] | None = None
    with_page: bool = False  #: `make` gets the _Page first


class _Page(NamedTuple):
    specs: dict[int, Any]
    last: dict[int, Row]
    runs: list[Any]  #: of the latest row: its key, what it runs


def _name(page: _Page, name: str | None, spec_id: int) -> str | None:
    return name or page.specs[spec_id].name


def _what_runs(page: _Page, key: int, spec_id: int, argv: str | None, item: str | None, total: int) -> Any:
    if page.runs[:1] != [key]:  # asked for as `command` and as `shell`
        row = {"id": key, "argv": argv, "item": item, "is_array": total > 0}
        page.runs[:] = [key, show.what_runs(row, page.specs[spec_id])]
    return page.runs[1]


def _node(page: _Page, key: int, node: str | None, state: str) -> str | None:
    last = page.last.get(key)
    return node or (last["node"] if last and TaskState(state).final else None)


def _usage(page: _Page, key: int) -> Any:
    last = page.last.get(key)
    return None if last is None else show.usage(last)


_COMMAND = ("t.id", "t.spec_id", "t.argv", "t.item", "j.array_total")
_SHOWN = {
    "id": _Shown(("t.id",), show_task),
    "job_id": _Shown(("t.job_id",), str),
    "number": _Shown(("t.id",), number_of),
    **{
        name: _Shown((f"t.{name}",))
        for name in (
            *("state", "reason", "message", "submitted_by", "priority", "item", "attempt", "retry_count"),
            *("requeue_count", "lost_count", "exit_code", "signal", "version"),
        )
    },
    **{
        name: _Shown((f"t.{name}",), rfc3339)
        for name in ("state_since", "created_at", "assigned_at", "started_at", "ended_at")
    },
    "name": _Shown(("t.name", "t.spec_id"), _name, True),
    "meta": _Shown(("t.spec_id",), lambda page, spec_id: page.specs[spec_id].meta, True),
    "command": _Shown(_COMMAND, lambda *facts: _what_runs(*facts)[0], True),
    "shell": _Shown(_COMMAND, lambda *facts: _what_runs(*facts)[1], True),
    "pool": _Shown(("p.name",)),
    "cpus": _Shown(("c.cpus_milli",), lambda milli: milli / 1000),
    "memory_bytes": _Shown(("c.memory_bytes",)),
    "gpus": _Shown(("c.gpus",)),
    "node": _Shown(("t.id", "m.name", "t.state"), _node, True),
    "usage": _Shown(("t.id",), _usage, True),
}
_OF_SPEC = frozenset({"name", "meta", "command", "shell"})
_OF_ATTEMPT = frozenset({"node", "usage"})
#: Columns that say whether a task has attempts.
_TRIED = ("t.id", "t.attempt", "t.state")


def read_names(text: str) -> list[str]:
    """The fields of `id,state,command`.  Raises Invalid for one that a task does not have."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in _NAMES:
            known = ", ".join(sorted(_NAMES))
            raise Invalid(f"fields: {name!r} is no field of a task; there are {known}", field="fields")
    return list(dict.fromkeys(names))


def columns_of(names: Sequence[str]) -> list[str]:
    """The columns that the list's query reads for these fields."""
    found = ["t.id"]
    if not all(name in _SHOWN for name in names):
        return found
    for name in names:
        found += _SHOWN[name].columns
    if _OF_ATTEMPT & set(names):
        found += _TRIED
    return list(dict.fromkeys(found))


def fields_of(
    tx: Tx, names: Sequence[str], columns: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> list[Row]:
    """The fields of the tasks whose `columns` were read, in the order of the rows."""
    if not all(name in _SHOWN for name in names):
        tasks = show.tasks_by_id(tx, [row[0] for row in rows])
        return [{name: getattr(tasks[row[0]], name) for name in names} for row in rows if row[0] in tasks]
    place = {column: i for i, column in enumerate(columns)}
    page = _page(tx, names, place, rows)
    makers = []
    for name in names:
        shown = _SHOWN[name]
        makers.append((name, tuple(place[column] for column in shown.columns), shown.make, shown.with_page))
    made: list[Row] = []
    for row in rows:
        fields: Row = {}
        for name, places, make, with_page in makers:
            if make is None:
                fields[name] = row[places[0]]
            elif with_page:
                fields[name] = make(page, *[row[i] for i in places])
            else:
                fields[name] = make(row[places[0]])
        made.append(fields)
    return made


def _page(tx: Tx, names: Sequence[str], place: dict[str, int], rows: Sequence[tuple[Any, ...]]) -> _Page:
    specs: dict[int, Any] = {}
    if _OF_SPEC & set(names):
        ids = sorted({row[place["t.spec_id"]] for row in rows})
        found = tx.rows("specs_by_id", spec_ids=ids) if ids else []
        specs = {spec_id: show.spec_from_text(body) for spec_id, body in found}
    last: dict[int, Row] = {}
    if _OF_ATTEMPT & set(names):
        key, attempt, state = (place[column] for column in _TRIED)
        tried = [row[key] for row in rows if row[attempt] or row[state] not in show.NEW]
        attempts = tx.all("show_last_attempts", task_ids=tried) if tried else []
        last = {row["task_id"]: row for row in attempts}
    return _Page(specs, last, [])
