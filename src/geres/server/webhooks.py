"""Sends to webhooks what the store has queued for them.  Nothing waits for it: neither a turn nor a request.

Each step claims one webhook, sends a round of messages outside of any transaction and notes what came of it.
Several steps run at once, each for another webhook, so that a slow receiver holds up only its own.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence

import anyio

from geres.aio import Doorbell
from geres.api.context import Context
from geres.model.webhooks import JOB_ENDED, host_of
from geres.store import webhooks
from geres.store.database import Order
from geres.store.webhooks import Claimed, Message, Outcome

log = logging.getLogger("geres.webhooks")

WORKERS = 4  #: webhooks that a server sends to at once
_AT_ONCE = 4  #: messages that one receiver gets at once, where more wait than these few:
_FEW = 20
_ROUND_SECONDS = 5.0  #: with the time limit of one message well within a claim
_REST_SECONDS = 0.01  #: after what goes at once, so that turns have most of the processor
_SETTLE_SECONDS = 5.0
_FIRST_PAUSE_SECONDS = 2.0
_LONGEST_PAUSE_SECONDS = 3600.0


class Sending:
    """What this server sends; `jitter` gives a number from one to another."""

    def __init__(self, context: Context, *, jitter: Callable[[float, float], float] = random.uniform) -> None:
        self._context, self._jitter = context, jitter
        #: One for each worker: the first one looks every second, and wakes the others where there is work.
        self.bells = [Doorbell() for _ in range(WORKERS)]

    async def step(self) -> bool:
        """Send a round to one webhook.  True where one was due: there may be more."""
        db, clock = self._context.db, self._context.clock
        if not await db.read(webhooks.is_due, now_us=clock()):
            return False
        claimed = await db.run_as(Order.LOOP, webhooks.claim, now_us=clock())
        if claimed is None:
            return False
        for bell in self.bells:
            bell.ring()
        messages = await db.read(webhooks.next_messages, claimed.id, now_us=clock())
        sent = _Round(claimed, lost=[one.id for one in messages if one.body is None])
        try:
            await self._send(claimed, [one for one in messages if one.body is not None], sent)
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_SETTLE_SECONDS):
                await self._settle(claimed, sent)
        return True

    async def _send(self, claimed: Claimed, messages: Sequence[Message], sent: _Round) -> None:
        until = time.monotonic() + _ROUND_SECONDS
        for piece in pieces(messages, failing=claimed.tries > 0):
            errors: dict[int, str | None] = {}
            async with anyio.create_task_group() as group:
                for message in piece:
                    group.start_soon(self._post, claimed, message, errors)
            sent.add(piece, errors)
            if sent.failed or time.monotonic() > until:
                return
            await anyio.sleep(_REST_SECONDS)

    async def _post(self, claimed: Claimed, message: Message, errors: dict[int, str | None]) -> None:
        poster = await self._context.poster()
        answer = await poster.post(claimed.url, claimed.secret, message.delivery_id, message.body or b"")
        errors[message.id] = answer.error

    async def _settle(self, claimed: Claimed, sent: _Round) -> None:
        now_us = self._context.clock()
        outcome = Outcome(
            sent.delivered,
            sent.lost,
            [(one.id, now_us + self._pause_us(one.tries)) for one in sent.put_off],
            sent.error,
            now_us + self._pause_us(claimed.tries) if sent.failed else None,
        )
        if claimed.failing_since is not None and not (sent.failed or sent.delivered):
            outcome = outcome._replace(next_try_at=now_us)  # cut off: it is as it was
        await self._context.db.run_as(Order.LOOP, webhooks.settle, claimed, outcome, now_us=now_us)
        where = f"webhook {claimed.id} ({host_of(claimed.url)})"
        if sent.failed and claimed.failing_since is None:
            log.warning(
                "%s fails, and is tried again and again for a day: %s",
                where,
                sent.error,
                extra={"event": "webhook_failing"},
            )
        elif sent.delivered and not sent.failed and claimed.failing_since is not None:
            log.info("%s works again", where, extra={"event": "webhook_works"})

    def _pause_us(self, tries: int) -> int:
        """Until the next try, after so many before this one that failed."""
        seconds = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(tries, 20), _LONGEST_PAUSE_SECONDS)
        return int(seconds * self._jitter(0.5, 1.0) * 1e6)


class _Round:
    """What comes of a round, as it comes."""

    def __init__(self, claimed: Claimed, lost: list[int]) -> None:
        self.lost = lost
        self.delivered: list[int] = []
        self.put_off: list[Message] = []  #: failed while others did not
        self.failed = False  #: all of a piece did
        self.error: str | None = None

    def add(self, piece: Sequence[Message], errors: dict[int, str | None]) -> None:
        bad = [one for one in piece if errors[one.id] is not None]
        self.delivered += [one.id for one in piece if errors[one.id] is None]
        if bad:
            self.error = errors[bad[0].id]
        if len(bad) == len(piece):
            self.failed = True
        else:
            self.put_off += bad


def pieces(messages: Sequence[Message], *, failing: bool) -> Iterator[list[Message]]:
    """What is sent at once, in turn: one message, or where many wait some, but the end of a job after those
    of its tasks.  Of a webhook that fails the order is given up: a message that is never taken is to hold up
    no other."""
    most = _AT_ONCE if failing or len(messages) > _FEW else 1
    piece: list[Message] = []
    for message in messages:
        after = message.event == JOB_ENDED and any(one.job_id == message.job_id for one in piece)
        if piece and (len(piece) == most or (after and not failing)):
            yield piece
            piece = []
        piece.append(message)
    if piece:
        yield piece
