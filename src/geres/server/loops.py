"""The background loops of a server; each is a step that `run_loop` calls again and again."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from itertools import islice

import anyio
import anyio.to_thread

from geres.api.context import Context
from geres.blobs.folder import is_unfinished, parse_output_key
from geres.server.clock import JUMP_US, Clock, wall_us
from geres.store import (
    arrays,
    audit,
    ends,
    jobs,
    joining,
    migrate,
    servers,
    task_edits,
    tokens,
    upkeep,
    webhooks,
)
from geres.store.database import Locked, Order

log = logging.getLogger("geres.server")

_JOIN_TOKENS = 1000  #: forgotten at once
_WAKE_PIECE = 1000
_ARRAYS = 100
_SWEEP_PIECE = 1000
_SAFE_SECONDS = 3600.0


class Unfolder:
    """Makes the rows of large arrays, 10,000 at a time; turns go first."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def step(self) -> bool:
        db, clock = self._context.db, self._context.clock
        waiting = await db.read(arrays.arrays_to_unfold, limit=_ARRAYS)
        made = 0
        for job_id in waiting:
            made += await db.run_as(Order.LOOP, arrays.unfold, job_id, now_us=clock())
            self._context.dispatcher.ring()
        return bool(made)


class Waker:
    """Queues tasks whose time has come."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def step(self) -> bool:
        db, clock = self._context.db, self._context.clock
        at = await db.read(upkeep.next_wake_us)
        if at is None or at > clock():
            return False
        woken = await db.run_as(Order.LOOP, upkeep.wake, now_us=clock(), limit=_WAKE_PIECE)
        if woken:
            self._context.waiters.task_ended(woken)
            self._context.dispatcher.ring()
        return len(woken) == _WAKE_PIECE


class JobEnder:
    """Ends jobs that want to end, frees what waited for them, and goes on with what was begun."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def step(self) -> bool:
        db, clock, waiters = self._context.db, self._context.clock, self._context.waiters
        more = False
        todo = await db.read(jobs.todo, now_us=clock())
        if todo.over_time:
            todo.to_cancel.update(await db.run_as(Order.LOOP, jobs.cancel_over_time, now_us=clock()))
        for job_id in todo.to_cancel:
            done, more_here = await db.run_as(Order.LOOP, jobs.cancel_piece, job_id, now_us=clock())
            waiters.task_ended(done.task_ids)
            waiters.job_changed(done.jobs)
            if done.asked_nodes:
                self._context.dispatcher.asked(done.asked_nodes)
            more = more or more_here
        for job_id in todo.to_stop:
            done, more_here = await db.run_as(Order.LOOP, jobs.stop_piece, job_id, now_us=clock())
            waiters.task_ended(done.task_ids)
            self._context.dispatcher.asked(done.asked_nodes)
            more = more or more_here
        if todo.to_end:
            waiters.job_changed(await db.run_as(Order.LOOP, jobs.end_done_jobs, now_us=clock()))
        for free in (ends.free_children_of_jobs, ends.free_children_of_tasks) if todo.to_free else ():
            freed, more_here = await db.run_as(Order.LOOP, free, now_us=clock())
            more = more or more_here
            if freed.task_ids:
                waiters.task_ended(freed.task_ids)
                waiters.job_changed(freed.jobs)
            if freed.freed:
                self._context.dispatcher.ring()
        if todo.to_revive:
            revived, more_here = await db.run_as(Order.LOOP, task_edits.revive, now_us=clock())
            more = more or more_here
            waiters.task_ended(revived.task_ids)
            waiters.job_changed(revived.jobs)
            if revived.queued:
                self._context.dispatcher.ring()
        return more


class Migrator:
    """Applies the second parts of migrations, once no server with older code is there."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def step(self) -> bool:
        db = self._context.db
        server_id = self._context.server_id if db.dialect == "postgres" else None
        try:
            names, waits = await db.run_as(
                Order.LOOP, migrate.finish, server_id, now_us=self._context.clock()
            )
        except Locked as error:  # in a minute again, and not at once: others wait behind each try
            log.info("a migration waits: %s", error)
            return False
        for name in names:
            log.info("migration %s is complete", name, extra={"event": "migrated"})
        if waits:
            log.info("a migration waits for the last server with older code to stop")
        return False


class Janitor:
    """Forgets what is old: Idempotency-Keys, and what no webhook took, after a day; ended tasks, join tokens
    and the audit log after the retention."""

    def __init__(self, context: Context, retention_seconds: float) -> None:
        self._context = context
        self._retention_us = int(retention_seconds * 1e6)

    async def step(self) -> bool:
        db, now_us = self._context.db, self._context.clock()
        keys = await db.run_as(Order.LOOP, upkeep.forget_keys, now_us=now_us)
        before_us = now_us - self._retention_us
        used = dict(self._context.used_tokens)
        self._context.used_tokens.clear()
        if used:
            await db.run_as(Order.LOOP, tokens.mark_used, used)
        await db.run_as(Order.LOOP, tokens.forget, before_us=before_us)
        await db.run_as(Order.LOOP, joining.forget, before_us=before_us, limit=_JOIN_TOKENS)
        entries = await db.run_as(Order.LOOP, audit.forget, before_us=before_us)
        messages = await db.read(webhooks.look, now_us=now_us)
        more = any(messages) and await db.run_as(Order.LOOP, webhooks.tidy, messages)
        gone = await db.run_as(Order.LOOP, upkeep.forget_tasks, before_us=before_us)
        for blob in gone.blobs:
            await anyio.to_thread.run_sync(self._context.blobs.remove, blob)
        ended = await db.run_as(Order.LOOP, upkeep.forget_jobs, before_us=before_us)
        return more or gone.more or bool(keys) or bool(ended) or bool(entries)


class Sweeper:
    """Removes outputs that nothing names: of an attempt that died after its upload, or that was given away.

    A piece at each step, from the first blob to the last and again.  What is younger than an hour stays, and
    what is older than this store: it belongs to another one in the same home.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._walk: Iterator[tuple[str, float]] = iter(())
        self._began_us: int | None = None

    async def step(self) -> bool:
        context = self._context
        if self._began_us is None:
            self._began_us = await context.db.read(upkeep.store_began_us)
        piece = await anyio.to_thread.run_sync(self._next_piece)
        before = time.time() - _SAFE_SECONDS
        old = [key for key, written in piece if self._began_us / 1e6 < written < before]
        attempts = {key: attempt for key in old if (attempt := parse_output_key(key)) is not None}
        unwanted = await context.db.read(upkeep.unwanted_outputs, attempts) if attempts else []
        unwanted += [key for key in old if is_unfinished(key)]
        for key in unwanted:
            await anyio.to_thread.run_sync(context.blobs.remove, key)
        if unwanted:
            log.info("%d outputs that nothing names were removed", len(unwanted))
        return False

    def _next_piece(self) -> list[tuple[str, float]]:
        piece = list(islice(self._walk, _SWEEP_PIECE))
        if not piece:
            self._walk = self._context.blobs.outputs()
        return piece


class ClockKeeper:
    """Compares our clock with the store's, or with the wall.

    After a jump leases are written anew, for those who go by what they say: servers of the previous release,
    and who asks whether a name is taken.  That is done twice, for what was under way at the jump.
    """

    def __init__(self, context: Context, clock: Clock, lease_seconds: float) -> None:
        self._context, self._clock = context, clock
        self._lease_us = int(lease_seconds * 1e6)
        self._to_mend = 0  #: so often

    async def step(self) -> bool:
        db, asked = self._context.db, time.monotonic()
        now_us = await db.read(servers.store_time_us) or wall_us()
        waited_us = int((time.monotonic() - asked) * 1e6)
        behind = self._clock.behind_us(now_us, waited_us=waited_us)
        if abs(behind) > JUMP_US:
            log.warning(
                "the clock was set by %.1f s; all leases go on", behind / 1e6, extra={"event": "clock_jumped"}
            )
            self._clock.jump(behind)
            self._to_mend = 2
        else:
            self._clock.follow(behind)
        if self._to_mend:
            await db.run(servers.extend_leases, lease_us=self._lease_us, now_us=self._clock())
            while await db.run(upkeep.shorten_retries, now_us=self._clock()):
                pass
            self._to_mend -= 1
        return False
