"""Lists of tasks: filters, orders and cursors, all from fixed tables of columns."""

from __future__ import annotations

import base64
import json
import re
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from geres.errors import Invalid
from geres.model.callers import Caller
from geres.model.expressions import Field, is_storable, to_sql
from geres.model.nearest import did_you_mean
from geres.model.states import FINAL, ON_NODE, WAITING, Reason, TaskState
from geres.model.tasks import PartPage, TaskPage
from geres.model.units import parse_time
from geres.store import known, show, task_fields
from geres.store.below import TASKS_BELOW
from geres.store.database import Tx
from geres.store.job_counts import count_states
from geres.store.sql import statements

MOST_ON_PAGE = 10_000

#: What `filter` may name.  The names are those of the JSON; `user`, `job` are short for two of them.
FILTER_FIELDS: dict[str, Field] = {
    "id": Field("task", "t.id"),
    "job_id": Field("job", "t.job_id"),
    "job": Field("job", "t.job_id"),
    "job_name": Field("text", "j.name"),
    "state": Field("text", "t.state", words=tuple(TaskState)),
    "reason": Field("text", "t.reason", words=tuple(Reason)),
    "name": Field("text", "t.name"),
    "item": Field("text", "t.item"),
    "submitted_by": Field("text", "t.submitted_by"),
    "user": Field("text", "t.submitted_by"),
    "pool": Field("text", "p.name"),
    "node": Field("text", "n.name"),
    "priority": Field("number", "t.priority"),
    "cpus": Field("millis", "c.cpus_milli"),
    "memory_bytes": Field("bytes", "c.memory_bytes"),
    "gpus": Field("number", "c.gpus"),
    "attempt": Field("number", "t.attempt"),
    "exit_code": Field("number", "t.exit_code"),
    "signal": Field("number", "t.signal"),
    "retry_count": Field("number", "t.retry_count"),
    "requeue_count": Field("number", "t.requeue_count"),
    "lost_count": Field("number", "t.lost_count"),
    "created_at": Field("time", "t.created_at"),
    "started_at": Field("time", "t.started_at"),
    "ended_at": Field("time", "t.ended_at"),
    "wait_seconds": Field("micros", "(t.started_at - t.created_at)"),
    "usage.wall_seconds": Field("micros", "a.wall_us"),
    "usage.user_seconds": Field("micros", "a.user_us"),
    "usage.system_seconds": Field("micros", "a.system_us"),
    "usage.max_rss_bytes": Field("bytes", "a.max_rss_bytes"),
    "meta": Field("text", "s.meta", keys=True),
}
_JSON_TEXT = {
    "sqlite": "json_extract({column}, '$.\"' || {key} || '\"')",
    "postgres": "(CAST({column} AS JSON) ->> CAST({key} AS TEXT))",
}
#: What tasks ask for, out of the JSON of their resource classes: few rows, and looked into once for a list.
_CLASSES = {
    "sqlite": "(SELECT id, CAST(COALESCE(body->>'cpus_milli', 1000) AS INTEGER) AS cpus_milli,"
    " CAST(COALESCE(body->>'memory_bytes', 0) AS INTEGER) AS memory_bytes,"
    " CAST(COALESCE(body->>'gpus', 0) AS INTEGER) AS gpus FROM resource_class WHERE json_valid(body))",
    "postgres": "(SELECT id,"
    " CAST(COALESCE(CAST(body AS JSON)->>'cpus_milli', '1000') AS BIGINT) AS cpus_milli,"
    " CAST(COALESCE(CAST(body AS JSON)->>'memory_bytes', '0') AS BIGINT) AS memory_bytes,"
    " CAST(COALESCE(CAST(body AS JSON)->>'gpus', '0') AS BIGINT) AS gpus FROM resource_class)",
}
#: Sort word to columns; a column that may be NULL sorts as the smallest value.
_SORTS: dict[str, str] = {
    "id": "t.id",
    "created_at": "t.created_at",
    "started_at": "COALESCE(t.started_at, 0)",
    "ended_at": "COALESCE(t.ended_at, 0)",
    "state_since": "t.state_since",
    "priority": "t.priority",
    "state": "t.state",
    "name": "COALESCE(t.name, '')",
    "submitted_by": "t.submitted_by",
    "user": "t.submitted_by",
    "exit_code": "COALESCE(t.exit_code, -1)",
    "cpus": "c.cpus_milli",
    "memory_bytes": "c.memory_bytes",
    "gpus": "c.gpus",
    "node": "COALESCE(n.name, '')",
    "usage.wall_seconds": "COALESCE(a.wall_us, -1)",
    "usage.max_rss_bytes": "COALESCE(a.max_rss_bytes, -1)",
}
_TEXT_SORTS = frozenset({"state", "name", "submitted_by", "user", "node"})
_JOINS = {
    "a": "LEFT JOIN attempt a ON a.task_id = t.id AND a.attempt = t.attempt AND a.round = t.round",
    "n": "LEFT JOIN node n ON n.id = COALESCE(t.node_id, a.node_id)",
    "j": "JOIN job j ON j.id = t.job_id",
    "s": "JOIN spec s ON s.id = t.spec_id",
    "l": "JOIN lane l ON l.id = t.lane_id",
    "p": "JOIN pool p ON p.id = l.pool_id",
    "m": "LEFT JOIN node m ON m.id = t.node_id",
    "c": "JOIN {classes} c ON c.id = l.class_id",
}
_NEEDS = {"n": ("a",), "p": ("l",), "c": ("l",)}
_ALIAS = re.compile(r"\b([anjslpcm])\.")
_WORDS = {"pending": WAITING, "final": FINAL, "on_node": ON_NODE}


class TaskQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """Query of GET /v1/tasks."""

    job: str | None = None  #: id or name
    state: str | None = None  #: states, parted by commas; also `pending` and `final`
    user: str | None = None
    name: str | None = None
    node: str | None = None
    pool: str | None = None
    filter: str | None = None  #: an expression, like `exit_code == 1 and meta.proj == "x"`
    grep: str | None = None  #: a part of the command, the item or the name
    since: str | None = None  #: of created_at; of ended_at where state is final
    until: str | None = None
    dead: bool = False  #: only tasks that failed with their retries used up
    sort: str | None = None  #: a field, or -field; `queue` is the order of starting
    limit: int = 100
    cursor: str | None = None
    count: bool = False  #: fill `matched`
    fields: str | None = None  #: only these of each task, parted by commas: of use in long lists


class _Order(NamedTuple):
    columns: list[str]
    descending: list[bool]

    def sql(self) -> str:
        return ", ".join(
            f"{column} DESC" if down else column
            for column, down in zip(self.columns, self.descending, strict=True)
        )

    def after(self, values: list[Any]) -> tuple[str, dict[str, Any]]:
        """The condition for what comes behind a row with these values, so that an index begins there."""
        conditions, parameters = [], {f"k{i}": value for i, value in enumerate(values)}
        if len(set(self.descending)) == 1:
            sign = "<" if self.descending[0] else ">"
            return (
                f" AND ({', '.join(self.columns)}) {sign} ({', '.join(':' + k for k in parameters)})",
                parameters,
            )
        for i, (column, down) in enumerate(zip(self.columns, self.descending, strict=True)):
            equal = "".join(f"{self.columns[j]} = :k{j} AND " for j in range(i))
            conditions.append(f"({equal}{column} {'<' if down else '>'} :k{i})")
        first = f"{self.columns[0]} {'<=' if self.descending[0] else '>='} :k0"
        return f" AND {first} AND ({' OR '.join(conditions)})", parameters


class _Where:
    """Gathers conditions and parameters."""

    def __init__(self) -> None:
        self.text = ""
        self.parameters: dict[str, Any] = {}

    def add(self, condition: str, **parameters: Any) -> None:
        self.text += f" AND {condition}"
        self.parameters.update(parameters)


def list_tasks(tx: Tx, caller: Caller, query: TaskQuery, *, job_id: int | None) -> TaskPage | PartPage:
    """One page of the tasks that match, with the cursor of the next one.

    Pages do not repeat a task while others are added.  `job_id` is what `query.job` means.  Raises Invalid,
    or where nothing matches NotFound for a job, user, node or pool that is not there.
    """
    if not 1 <= query.limit <= MOST_ON_PAGE:
        raise Invalid(f"limit: {query.limit} is not between 1 and {MOST_ON_PAGE}", field="limit")
    names = None if query.fields is None else task_fields.read_names(query.fields)
    states = _states(query)
    where = _conditions(tx, query, states, job_id)
    if caller.task:
        where.add(TASKS_BELOW, root=caller.task)
    elif caller.private:
        where.add("t.submitted_by = :viewer", viewer=caller.subject)
    order, mark = _order(query, states)
    matched = _matched(tx, caller, query, where, states, job_id) if query.count else None
    if query.cursor is not None:
        condition, parameters = order.after(_read_cursor(query.cursor, mark, len(order.columns)))
        where.text += condition
        where.parameters.update(parameters)
    shown = [] if names is None else task_fields.columns_of(names)
    columns = ", ".join(f"{column} AS c{i}" for i, column in enumerate([*order.columns, *shown]))
    sql = _fill(tx, "select_task_ids", where.text, order.sql(), columns)
    found = tx.text(sql, {"tenant_id": caller.tenant_id, "limit": query.limit + 1, **where.parameters})
    if not found and query.cursor is None:
        known.check_names(tx, caller, user=query.user, node=query.node, pool=query.pool, job_id=job_id)
    more, found = len(found) > query.limit, found[: query.limit]
    cursor = None
    if more:
        cursor = _write_cursor(mark, [found[-1][f"c{i}"] for i in range(len(order.columns))])
    if names is not None:
        rows = [tuple(row.values())[-len(shown) :] for row in found]
        items = task_fields.fields_of(tx, names, shown, rows)
        return PartPage(items=items, next_cursor=cursor, matched=matched)
    tasks = show.tasks_by_id(tx, [row["id"] for row in found])
    return TaskPage(
        items=[tasks[row["id"]] for row in found if row["id"] in tasks], next_cursor=cursor, matched=matched
    )


def _states(query: TaskQuery) -> frozenset[TaskState] | None:
    if query.dead:
        return frozenset({TaskState.FAILED})
    if query.state is None:
        return None
    states: set[TaskState] = set()
    for word in query.state.split(","):
        word = word.strip()
        if word in _WORDS:
            states |= _WORDS[word]
            continue
        try:
            states.add(TaskState(word))
        except ValueError:
            words = [*TaskState, *_WORDS]
            hint = did_you_mean(word, words) or f"; there are {', '.join(words)}"
            raise Invalid(f"state: {word!r} is no state{hint}", field="state") from None
    return frozenset(states)


def _conditions(tx: Tx, query: TaskQuery, states: frozenset[TaskState] | None, job_id: int | None) -> _Where:
    where = _Where()
    if job_id is not None:
        where.add("t.id BETWEEN :first AND :last", first=job_id << 32, last=((job_id + 1) << 32) - 1)
    if states is not None:
        _add_states(where, states)
    if query.user is not None:
        where.add("t.submitted_by = :user", user=query.user)
    if query.name is not None:
        where.add("t.name = :name", name=query.name)
    if query.node is not None:
        where.add("n.name = :node", node=query.node)
    if query.pool is not None:
        where.add("p.name = :pool", pool=query.pool)
    if query.grep is not None:
        _add_grep(where, query.grep)
    moment = "t.ended_at" if states is not None and states <= FINAL else "t.created_at"
    if query.since is not None:
        where.add(f"{moment} >= :since", since=parse_time(query.since, "since"))
    if query.until is not None:
        where.add(f"{moment} < :until", until=parse_time(query.until, "until"))
    if query.filter is not None:
        condition, parameters = to_sql(query.filter, FILTER_FIELDS, json_text=_JSON_TEXT[tx.dialect])
        where.add(f"({condition})", **parameters)
    return where


def _add_states(where: _Where, states: frozenset[TaskState]) -> None:
    """States stand in the text itself, so that the database can use its partial indexes."""
    words = ", ".join(f"'{state}'" for state in sorted(states))
    where.add(f"t.state = {words}" if len(states) == 1 else f"t.state IN ({words})")
    if states <= ON_NODE:
        where.add("t.node_id IS NOT NULL")
    if states <= FINAL:
        where.add("t.ended_at IS NOT NULL")


def _add_grep(where: _Where, text: str) -> None:
    if "\0" in text:
        raise Invalid("grep: cannot hold a NUL character", field="grep")
    # Commands are stored as JSON: what a person sees between two words is `","` there.
    escaped = json.dumps(text.lower(), ensure_ascii=False)[1:-1]
    for special in ("~", "%", "_"):
        escaped = escaped.replace(special, "~" + special)
    where.add(
        "(lower(REPLACE(COALESCE(t.argv, s.body), '\",\"', ' ')) LIKE :grep ESCAPE '~'"
        " OR lower(t.name) LIKE :grep ESCAPE '~' OR lower(t.item) LIKE :grep ESCAPE '~')",
        grep=f"%{escaped}%",
    )


def _order(query: TaskQuery, states: frozenset[TaskState] | None) -> tuple[_Order, str]:
    """The order, and the word that marks cursors made with it."""
    word = query.sort
    if word is None:
        word = "queue" if states is not None and states <= WAITING else "-id"
    if word == "queue":
        return _Order(["t.priority", "t.seq", "t.id"], [True, False, False]), word
    down, name = word.startswith("-"), word.removeprefix("-")
    if name not in _SORTS:
        names = [*_SORTS, "queue"]
        hint = did_you_mean(name, names) or f"; there are {', '.join(names)}"
        raise Invalid(f"sort: {name!r} is no field to sort by{hint}", field="sort")
    if name == "id":
        return _Order(["t.id"], [down]), word
    return _Order([_SORTS[name], "t.id"], [down, down]), word


def _fill(tx: Tx, statement: str, where: str, order: str = "", columns: str = "") -> str:
    used = set(_ALIAS.findall(where + order + columns))
    for alias in list(used):
        used.update(_NEEDS.get(alias, ()))
    joins = "\n".join(text for alias, text in _JOINS.items() if alias in used)
    text = statements("sqlite")[statement]
    for mark, value in (("joins", joins), ("where", where), ("order", order), ("sort", columns)):
        text = text.replace(f"/* {mark} */", value)
    return text.replace("{classes}", _CLASSES[tx.dialect])


def _matched(
    tx: Tx,
    caller: Caller,
    query: TaskQuery,
    where: _Where,
    states: frozenset[TaskState] | None,
    job_id: int | None,
) -> int:
    """How many match.  What the jobs' own counts answer is not counted row by row."""
    others = (
        query.user,
        query.name,
        query.node,
        query.pool,
        query.filter,
        query.grep,
        query.since,
        query.until,
    )
    if not (caller.task or caller.private) and all(other is None for other in others):
        counts = msgspec.structs.asdict(count_states(tx, caller.tenant_id, job_id))
        return sum(counts[state] for state in (states if states is not None else TaskState))
    rows = tx.text(
        _fill(tx, "count_task_ids", where.text), {"tenant_id": caller.tenant_id, **where.parameters}
    )
    return int(rows[0]["n"])


def _write_cursor(mark: str, values: list[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps([mark, *values]).encode()).decode().rstrip("=")


def _read_cursor(cursor: str, mark: str, count: int) -> list[Any]:
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        values = None
    if not isinstance(values, list) or not values or not isinstance(values[0], str):
        raise Invalid("cursor: is not one that this server gave", field="cursor")
    if values[0] != mark:
        raise Invalid(f"cursor: belongs to a list sorted by {values[0]!r}, not by {mark}", field="cursor")
    first_is_text = mark.removeprefix("-") in _TEXT_SORTS
    fit = [_fits_column(value, first_is_text and not i) for i, value in enumerate(values[1:])]
    if len(fit) != count or not all(fit):
        raise Invalid("cursor: is not one that this server gave", field="cursor")
    return values[1:]


def _fits_column(value: Any, is_text: bool) -> bool:
    """A cursor may be forged: the database must not be the one to find out."""
    if is_text:
        return isinstance(value, str) and is_storable(value)
    return type(value) is int and -(1 << 63) <= value < 1 << 63
