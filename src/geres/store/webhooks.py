"""Webhooks: managed by operators, claimed by one server at a time, settled after each round of sending.

A claim is a time ahead in `next_try_at`: that of a server that has died is over when the time comes, and what
it had sent without noting it is sent again, under the same id.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from geres.errors import Conflict, NotFound
from geres.model.callers import Caller
from geres.model.ids import show_task
from geres.model.units import rfc3339
from geres.model.webhooks import (
    EVENTS,
    JOB_ENDED,
    TASK_ENDED,
    CreateWebhook,
    JobEnded,
    MadeWebhook,
    TaskEnded,
    Webhook,
    check,
    host_of,
    secret_of,
)
from geres.store import audit, jobs, show
from geres.store.database import Row, Tx, batch

#: Messages that wait for one webhook at most, and how long: beyond these the oldest are given up.
MOST_WAITING = 100_000
LONGEST_US = 24 * 3600 * 1_000_000
CLAIM_US = 20 * 1_000_000
_MOST_OF_TENANT = 50
_PIECE = 5_000
_ROUND = 200  #: messages read at once
_KEY_BYTES = 24
_ALL = (1 << 63) - 1
_encode = msgspec.json.Encoder().encode
_job_decoder = msgspec.json.Decoder(JobEnded)


class Claimed(NamedTuple):
    """A webhook that this server, and no other, sends to now."""

    id: int
    url: str
    secret: str
    tries: int
    failing_since: int | None
    until_us: int  #: the claim is over then


class Message(NamedTuple):
    """What is sent.  `body` is None where its task is no longer kept."""

    id: int
    delivery_id: str
    event: str
    job_id: int
    tries: int
    body: bytes | None


class Outcome(NamedTuple):
    """What came of a round."""

    delivered: Sequence[int] = ()  #: ids of messages
    lost: Sequence[int] = ()  #: that nothing is known of any more
    put_off: Sequence[
        tuple[int, int]
    ] = ()  #: (id, when to try again) of those that failed while others did not
    error: str | None = None
    next_try_at: int | None = None  #: None where the webhook works


def create(tx: Tx, caller: Caller, wanted: CreateWebhook, *, now_us: int) -> MadeWebhook:
    """Tell an address of ends from now on.  Raises Invalid, NotFound for its job, Conflict for too many."""
    check(wanted)
    if tx.value("count_webhooks", tenant_id=caller.tenant_id) >= _MOST_OF_TENANT:
        raise Conflict(f"there are {_MOST_OF_TENANT} webhooks already; remove one that is not needed")
    job_id = None if wanted.job is None else jobs.find(tx, caller, wanted.job)
    secret = wanted.secret or secret_of(secrets.token_bytes(_KEY_BYTES))
    webhook_id = tx.value(
        "create_webhook",
        tenant_id=caller.tenant_id,
        subject=caller.subject,
        url=wanted.url,
        states=",".join(dict.fromkeys(wanted.states)) or None,
        events=",".join(dict.fromkeys(wanted.events or EVENTS)),
        job_id=job_id,
        secret=secret,
        now_us=now_us,
    )
    made = get(tx, caller, str(webhook_id))
    audit.write(
        tx,
        caller,
        "webhook.create",
        made.id,
        now_us=now_us,
        to=host_of(made.url),
        events=made.events,
        states=made.states,
        job=made.job_id,
    )
    return MadeWebhook(**msgspec.structs.asdict(made), secret=secret)


def list_webhooks(tx: Tx, caller: Caller) -> list[Webhook]:
    """Those of the caller's tenant, in the order in which they were made."""
    return [_shown(row) for row in tx.all("list_webhooks", tenant_id=caller.tenant_id, webhook_id=None)]


def get(tx: Tx, caller: Caller, ref: str) -> Webhook:
    """Raises NotFound."""
    return _shown(_find(tx, caller, ref))


def to_test(tx: Tx, caller: Caller, ref: str, *, now_us: int) -> tuple[Webhook, str]:
    """A webhook and its secret, for a test that is noted.  Raises NotFound."""
    row = _find(tx, caller, ref)
    audit.write(tx, caller, "webhook.test", str(row["id"]), now_us=now_us)
    return _shown(row), row["secret"]


def remove(tx: Tx, caller: Caller, ref: str, *, now_us: int) -> Webhook:
    """Send nothing more; what waits is dropped, at once or soon.  Raises NotFound."""
    row = _find(tx, caller, ref)
    if not tx.run("remove_webhook", webhook_id=row["id"], tenant_id=caller.tenant_id):
        raise _nothing(ref)
    audit.write(tx, caller, "webhook.remove", str(row["id"]), now_us=now_us, to=host_of(row["target"]))
    return _shown(row)


def _find(tx: Tx, caller: Caller, ref: str) -> Row:
    if not (ref.isascii() and ref.isdigit() and len(ref) < 19):
        raise _nothing(ref)
    row = tx.one("list_webhooks", tenant_id=caller.tenant_id, webhook_id=int(ref))
    if row is None:
        raise _nothing(ref)
    return row


def _nothing(ref: str) -> NotFound:
    return NotFound(f"there is no webhook {ref[:40]!r}; see `geres webhook list`", id=ref)


def _shown(row: Row) -> Webhook:
    return Webhook(
        id=str(row["id"]),
        tenant=row["tenant"],
        url=row["target"],
        events=row["events"].split(","),
        states=row["filter"].split(",") if row["filter"] else [],
        job_id=None if row["job_id"] is None else str(row["job_id"]),
        created_by=row["submitted_by"],
        created_at=rfc3339(row["created_at"]) or "",
        waiting=row["waiting"],
        delivered=row["delivered"],
        delivered_at=rfc3339(row["delivered_at"]),
        dropped=row["dropped"],
        failing_since=rfc3339(row["failing_since"]),
        tries=row["tries"],
        next_try_at=rfc3339(row["next_try_at"]) if row["failing_since"] else None,
        error=row["error"],
        error_at=rfc3339(row["error_at"]),
    )


def is_due(tx: Tx, *, now_us: int) -> bool:
    """Whether something can be sent; a read, so that an idle cluster costs little."""
    return tx.value("due_webhook", now_us=now_us) is not None


def claim(tx: Tx, *, now_us: int) -> Claimed | None:
    """The webhook that is due and was sent to the longest time ago; None where none is."""
    until_us = now_us + CLAIM_US
    row = tx.one("claim_webhook", now_us=now_us, until_us=until_us)
    if row is None:
        return None
    return Claimed(row["id"], row["target"], row["secret"], row["tries"], row["failing_since"], until_us)


def next_messages(tx: Tx, webhook_id: int, *, now_us: int, limit: int = _ROUND) -> list[Message]:
    """What is to be sent, in the order in which it happened."""
    rows = tx.all("next_messages", webhook_id=webhook_id, now_us=now_us, limit=limit)
    return [
        Message(
            row["id"], (key := _delivery_id(row)), row["event"], row["job_id"], row["tries"], _body(row, key)
        )
        for row in rows
    ]


def _delivery_id(row: Row) -> str:
    """Unique for ever: numbers may come again where an older backup was restored."""
    return f"{row['created_at']:x}-{row['id']}"


def _body(row: Row, delivery_id: str) -> bytes | None:
    try:
        if row["event"] == JOB_ENDED:
            return _encode(msgspec.structs.replace(_job_decoder.decode(row["body"]), id=delivery_id))
        known = row["event"] == TASK_ENDED and row["state"] is not None and row["submitted_by"] is not None
        return _task_ended(row, delivery_id) if known else None
    except (msgspec.MsgspecError, UnicodeError):  # a record that cannot be read must not stop the others
        return None


def _task_ended(row: Row, delivery_id: str) -> bytes:
    return _encode(
        TaskEnded(
            id=delivery_id,
            at=rfc3339(row["ended_at"]) or "",
            tenant=row["tenant"],
            task_id=show_task(row["task_id"]),
            job_id=str(row["job_id"]),
            job_name=row["job_name"],
            finish_no=row["finish_no"],
            name=row["name"],
            own_id=row["own_id"],
            item=row["item"],
            user=row["submitted_by"],
            state=row["state"],
            reason=row["reason"],
            message=row["message"],
            exit_code=row["exit_code"],
            signal=row["signal"],
            attempt=row["attempt"],
            node=row["node"],
            started_at=rfc3339(row["started_at"]),
            usage=show.usage(row),
            meta=msgspec.json.decode(row["meta"] or "{}", type=dict[str, Any]),
        )
    )


def settle(tx: Tx, claimed: Claimed, outcome: Outcome, *, now_us: int) -> None:
    """Note what came of a round and give the claim back.  After another server has taken it, only messages
    that were delivered go."""
    delivered = lost = 0
    if outcome.delivered:
        delivered = tx.run("drop_messages", message_ids=sorted(outcome.delivered))
    if outcome.lost:
        lost = tx.run("drop_messages", message_ids=sorted(outcome.lost))
    if outcome.put_off:
        tx.run("put_off_messages", batch=batch(sorted(outcome.put_off)))
    works = outcome.next_try_at is None
    tx.run(
        "settle_webhook",
        webhook_id=claimed.id,
        until_us=claimed.until_us,
        next_try_at=now_us if works else outcome.next_try_at,
        tries=0 if works else claimed.tries + 1,
        failing_since=None if works else claimed.failing_since or now_us,
        error=outcome.error,
        delivered=delivered,
        dropped=lost,
        now_us=now_us,
    )


class Tidying(NamedTuple):
    """What is to go, see `look`."""

    last: dict[int, int]  #: of each webhook, the last message to give up
    webhooks: list[int]  #: whose job is no longer kept


def look(tx: Tx, *, now_us: int) -> Tidying:
    """Find messages that are too old, too many or of webhooks that were removed."""
    known = {row[0] for row in tx.rows("all_webhooks")}
    last: dict[int, int] = {}
    for message_id, webhook_id, created_at in tx.rows("oldest_messages", limit=_PIECE):
        if created_at < now_us - LONGEST_US:
            last[webhook_id] = message_id
    for webhook_id, count in tx.rows("count_messages"):
        if webhook_id not in known:
            last[webhook_id] = _ALL
        elif count > MOST_WAITING:
            cut = tx.value("message_before_the_newest", webhook_id=webhook_id, most=MOST_WAITING)
            last[webhook_id] = max(last.get(webhook_id, 0), cut or 0)
    return Tidying(last, [row[0] for row in tx.rows("webhooks_of_no_job")])


def tidy(tx: Tx, todo: Tidying, *, limit: int = _PIECE) -> bool:
    """Remove that, a piece a call.  True where there may be more."""
    more = False
    if todo.webhooks:
        tx.run("drop_webhooks", webhook_ids=todo.webhooks)
    for webhook_id, last in sorted(todo.last.items()):
        gone = tx.run("drop_oldest_messages", webhook_id=webhook_id, last=last, limit=limit)
        if gone:
            tx.run("count_dropped", webhook_id=webhook_id, dropped=gone)
        more = more or gone == limit
    return more
