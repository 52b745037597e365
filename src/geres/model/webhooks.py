"""Webhooks: who is told of ends, what is told, and how it is signed."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from geres.errors import Invalid
from geres.model.jobs import Counts
from geres.model.nearest import did_you_mean
from geres.model.states import FINAL, JobState, Outcome
from geres.model.tasks import Usage

TASK_ENDED, JOB_ENDED, TEST = "task.ended", "job.ended", "webhook.test"
EVENTS = (TASK_ENDED, JOB_ENDED)
#: What may be told apart: final states of tasks, and of jobs their final states and outcomes.
STATES = tuple(
    dict.fromkeys([*sorted(FINAL), *(one for one in JobState if one.final), *Outcome])  # `failed` is both
)
VERSION = 1  #: of the messages; within it fields are only added
SECRET_PREFIX = "whsec_"  #: what follows is the key in base64, as https://www.standardwebhooks.com has it
_LONGEST_URL = 2000
_SECRET_LENGTHS = range(16, 201)
#: Where machines of clouds find their credentials, and what is no single host: no webhook needs them.
_FORBIDDEN = tuple(
    ipaddress.ip_network(one)
    for one in (
        *("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "fd20:ce::254/128"),
        *("100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32"),
        *("224.0.0.0/4", "255.255.255.255/32", "ff00::/8"),
    )
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Webhook(Struct, kw_only=True):
    """An address that is told of ends, without its secret."""

    id: str
    tenant: str
    url: str
    events: list[str]
    states: list[str]  #: only of these; empty for all
    job_id: str | None  #: only of this job; None for all
    created_by: str
    created_at: str
    waiting: int = 0  #: messages that were not delivered yet
    delivered: int = 0
    delivered_at: str | None = None  #: the last one
    dropped: int = 0  #: messages given up: too old, or too many waited
    failing_since: str | None = None  #: nothing has got through since
    tries: int = 0  #: that failed since
    next_try_at: str | None = None  #: while it fails
    error: str | None = None  #: the last one
    error_at: str | None = None


class MadeWebhook(Webhook, kw_only=True):
    """A new webhook with the secret that signs its messages: shown this once."""

    secret: str


class CreateWebhook(Struct, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/webhooks."""

    url: str
    events: list[str] = []  #: task.ended, job.ended; empty for all
    states: list[str] = []  #: of tasks: succeeded, failed, cancelled, skipped; of jobs state or outcome
    job: str | None = None  #: only of this job: its id or name
    secret: str | None = None  #: one is made where left out


class WebhookTested(Struct, kw_only=True):
    """How a receiver took a message `webhook.test`."""

    good: bool  #: it answered 2xx
    status: int | None  #: of its answer; None where there was none
    seconds: float
    error: str | None = None


class TaskEnded(Struct, kw_only=True):
    """The message of an end of a task.  A task that is run again ends again, under another `finish_no`."""

    id: str  #: of the delivery; the same where it is sent again
    event: str = TASK_ENDED
    version: int = VERSION
    at: str
    tenant: str
    task_id: str
    job_id: str
    job_name: str | None
    finish_no: int  #: its place among the ends of its job
    name: str | None
    own_id: str | None
    item: str | None
    user: str
    state: str
    reason: str | None
    message: str | None
    exit_code: int | None
    signal: int | None
    attempt: int  #: 0 where it never ran
    node: str | None
    started_at: str | None
    usage: Usage
    meta: dict[str, Any]


class JobEnded(Struct, kw_only=True):
    """The message of the end of a job."""

    id: str
    event: str = JOB_ENDED
    version: int = VERSION
    at: str
    tenant: str
    job_id: str
    name: str | None
    user: str
    state: str  #: completed or cancelled
    outcome: str | None
    reason: str | None
    counts: Counts
    meta: dict[str, Any]


class TestMessage(Struct, kw_only=True):
    """The message of `geres webhook test`."""

    id: str
    event: str = TEST
    version: int = VERSION
    at: str
    tenant: str


def check(wanted: CreateWebhook) -> None:
    """Raise Invalid, naming the field, unless this can be a webhook."""
    _check_url(wanted.url)
    for field, words, known in (("events", wanted.events, EVENTS), ("states", wanted.states, STATES)):
        for word in words:
            if word not in known:
                hint = did_you_mean(word, known) or f"; there are {', '.join(known)}"
                raise Invalid(f"{field}: {word[:80]!r} is none{hint}", field=field)
    if wanted.secret is not None:
        if len(wanted.secret) not in _SECRET_LENGTHS or not (
            wanted.secret.isascii() and wanted.secret.isprintable()
        ):
            raise Invalid("secret: use 16 to 200 printable ASCII characters", field="secret")
        _key(wanted.secret)


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, good = urlsplit(""), False
    if not good or len(url) > _LONGEST_URL or not (url.isascii() and url.isprintable()) or " " in url:
        raise Invalid(
            f"url: {url[:80]!r} is no address; write one like https://host.example/path", field="url"
        )
    if parts.username or parts.password:
        raise Invalid("url: leave out user and password; messages are signed instead", field="url")
    try:
        forbidden = is_forbidden(parts.hostname or "")
    except ValueError:
        return  # a name: looked up when something is sent
    if forbidden:
        raise Invalid(f"url: no webhook may go to {parts.hostname}", field="url")


def host_of(url: str) -> str:
    """Host and port of a URL, for logs: its path may be secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def is_forbidden(address: str) -> bool:
    """Whether nothing may be sent to this IP address.  Raises ValueError for what is none."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
        found = inner or ipaddress.IPv6Address(int(found))  # without the name of a link
    return any(found.version == one.version and found in one for one in _FORBIDDEN)


def signature(secret: str, delivery_id: str, at_seconds: int, body: bytes) -> str:
    """The value of the header `webhook-signature`: HMAC-SHA256 over id, time and body."""
    signed = f"{delivery_id}.{at_seconds}.".encode() + body
    digest = hmac.new(_key(secret), signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def secret_of(key: bytes) -> str:
    """A secret as people keep it."""
    return SECRET_PREFIX + base64.b64encode(key).decode()


def _key(secret: str) -> bytes:
    if not secret.startswith(SECRET_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise Invalid(f"secret: what follows {SECRET_PREFIX} is no base64", field="secret") from None
