"""Tokens of tasks: an HMAC over tenant, job, task and attempt.  Nothing of them is stored."""

from __future__ import annotations

import base64
import hmac
import re
from typing import NamedTuple

from geres.model.ids import job_of, number_of, task_key

#: All begin so; see the tokens of people in store/tokens.py.
WORD = "geres_task_"
_FORM = re.compile(r"geres_task_(\d{1,19})\.(\d{1,10})\.(\d{1,10})\.(\d{1,10})_([A-Za-z0-9_-]{43})")
_CONTEXT = b"geres task token 1"


class Claim(NamedTuple):
    """Which attempt a token says that it is of."""

    tenant_id: int
    task: int
    attempt: int


def make(key: bytes, tenant_id: int, task: int, attempt: int) -> str:
    """The token of one attempt.  `key` is the secret that the servers share."""
    text = f"{tenant_id}.{job_of(task)}.{number_of(task)}.{attempt}"
    return f"{WORD}{text}_{_mac(key, text)}"


def check(key: bytes, token: str) -> Claim | None:
    """What the token says, where it was made with this key; else None.  The attempt may be over."""
    match = _FORM.fullmatch(token)
    if match is None:
        return None
    tenant, job, number, attempt, mac = match.groups()
    if not hmac.compare_digest(mac, _mac(key, f"{tenant}.{job}.{number}.{attempt}")):
        return None
    return Claim(int(tenant), task_key(int(job), int(number)), int(attempt))


def _mac(key: bytes, text: str) -> str:
    digest = hmac.digest(key, b"%b\0%b" % (_CONTEXT, text.encode()), "sha256")
    return base64.urlsafe_b64encode(digest)[:43].decode()
