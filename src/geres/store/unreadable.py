"""Records that cannot be read: set aside when a server starts, so that one of them stops nobody else's work.

The database finds what is no JSON; JSON of another shape only a reader finds, who looks at the newest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from geres.model.demand import Demand
from geres.model.ids import show_task
from geres.model.jobs import KnownJobSpec
from geres.model.states import Reason, TaskState
from geres.model.tasks import KnownSpec
from geres.store.database import Tx
from geres.store.ends import End, record

#: What is looked at: how it is found, which waiting tasks need it, what takes its place.
_KINDS = (
    ("specification", "unreadable_specs", "tasks_waiting_on_spec", "replace_spec"),
    ("class", "unreadable_classes", "tasks_waiting_on_class", "replace_class"),
    ("job", "unreadable_jobs", None, "replace_job"),
    ("task", "unreadable_tasks", None, "replace_argv"),
)
_PIECE = 1000
_ERROR = "it is no JSON"
_LOOKED_AT = 5_000  #: records of a kind, the newest
_MOST_CHARACTERS = 32 << 20  #: of them


class Unreadable(NamedTuple):
    """A record that cannot be read, and why."""

    kind: str
    id: int
    about: str
    body: str
    error: str

    @property
    def key(self) -> str:
        return show_task(self.id) if self.kind == "task" else f"{self.id} {self.about}".strip()


def _decoder(kind: Any) -> Callable[[str], object]:
    return msgspec.json.Decoder(kind).decode


_meta = _decoder(dict[str, str])
#: Kind to the statement that lists the newest (id, about, texts ...), and what reads each text.
_NEWEST: dict[str, tuple[str, tuple[Callable[[str], object], ...]]] = {
    "specification": ("newest_specs", (_decoder(KnownSpec), _meta)),
    "class": ("newest_classes", (_decoder(Demand),)),
    "job": ("newest_jobs", (_decoder(KnownJobSpec), _meta)),
    "task": ("newest_tasks", (_decoder(list[str] | str),)),
}


def look(tx: Tx) -> Iterator[Unreadable]:
    """Read the newest records of each kind, some thousands and no more than fit into a little memory."""
    for kind, (statement, readers) in _NEWEST.items():
        seen = characters = 0
        while seen < _LOOKED_AT and characters < _MOST_CHARACTERS:
            rows = tx.rows(statement, limit=_PIECE, offset=seen)
            for key, about, *texts in rows:
                characters += sum(map(len, texts))
                for read, text in zip(readers, texts, strict=True):
                    try:
                        read(text)
                    except msgspec.MsgspecError as error:
                        yield Unreadable(kind, key, about, " ".join(texts), str(error))
                        break
            seen += len(rows)
            if len(rows) < _PIECE:
                break


def set_aside(tx: Tx, *, now_us: int) -> list[str]:
    """Put unreadable records into the quarantine, and fail the waiting tasks that need them with `internal`.

    Returns a sentence for each.  What takes a record's place can be read and cannot be run: a task that was
    on a node and is tried again fails then.
    """
    told = []
    for kind, found, waiting, replace in _KINDS:
        for row in tx.all(found):
            one = Unreadable(kind, row["id"], row["about"], row["body"], _ERROR)
            told.append(_set_aside(tx, one, waiting, replace, now_us))
    for one in list(look(tx)):
        waiting, replace = next(how[2:] for how in _KINDS if how[0] == one.kind)
        told.append(_set_aside(tx, one, waiting, replace, now_us))
    return told


def _set_aside(tx: Tx, one: Unreadable, waiting: str | None, replace: str, now_us: int) -> str:
    tasks = [one.id] if one.kind == "task" else []
    if waiting is not None:
        tasks = [task_id for (task_id,) in tx.rows(waiting, id=one.id)]
    tx.run("quarantine", now_us=now_us, kind=one.kind, key=one.key, body=one.body, error=one.error)
    tx.run(replace, id=one.id)
    _fail(tx, tasks, f"its {one.kind} could not be read; see `geres doctor`", now_us)
    return f"the record of {one.kind} {one.key} cannot be read and was set aside; {len(tasks)} tasks failed"


def _fail(tx: Tx, keys: Sequence[int], message: str, now_us: int) -> None:
    for start in range(0, len(keys), _PIECE):
        rows = tx.all("lock_tasks", task_ids=list(keys[start : start + _PIECE]))
        ends = [
            End(
                row["id"],
                0,
                row["round"],
                TaskState.FAILED,
                Reason.INTERNAL,
                message,
                ended_at=now_us,
                is_parent=bool(row["is_parent"]),
            )
            for row in rows
            if TaskState(row["state"]).waiting
        ]
        record(tx, ends, now_us=now_us)
