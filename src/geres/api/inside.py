"""For those who look after a server: is it ready, and what does it do at this moment?"""

from __future__ import annotations

import anyio
from litestar import Response, get

from geres.api.bodies import encode
from geres.api.context import Context
from geres.api.request import Request, answer
from geres.errors import StoreUnavailable
from geres.model.inside import Ready, ServerInside
from geres.store import migrate

_OK = "ok"
_LATE_SECONDS = 60.0  #: of a loop that does not come round
_STORE_SECONDS = 10.0


@get("/readyz")
async def readyz(request: Request) -> Response[Ready]:
    """Whether this server can do its work: 200, else 503 with the part that stands in the way."""
    context = request.context
    parts = {
        "accepting": "the server is stopping" if context.stopping else _OK,
        **await _store(context),
        "loops": _loops(context),
    }
    ready = Ready(ready=set(parts.values()) == {_OK}, version=context.version, parts=parts)
    return answer(encode(ready), 200 if ready.ready else 503, None if ready.ready else {"retry-after": "1"})


async def _store(context: Context) -> dict[str, str]:
    """Without the words of the database: anyone may ask, and they may name hosts and paths."""
    unknown = "the store does not answer"
    try:
        with anyio.fail_after(_STORE_SECONDS):
            version = await context.db.read(migrate.known_version)
    except (StoreUnavailable, TimeoutError):
        return {"store": unknown, "schema": unknown}
    newest = migrate.newest_version()
    older = f"the database has schema {version}, this server needs {newest}"
    return {"store": _OK, "schema": _OK if version >= newest else older}


def _loops(context: Context) -> str:
    late = [name for name, pulse in context.pulses.items() if pulse.late_seconds() > _LATE_SECONDS]
    return f"not come round for over {_LATE_SECONDS:.0f} s: {', '.join(late)}" if late else _OK


@get("/v1/debug/state")
async def get_state(request: Request) -> ServerInside:
    """What this server has in memory: loops, connected nodes, queues, connections, where its threads are."""
    look = request.context.inside
    assert look is not None
    return look()


ROUTES = [readyz, get_state]
