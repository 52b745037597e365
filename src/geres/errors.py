"""The tree of deliberate errors.

    GeresError
    ├── Invalid                 bad input; names the field and the next step
    │   └── NotUnderstood       the body is no JSON at all
    ├── Unauthenticated         no token, or an unknown one
    ├── Denied                  a known caller who may not do this
    ├── NotFound
    ├── Conflict
    │   ├── JobFinished         the job takes no more tasks
    │   ├── TaskFinished        the task has ended; only a rerun changes it
    │   ├── StaleAttempt        a report about an attempt that is over
    │   ├── NameTaken
    │   ├── KeyReused           the same Idempotency-Key with another body
    │   └── Changed             If-Match named an older version (412)
    ├── Gone                    a cursor before the oldest kept result (410)
    ├── OverQuota
    ├── RateLimited             asked too often; the fact `retry_after_seconds` says when to ask again (429)
    ├── StoreUnavailable        the database does not answer; may be tried again as a whole
    │   └── StoreFull           its disk takes no more (507); people are told at once, loops wait
    ├── Unreachable             no server answers at the address
    ├── Untrusted               a server answers there, with a certificate that is not trusted
    ├── TimedOut                a wait of the caller's ran out of time
    └── TaskFailed              raised by `result()` and `wait(check=True)` for a task that did not succeed

What a task does wrong is never an error of ours: it is an outcome with a reason.
"""

from __future__ import annotations

from typing import Any


class GeresError(Exception):
    """A deliberate error: one sentence for people, `code` for programs, `facts` as plain JSON values."""

    code = "error"
    http_status = 500
    exit_status = 1

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.facts = facts


class Invalid(GeresError):
    """Bad input.  The fact `field` names what is wrong, where one field is to blame."""

    code = "invalid"
    http_status = 422
    exit_status = 2


class NotUnderstood(Invalid):
    """The body is not JSON, or not of the shape that the route takes."""

    code = "not_understood"
    http_status = 400


class Unauthenticated(GeresError):
    whose: Any = None  #: the caller, where a token was good once; never sent
    code = "unauthenticated"
    http_status = 401
    exit_status = 3


class Denied(GeresError):
    code = "denied"
    http_status = 403
    exit_status = 3


class NotFound(GeresError):
    code = "not_found"
    http_status = 404
    exit_status = 4


class Conflict(GeresError):
    code = "conflict"
    http_status = 409
    exit_status = 5


class JobFinished(Conflict):
    code = "job_finished"


class TaskFinished(Conflict):
    code = "task_finished"


class StaleAttempt(Conflict):
    code = "stale_attempt"


class NameTaken(Conflict):
    code = "name_taken"


class KeyReused(Conflict):
    code = "key_reused"


class Changed(Conflict):
    code = "changed"
    http_status = 412


class Gone(GeresError):
    code = "gone"
    http_status = 410
    exit_status = 4


class OverQuota(GeresError):
    code = "over_quota"
    http_status = 429
    exit_status = 6


class RateLimited(GeresError):
    code = "rate_limited"
    http_status = 429
    exit_status = 7


class StoreUnavailable(GeresError):
    code = "store_unavailable"
    http_status = 503
    exit_status = 7


class StoreFull(StoreUnavailable):
    code = "store_full"
    http_status = 507


class Unreachable(GeresError):
    code = "unreachable"
    http_status = 503
    exit_status = 7


class Untrusted(GeresError):
    code = "untrusted"
    http_status = 502
    exit_status = 3


class TimedOut(GeresError):
    code = "timed_out"
    http_status = 504
    exit_status = 7


class TaskFailed(GeresError):
    code = "task_failed"
    exit_status = 1


def _tree(kind: type[GeresError]) -> list[type[GeresError]]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in _tree(child))]


BY_CODE: dict[str, type[GeresError]] = {kind.code: kind for kind in _tree(GeresError)}


def from_wire(code: str, message: str, facts: dict[str, Any]) -> GeresError:
    """Rebuild the error that a server sent; an unknown code gives a plain GeresError."""
    return BY_CODE.get(code, GeresError)(message, **facts)
