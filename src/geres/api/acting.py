"""Actions on tasks: cancel, hold, release, edit, rerun, each on any number of ids."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import msgspec
from litestar import post
from litestar.params import JSONBody

from geres.api.bodies import wrong_field
from geres.api.context import Context
from geres.api.request import Request
from geres.api.submitting import fit_warnings
from geres.errors import Denied, Invalid, NotFound, TaskFinished
from geres.model.callers import Caller
from geres.model.ids import parse_task, show_task
from geres.model.states import TaskState
from geres.model.tasks import Acted, ActedAll, CancelTasks, EditTasks, SelectTasks
from geres.store import audit, jobs, task_actions, task_edits, tasks
from geres.store.database import Tx
from geres.store.task_actions import Done
from geres.store.task_edits import Changes

_MOST_IDS = 100_000
_MOST_SECONDS = 5.0


@post("/v1/tasks:cancel", status_code=200)
async def cancel_tasks(request: Request, data: JSONBody[CancelTasks]) -> ActedAll:
    """Cancel tasks: those that wait at once, those on a node when the node has ended them.

    The id of a job means its open tasks.  A job that ends with its tasks, as that of an array does, is
    cancelled with them: see /v1/jobs/{job_ref}/cancel.
    With `signal` a signal is sent to running ones instead.  With `force` they end at once in the store, for a
    node that does not answer.  One id that cannot be acted on does not stop the others: see `code`.
    """
    if data.signal is not None:
        task_actions.signal_number(data.signal)
        return await _act(request, data.ids, task_actions.send_signal, only_open=True, name=data.signal)
    _check_count(data.ids)
    ended: list[Acted] = []
    refs = []
    for ref in data.ids:
        job_id = await request.context.db.read(tasks.job_that_ends, request.caller, ref)
        if job_id is None or (whole := await _cancel_all_of(request, job_id, data.reason)) is None:
            refs.append(ref)
            continue
        ended += whole
        if data.force:
            refs.append(ref)
    if not refs:
        return ActedAll(ended)
    answer = await _act(
        request, refs, task_actions.cancel, only_open=True, force=data.force, message=data.reason
    )
    forced = {item.id for item in answer.items}
    return ActedAll([*(item for item in ended if item.id not in forced), *answer.items])


async def _cancel_all_of(request: Request, job_id: int, reason: str | None) -> list[Acted] | None:
    """Cancel a job: what became of its tasks.  None where the caller may not: then some of them, perhaps."""
    context = request.context
    before = await context.db.read(jobs.get_short, job_id)
    try:
        done = await cancel_job(request, job_id, reason)
    except Denied:
        return None
    items = {item.id: item for item in done.items}
    for key in done.task_ids[: tasks.MOST_AT_ONCE]:
        items.setdefault(show_task(key), Acted(id=show_task(key), state=TaskState.CANCELLED))
    after = await context.db.read(jobs.get_short, job_id)
    waiting = after.counts.blocked + after.counts.queued + after.counts.held
    never = before.task_count - after.task_count
    for count, words in ((waiting, "are still to be cancelled"), (never, "had no record yet and get none")):
        if count > 0:
            items[words] = Acted(id=after.id, message=f"{count:,} more tasks of job {after.id} {words}")
    return list(items.values())


async def cancel_job(request: Request, job_id: int, reason: str | None) -> Done:
    """Cancel a job and, within seconds, what it has; a loop goes on with the rest (see JobEnder).

    Raises NotFound, Denied, or Conflict for one that cannot be cancelled.
    """
    context = request.context
    now_us = context.clock()
    note = audit.Note("job.cancel", str(job_id), now_us)
    start = partial(jobs.start_cancel, reason=reason, now_us=now_us)
    await context.db.run(audit.noted, note, start, request.caller, job_id)
    done = await in_pieces(context, jobs.cancel_piece, job_id)
    job_changed(context, job_id)
    return done


async def in_pieces(context: Context, piece: Callable[..., tuple[Done, bool]], job_id: int) -> Done:
    """Begin with what a loop goes on with: nobody is kept waiting for a million tasks."""
    until, more, done = time.monotonic() + _MOST_SECONDS, True, Done()
    while more and time.monotonic() < until:
        part, more = await context.db.run(piece, job_id, now_us=context.clock())
        tell(context, part)
        done.add(part)
    return done


def job_changed(context: Context, job_id: int) -> None:
    """Wake whoever waits for a job or works for it."""
    context.waiters.job_changed([job_id])
    context.dispatcher.forget_job(job_id)
    context.dispatcher.ring()
    context.job_ender.ring()


@post("/v1/tasks:hold", status_code=200)
async def hold_tasks(request: Request, data: JSONBody[SelectTasks]) -> ActedAll:
    """Make waiting tasks wait until they are released."""
    return await _act(request, data.ids, task_actions.hold, only_open=True)


@post("/v1/tasks:release", status_code=200)
async def release_tasks(request: Request, data: JSONBody[SelectTasks]) -> ActedAll:
    """Let held tasks go on."""
    return await _act(request, data.ids, task_actions.release, only_open=True)


@post("/v1/tasks:edit", status_code=200)
async def edit_tasks(request: Request, data: JSONBody[EditTasks]) -> ActedAll:
    """Change what waiting tasks ask for."""
    changes = task_edits.changes_of(data)
    answer = await _act(request, data.ids, task_edits.edit, only_open=True, changes=changes)
    return await _with_warnings(request, answer)


@post("/v1/tasks:rerun", status_code=200)
async def rerun_tasks(request: Request, data: JSONBody[SelectTasks]) -> ActedAll:
    """Run tasks again that have ended, `changes` (like `{"memory_bytes": 1073741824}`) applied first.

    With `failed`, only those of them that failed.
    """
    changes = _changes(data.changes)
    answer = await _act(
        request, data.ids, task_edits.rerun, only_open=False, only_failed=data.failed, changes=changes
    )
    return await _with_warnings(request, answer)


async def _with_warnings(request: Request, answer: ActedAll) -> ActedAll:
    """The answer, where no node could ever run a task with that as its message."""
    context = request.context
    done = {key: item for item in answer.items if item.code is None and (key := parse_task(item.id))}
    for piece in tasks.pieces(list(done)):
        for pool, demand, keys in await context.db.read(tasks.demands, piece):
            if warnings := fit_warnings(context, request.caller, pool, demand):
                for key in keys:
                    done[key].message = "; ".join(warnings)
    return answer


def _changes(raw: dict[str, msgspec.Raw]) -> Changes | None:
    if not raw:
        return None
    plain: dict[str, Any] = {name: msgspec.json.decode(value) for name, value in raw.items()}
    try:
        return task_edits.check_changes(msgspec.convert(plain, Changes))
    except msgspec.ValidationError as error:
        raise wrong_field(error, before="changes") from None


async def _act(
    request: Request,
    refs: list[str],
    act: Callable[..., Done],
    *,
    only_open: bool,
    only_failed: bool = False,
    **how: Any,
) -> ActedAll:
    """Act on what the ids mean, a thousand tasks a transaction.  NotFound where none means a thing."""
    _check_count(refs)
    context, caller = request.context, request.caller
    keys, unknown = await context.db.read(_resolve, request, refs, only_open, only_failed)
    if unknown and not keys and len(unknown) == len(refs):
        raise NotFound(unknown[0].message or "", id=unknown[0].id)
    done = Done(items=list(unknown))
    for piece in tasks.pieces(list(keys)):
        part = await context.db.run(_acted, act, caller, piece, now_us=context.clock(), **how)
        done.add(part)
        tell(context, part)
    meant = {show_task(key) for key, by_job in keys.items() if by_job and only_open}
    # Of a job those are meant that have not ended: one that ended meanwhile is no mistake of the caller's.
    return ActedAll([one for one in done.items if one.code != TaskFinished.code or one.id not in meant])


def _check_count(refs: list[str]) -> None:
    if len(refs) > _MOST_IDS:
        raise Invalid(f"ids: at most {_MOST_IDS:,} in a request", field="ids")


def _acted(
    tx: Tx, /, act: Callable[..., Done], caller: Caller, keys: list[int], *, now_us: int, **how: Any
) -> Done:
    """Act on the tasks; the audit log gets those that were acted on, and those that were refused."""
    done = act(tx, caller, keys, now_us=now_us, **how)
    action = f"task.{act.__name__.removeprefix('send_')}"
    for result, refused in (("ok", None), (Denied.code, Denied.code)):
        ids = [key for item in done.items if item.code == refused and (key := parse_task(item.id))]
        if ids:
            audit.write(tx, caller, action, audit.tasks(ids), now_us=now_us, result=result)
    return done


def _resolve(
    tx: Any, request: Request, refs: Iterable[str], only_open: bool, only_failed: bool
) -> tuple[dict[int, bool], list[Acted]]:
    """The tasks that the ids mean, True where only a job's id means them, and the ids that mean nothing."""
    keys: dict[int, bool] = {}
    unknown = []
    for ref in refs:
        try:
            if only_failed:
                found = tasks.failed_keys_of(tx, request.caller, ref)
            else:
                found = tasks.keys_of(tx, request.caller, ref, only_open=only_open)
        except (NotFound, Invalid) as error:
            unknown.append(Acted(id=ref, code=error.code, message=str(error)))
            continue
        by_job = "." not in ref and tasks.find_job_id(tx, request.caller, ref) is not None
        for key in found:
            keys[key] = by_job and keys.get(key, True)
    if len(keys) > tasks.MOST_AT_ONCE:
        raise Invalid(f"ids: mean more than {tasks.MOST_AT_ONCE:,} tasks; act on their jobs", field="ids")
    return keys, unknown


def tell(context: Context, done: Done) -> None:
    """Wake whoever waits for what was done."""
    if done.task_ids:
        context.waiters.task_ended(done.task_ids)
    if done.jobs:
        context.waiters.job_changed(done.jobs)
    if done.queued:
        context.dispatcher.ring()
    if done.asked_nodes:
        context.dispatcher.asked(done.asked_nodes)
