"""Who may call what: one table for every route.  What a role may do *with* a route stands in the store.

There a tenant sees only its own, a user changes only their own tasks and jobs, and a task reaches itself and
what it submitted, and what that submitted.  Things of others are not there: 404, not 403.
"""

from __future__ import annotations

from geres.errors import Denied, Invalid, NotFound
from geres.model.callers import Caller

Roles = frozenset[str]

NOBODY: Roles = frozenset()  #: no token is asked for
READERS: Roles = frozenset({"admin", "operator", "user", "viewer"})
CHANGERS: Roles = frozenset({"admin", "operator", "user"})
OPERATORS: Roles = frozenset({"admin", "operator"})
ADMINS: Roles = frozenset({"admin"})
NODES: Roles = frozenset({"admin", "node"})
_TASKS: Roles = frozenset({"task"})

#: Method and path to those who may.  A route that is not here is not there.
RULES: dict[tuple[str, str], Roles] = {
    ("GET", "/healthz"): NOBODY,
    ("GET", "/readyz"): NOBODY,
    ("GET", "/openapi.json"): NOBODY,
    ("GET", "/v1/whoami"): READERS | _TASKS,
    ("GET", "/v1/summary"): READERS,
    ("GET", "/v1/servers"): READERS,
    ("GET", "/v1/nodes"): READERS | _TASKS,  # a submit asks where its directory is seen
    ("GET", "/v1/nodes/{name}"): READERS,
    ("GET", "/v1/nodes/{name}/logs"): OPERATORS,  # they tell of everybody's tasks
    ("POST", "/v1/nodes:drain"): OPERATORS,
    ("POST", "/v1/nodes:undrain"): OPERATORS,
    ("POST", "/v1/nodes:remove"): OPERATORS,
    ("POST", "/v1/nodes:reboot"): OPERATORS,
    ("POST", "/v1/nodes:reload"): OPERATORS,
    ("POST", "/v1/nodes:restart"): OPERATORS,
    ("GET", "/v1/pools"): OPERATORS,  # what runs as the agents' account, with its variables
    ("GET", "/v1/pools/{name}"): OPERATORS,
    ("PATCH", "/v1/pools/{name}"): OPERATORS,
    ("GET", "/v1/debug/state"): ADMINS,
    ("GET", "/v1/doctor"): ADMINS,  # it looks at all tenants
    ("GET", "/metrics"): READERS,
    # tasks
    ("POST", "/v1/tasks"): CHANGERS | _TASKS,
    ("POST", "/v1/tasks:bulk"): CHANGERS | _TASKS,
    ("GET", "/v1/tasks"): READERS | _TASKS,
    ("GET", "/v1/history"): READERS | _TASKS,
    ("GET", "/v1/find"): READERS | _TASKS,
    ("GET", "/v1/tasks/{task_id}"): READERS | _TASKS,
    ("GET", "/v1/tasks/{task_id}/why"): READERS | _TASKS,
    ("GET", "/v1/tasks/{task_id}/result"): READERS | _TASKS,
    ("GET", "/v1/tasks/{task_id}/logs"): READERS | _TASKS,
    ("WEBSOCKET", "/v1/tasks/{task_id}/attach"): READERS | _TASKS,
    ("POST", "/v1/tasks:cancel"): CHANGERS | _TASKS,
    ("POST", "/v1/tasks:hold"): CHANGERS | _TASKS,
    ("POST", "/v1/tasks:release"): CHANGERS | _TASKS,
    ("POST", "/v1/tasks:edit"): CHANGERS | _TASKS,
    ("POST", "/v1/tasks:rerun"): CHANGERS | _TASKS,
    # jobs
    ("POST", "/v1/jobs"): CHANGERS | _TASKS,
    ("GET", "/v1/jobs"): READERS | _TASKS,
    ("GET", "/v1/jobs/{job_ref}"): READERS | _TASKS,
    ("GET", "/v1/jobs/{job_ref}/why"): READERS | _TASKS,
    ("GET", "/v1/jobs/{job_ref}/results"): READERS | _TASKS,
    ("PATCH", "/v1/jobs/{job_ref}"): CHANGERS | _TASKS,
    ("POST", "/v1/jobs/{job_ref}/close"): CHANGERS | _TASKS,
    ("POST", "/v1/jobs/{job_ref}/cancel"): CHANGERS | _TASKS,
    ("POST", "/v1/jobs/{job_ref}/disable"): CHANGERS | _TASKS,
    ("POST", "/v1/jobs/{job_ref}/enable"): CHANGERS | _TASKS,
    # tenants
    ("GET", "/v1/tenants"): READERS,
    ("GET", "/v1/tenants/{name}"): READERS,
    ("POST", "/v1/tenants"): ADMINS,
    ("POST", "/v1/tenants/{name}/disable"): ADMINS,
    ("POST", "/v1/tenants/{name}/enable"): ADMINS,
    ("GET", "/v1/quotas"): READERS,
    ("PUT", "/v1/quotas"): OPERATORS,
    ("GET", "/v1/users"): READERS,
    ("POST", "/v1/users"): OPERATORS,
    ("PATCH", "/v1/users/{name}"): OPERATORS,
    ("GET", "/v1/tokens"): READERS,
    ("POST", "/v1/tokens"): CHANGERS,
    ("POST", "/v1/tokens/{token}/rotate"): CHANGERS,
    ("POST", "/v1/tokens/{token}/revoke"): CHANGERS,
    ("GET", "/v1/audit"): OPERATORS,
    ("GET", "/v1/webhooks"): OPERATORS,  # addresses may be secret, and everybody's ends are told there
    ("GET", "/v1/webhooks/{webhook_id}"): OPERATORS,
    ("POST", "/v1/webhooks"): OPERATORS,
    ("POST", "/v1/webhooks/{webhook_id}/test"): OPERATORS,
    ("DELETE", "/v1/webhooks/{webhook_id}"): OPERATORS,
    # joining
    ("GET", "/v1/join-tokens"): OPERATORS,
    ("POST", "/v1/join-tokens"): OPERATORS,
    ("POST", "/v1/join-tokens/{token}/revoke"): OPERATORS,
    # servers; such a request is signed
    ("GET", "/v1/peers/blobs"): NOBODY,
    ("WEBSOCKET", "/v1/peers/streams/{task}/{attempt}"): NOBODY,
    ("WEBSOCKET", "/v1/peers/agents/{stream_id}"): NOBODY,
    # agents
    ("POST", "/v1/agents/join"): NOBODY,  # the join token stands in the body
    ("POST", "/v1/agents/credential"): NODES,
    ("WEBSOCKET", "/v1/agents"): NODES,
    ("WEBSOCKET", "/v1/agents/streams/{stream_id}"): NODES,
    ("PUT", "/v1/agents/outputs/{task}/{attempt}/{stream}"): NODES,
}


class _Place:
    """What may follow in a path, and the rules of the path that ends here, by method."""

    def __init__(self) -> None:
        self.next: dict[str, _Place] = {}
        self.any: _Place | None = None
        self.rules: dict[str, Roles] = {}


def _tree(rules: dict[tuple[str, str], Roles]) -> _Place:
    root = _Place()
    for (method, path), roles in rules.items():
        place = root
        for part in path.split("/")[1:]:
            if part.startswith("{"):
                place.any = place.any or _Place()
                place = place.any
            else:
                place = place.next.setdefault(part, _Place())
        place.rules[method] = roles
    return root


_ROOT = _tree(RULES)


def roles_for(method: str, path: str) -> Roles | None:
    """Those who may make this request; None where there is no such route."""
    place = _place(path)
    return None if place is None else place.rules.get(method)


def _place(path: str) -> _Place | None:
    place: _Place | None = _ROOT
    for part in path.split("/")[1:]:
        if place is None or not part:
            return None
        place = place.next.get(part) or place.any
    return place if place is not None and place.rules else None


def check(caller: Caller, roles: Roles | None, method: str, path: str) -> None:
    """Raise Denied unless the caller's role is among `roles`; for None, NotFound or Invalid (405)."""
    if roles is None:
        raise _no_route(method, path)
    if caller.role not in roles:
        raise Denied(
            f"a token of role {caller.role} may not do this; it takes {_listed(roles)}", role=caller.role
        )


def _no_route(method: str, path: str) -> NotFound | Invalid:
    if _place(path) is None:
        return NotFound(f"there is nothing at {path}; /openapi.json lists what is")
    refusal = Invalid(f"{method} does not go with {path}; /openapi.json lists what does")
    refusal.http_status = 405
    return refusal


def _listed(roles: Roles) -> str:
    order = ("admin", "operator", "user", "viewer", "task", "node")
    return " or ".join(role for role in order if role in roles)
