"""The service itself: who asks, counts, nodes, health, findings, metrics."""

from __future__ import annotations

from typing import Any

from litestar import MediaType, Response, get

from geres.api import metrics
from geres.api.request import Request
from geres.errors import StoreUnavailable
from geres.model.doctor import Finding
from geres.model.nodes import Summary, WhoAmI
from geres.store import doctor
from geres.store.summary import summary


@get("/healthz", media_type=MediaType.TEXT)
async def healthz() -> str:
    """The process answers."""
    return "ok\n"


@get("/v1/whoami")
async def whoami(request: Request) -> WhoAmI:
    """Who the token belongs to."""
    caller = request.caller
    return WhoAmI(subject=caller.subject, role=caller.role, tenant=caller.tenant)


@get("/v1/summary")
async def get_summary(request: Request) -> Summary:
    """Tasks, jobs and nodes by state."""
    return await request.context.db.read(summary, request.caller)


@get("/v1/doctor")
async def get_findings(request: Request) -> list[Finding]:
    """What is wrong: records set aside, wishes not answered, facts that contradict each other."""
    db = request.context.db
    found = await db.read(doctor.findings, now_us=request.context.clock())
    try:
        found += await db.read(doctor.check_invariants)
    except StoreUnavailable:
        found.append(Finding(kind="stuck", text="the store is too large to compare all of it while it works"))
    return found


@get("/metrics", media_type=MediaType.TEXT)
async def get_metrics(request: Request) -> Response[str]:
    """Counts for Prometheus, in its text format."""
    counts = await request.context.db.read(summary, request.caller)
    text = metrics.text(counts, request.context)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


ROUTES: list[Any] = [
    healthz,
    whoami,
    get_summary,
    get_findings,
    get_metrics,
]
