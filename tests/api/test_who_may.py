"""Every route as the wrong tenant, as a viewer, as a task and with no token: what is refused stays unseen and
unchanged.  A route that is new in the document has to say here what it is asked with."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from geres.api import access
from geres.store import tokens
from geres.store.database import open_database
from tests.api.world import Agent, Answer, Api

#: Stands in the name of all that only the tenant `zebra` may see.
MARK = "zebra"
#: Stands in what the task with the token must not see, though it is of its own tenant.
SECRET = "zebra-secret"
JOB, TASK, NODE, USER, TOKEN, TENANT = "{job}", "{task}", "{node}", "{user}", "{token}", "{tenant}"
#: What each route that takes a body is asked with.
BODIES: dict[str, Any] = {
    "POST /v1/tasks": {"task": {"command": ["true"]}, "job": JOB},
    "POST /v1/tasks:bulk": {"tasks": [{}], "defaults": {"command": ["true"]}, "job": JOB},
    "POST /v1/tasks:cancel": {"ids": [TASK]},
    "POST /v1/tasks:hold": {"ids": [TASK]},
    "POST /v1/tasks:release": {"ids": [TASK]},
    "POST /v1/tasks:edit": {"ids": [TASK], "priority": 5},
    "POST /v1/tasks:rerun": {"ids": [TASK]},
    "POST /v1/jobs": {"array": {"range": "1-2"}, "task": {"command": ["true"]}, "after": [TASK]},
    "PATCH /v1/jobs/{job_ref}": {"priority": 3},
    "POST /v1/jobs/{job_ref}/close": {},
    "POST /v1/jobs/{job_ref}/cancel": {},
    "POST /v1/jobs/{job_ref}/disable": {"running": "terminate"},
    "POST /v1/jobs/{job_ref}/enable": {},
    "POST /v1/nodes:drain": {"names": [NODE]},
    "POST /v1/nodes:undrain": {"names": [NODE]},
    "POST /v1/nodes:remove": {"names": [NODE]},
    "POST /v1/nodes:reboot": {"names": [NODE]},
    "POST /v1/nodes:reload": {"names": [NODE]},
    "POST /v1/nodes:restart": {"names": [NODE]},
    "PATCH /v1/pools/{name}": {"start_task": {"command": ["true"]}},
    "PUT /v1/quotas": {"user": USER, "running": 1},
    "POST /v1/webhooks": {"url": "https://third.example/ends"},
    "POST /v1/webhooks/{webhook_id}/test": {},
    "DELETE /v1/webhooks/{webhook_id}": {},
    "POST /v1/join-tokens": {},
    "POST /v1/join-tokens/{token}/revoke": {},
    "POST /v1/tenants": {"name": "third"},
    "POST /v1/tenants/{name}/disable": {},
    "POST /v1/tenants/{name}/enable": {},
    "POST /v1/users": {"name": "new"},
    "PATCH /v1/users/{name}": {"role": "viewer"},
    "POST /v1/tokens": {"user": USER},
    "POST /v1/tokens/{token}/rotate": {},
    "POST /v1/tokens/{token}/revoke": {},
}
#: Lists, counts and what is made: these answer a stranger, with what is the stranger's own.
OWN = {
    *("GET /v1/whoami", "GET /v1/summary", "GET /v1/servers", "GET /v1/nodes", "GET /metrics"),
    *(
        "GET /v1/tasks",
        "GET /v1/history",
        "GET /v1/jobs",
        "GET /v1/tenants",
        "GET /v1/users",
        "GET /v1/tokens",
    ),
    *("GET /v1/audit", "GET /v1/join-tokens", "GET /v1/quotas", "GET /v1/pools"),
    *("POST /v1/users", "POST /v1/join-tokens"),
    *("GET /v1/webhooks", "POST /v1/webhooks"),
}
#: With things of the other tenant in the query or the body, and what they answer a stranger all the same.
QUERIES = {
    f"GET /v1/tasks?job={JOB}&count=true": 404,
    f"GET /v1/tasks?user={USER}": 404,
    f"GET /v1/tasks?node={NODE}": 404,
    f"GET /v1/history?job={JOB}": 404,
    "GET /v1/find": 422,
    f"GET /v1/jobs?user={USER}": 404,
    f"GET /v1/find?id={JOB}": 404,
    f"GET /v1/find?id={TASK}": 404,
    f"GET /v1/find?id={SECRET}-job": 404,
    f"GET /v1/find?id={SECRET}-id": 404,
    f"GET /v1/audit?user={USER}": 404,
    f"GET /v1/tokens?user={USER}": 404,
    f"GET /v1/quotas?user={USER}": 404,
    # these say of each node what became of it
    **{f"POST /v1/nodes:{verb}": 200 for verb in ("drain", "undrain", "remove", "reload", "restart")},
    "POST /v1/nodes:reboot": 409,  # nothing reboots nodes here
}
#: Whose names a task knows: its submitter's and those of its nodes.
_KNOWN_TO_TASKS = {f"GET /v1/tasks?user={USER}", f"GET /v1/tasks?node={NODE}", f"GET /v1/jobs?user={USER}"}
_OPEN = {"GET /healthz", "GET /readyz"}
#: What changes by itself, or because somebody was refused.
_RESTLESS = {"server", "audit", "lane", "schema_version", "sqlite_sequence", "sqlite_stat1"}
_RESTLESS_COLUMNS = {"heartbeat_at", "lease_until", "last_used_at"}


class _Tenant:
    """What an Agent needs to be a node of one tenant."""

    def __init__(self, api: Api, agent_token: str) -> None:
        self._api, self.agent_token = api, agent_token

    def socket(self, path: str, *, token: str = "") -> Any:
        return self._api.socket(path, token=token)


class World:
    """A server with two tenants that both have all there is."""

    def __init__(self, api: Api) -> None:
        self.api = api
        with closing(sqlite3.connect(api.home / "geres.db", timeout=10)) as db:  # ids that nothing else has
            db.execute(
                "INSERT INTO sqlite_sequence (name, seq) VALUES ('job', 7000), ('token', 5000),"
                " ('subscription', 6000)"
            )
            db.commit()
        self.zebra, self.okapi = self._tenant("zebra"), self._tenant("okapi")
        self.viewer = self._user("zebra", "zebra-vic", "viewer")
        self.job = self._as("zebra", "POST", "/v1/jobs", {"name": f"{SECRET}-job", "meta": {"k": SECRET}})[
            "id"
        ]
        start = {"command": ["true"], "env": {"KEY": SECRET}}
        self._as("zebra", "PATCH", "/v1/pools/zebra-pool", {"start_task": start, "create": True})
        self.top = self._submit("zebra", None, "mine")
        agent = self.agents["zebra"]
        agent.take(1)
        agent.start(self.top)
        self.task_token = agent.assigned[0].token
        self.hidden = self._submit("zebra", self.job, SECRET, id=f"{SECRET}-id")
        agent.take(2)
        agent.start(self.hidden)
        agent.end(self.hidden, stdout=SECRET.encode(), value=json.dumps(SECRET).encode())
        self.waiting = self._submit("zebra", self.job, SECRET, hold=True)
        self._submit("okapi", None, "okapi")
        for tenant in self.agents:  # nothing is to move by itself any more
            while self._as(tenant, "GET", f"/v1/nodes/{tenant}-node")["state"] != "running":
                threading.Event().wait(0.02)
        hook = {"url": f"https://{SECRET}.example/ends", "states": ["skipped"]}
        self.webhook = self._as("zebra", "POST", "/v1/webhooks", hook)["id"]

    agents: dict[str, Agent]

    def _tenant(self, name: str) -> str:
        """The token of its operator."""
        self.api.post("/v1/tenants", {"name": name})
        token = self._user(name, f"{name}-ann", "operator")
        node_token = f"{name}-node-{'x' * 30}"
        db = open_database(f"sqlite:{self.api.home / 'geres.db'}")
        try:
            tenant_id = db.call(tokens.tenant_id_of, name)
            db.call(
                tokens.ensure_token,
                node_token,
                tenant_id=tenant_id,
                subject=f"{name}-n1",
                role="node",
                now_us=0,
            )
        finally:
            db.close()
        self.agents = getattr(self, "agents", {})
        self.agents[name] = Agent(_Tenant(self.api, node_token), f"{name}-node")  # type: ignore[arg-type]
        return token

    def _user(self, tenant: str, name: str, role: str) -> str:
        self._as(tenant, "POST", "/v1/users", {"name": name, "role": role})
        made = self._as(tenant, "POST", "/v1/tokens", {"user": name, "name": f"{name}-token"})
        return str(made["token"])

    def _as(self, tenant: str, method: str, path: str, body: Any = None) -> Any:
        """As the admin, in a tenant."""
        return self.api.call(method, path, body, headers={"Geres-Tenant": tenant}).good

    def _submit(self, tenant: str, job: str | None, name: str, **task: Any) -> str:
        token = {"zebra": self.zebra, "okapi": self.okapi}[tenant]
        body = {"task": {"command": [name], "name": name, **task}, "job": job}
        return str(self.api.call("POST", "/v1/tasks", body, token=token).good["task"]["id"])

    def things(self, prefix: str = "zebra") -> dict[str, str]:
        """What is asked for."""
        found = {"job": self.job, "task": self.waiting, "node": f"{prefix}-node", "user": f"{prefix}-ann"}
        return (
            found
            | {"token": f"{prefix}-vic-token", "tenant": prefix, "pool": f"{prefix}-pool"}
            | {"webhook": self.webhook}
        )

    def nothing(self) -> dict[str, str]:
        """The same, of which there is none."""
        return {
            "job": "9001",
            "task": f"9001.{self.waiting.partition('.')[2]}",
            "node": "quagg-node",
            "user": "quagg-ann",
            "token": "quagg-vic-token",
            "tenant": "quagg",
            "pool": "quagg-pool",
            "webhook": "9002",
        }

    def routes(self) -> list[str]:
        """`METHOD path` of every route of the document."""
        document = json.loads(self.api.call("GET", "/openapi.json", token=None).body)
        return sorted(f"{method.upper()} {path}" for path, ms in document["paths"].items() for method in ms)

    def ask(self, route: str, things: dict[str, str], token: str | None) -> Answer:
        method, _, path = route.partition(" ")
        path, _, query = path.partition("?")
        if path.startswith(("/v1/nodes/", "/v1/users/", "/v1/tenants/", "/v1/pools/")):
            noun = path.split("/")[2].removesuffix("s")
            path = path.replace("{name}", things[noun])
        path = path.replace("{task_id}", things["task"]).replace("{job_ref}", things["job"])
        path = path.replace("{token}", things["token"]).replace("{webhook_id}", things["webhook"])
        assert "{" not in path, f"{route}: say here what to ask it with"
        body = BODIES.get(route.partition("?")[0])
        text = None if body is None else _fill(json.dumps(body), things).encode()
        assert method == "GET" or body is not None, f"{route}: say in BODIES what to ask it with"
        target = f"{path}?{_fill(query, things)}" if query else path
        return self.api.call(method, target, text, token=token)

    def rows(self, tenant: str | None = None) -> dict[str, list[Any]]:
        """The whole store, or what one tenant has, but for what changes by itself."""
        with closing(sqlite3.connect(self.api.home / "geres.db", timeout=10)) as db:
            names = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return {name: self._table(db, name, tenant) for name in names if name not in _RESTLESS}

    @staticmethod
    def _table(db: sqlite3.Connection, name: str, tenant: str | None) -> list[Any]:
        columns = [row[1] for row in db.execute(f'PRAGMA table_info("{name}")')]
        kept = [f'"{column}"' for column in columns if column not in _RESTLESS_COLUMNS]
        where, parameters = "", []
        if tenant is not None:
            whose = "SELECT id FROM tenant WHERE name = ?"
            parameters = [tenant]
            if "tenant_id" in columns:
                where = f"WHERE tenant_id = ({whose})"
            elif "job_id" in columns:
                where = f"WHERE job_id IN (SELECT id FROM job WHERE tenant_id = ({whose}))"
            elif name == "tenant":
                where = "WHERE name = ?"
            else:
                return []
        return sorted(map(repr, db.execute(f'SELECT {", ".join(kept)} FROM "{name}" {where}', parameters)))

    def close(self) -> None:
        for agent in self.agents.values():
            agent.close()


def _fill(text: str, things: dict[str, str]) -> str:
    for name, value in things.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def _roles(route: str) -> access.Roles:
    method, _, path = route.partition("?")[0].partition(" ")
    return access.RULES[method, path]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home: Path = tmp_path_factory.mktemp("who") / "home"
    with Api(home, lease_seconds=3600) as api:
        made = World(api)
        yield made
        made.close()


def test_every_route_says_what_it_is_asked_with(world: World) -> None:
    with_body = {route for route in world.routes() if not route.startswith("GET ")}

    assert with_body == set(BODIES)


def test_another_tenant_gets_404_and_learns_nothing(world: World) -> None:
    before = world.rows("zebra")
    for route in sorted({*world.routes(), *QUERIES}):
        if route in _OPEN:
            continue
        things, nothing = world.things(), world.nothing()
        answer = world.ask(route, things, world.okapi)
        expected = QUERIES.get(route, 404)
        if "operator" not in _roles(route):
            expected = 403
        elif route in OWN:
            expected = 200 if route.startswith(("GET", "PUT")) else 201
        assert answer.status == expected, (route, answer.status, answer.body[:300])
        shown, twin = answer.body.decode(), world.ask(route, nothing, world.okapi)
        for name in sorted(things, key=lambda name: -len(things[name])):  # what was typed comes back
            shown = shown.replace(things[name], f"<{name}>")
        assert MARK not in shown.replace(SECRET, "") or route.endswith((f"{SECRET}-job", f"{SECRET}-id")), (
            route
        )
        if (expected == 404 or route in QUERIES) and SECRET not in route:
            other = twin.body.decode()
            for name in sorted(nothing, key=lambda name: -len(nothing[name])):
                other = other.replace(nothing[name], f"<{name}>")
            assert (twin.status, other) == (expected, shown), f"{route} tells what is there from what is not"
    assert world.rows("zebra") == before


def test_a_viewer_reads_and_changes_nothing(world: World) -> None:
    before = world.rows()
    for route in sorted({*world.routes(), *QUERIES}):
        if route in _OPEN or route == "GET /v1/find":
            continue
        answer = world.ask(route, world.things() | {"user": "zebra-vic"}, world.viewer)
        allowed = "viewer" in _roles(route)
        assert allowed == route.startswith("GET ") or (route.startswith("GET ") and not allowed), route
        if route == "GET /v1/tasks/{task_id}/result":
            assert answer.status == 404  # it has not ended
        else:
            assert answer.status == (200 if allowed else 403), (route, answer.status, answer.body[:300])
    assert world.rows() == before


def test_a_user_reads_what_is_anothers_of_the_tenant_and_changes_none_of_it(world: World) -> None:
    token = world._user("zebra", "zebra-uma", "user")
    before = world.rows()
    dry_run = "POST /v1/tasks?dry_run=true"
    for route in sorted({*world.routes(), *QUERIES, dry_run} - {"GET /v1/find", "POST /v1/jobs"}):
        if route in _OPEN:
            continue
        answer = world.ask(route, world.things(), token)
        if "user" not in _roles(route) or route.startswith(("GET /v1/tokens?", "GET /v1/quotas?")):
            expected = 403
        elif route.startswith(("POST /v1/tokens/", "GET /v1/tasks/{task_id}/result")):
            expected = 404  # tokens of others are not there for them, and the task has not ended
        else:
            expected = 200 if route.startswith(("GET ", "POST /v1/tasks:")) else 403
            expected = 403 if route == "POST /v1/tasks:bulk" else expected
        assert answer.status == expected, (route, answer.status, answer.body[:300])
        if route.startswith("POST /v1/tasks:") and expected == 200:
            assert [item["code"] for item in answer.json["items"]] == ["denied"], route
    assert world.rows() == before


def test_a_task_reaches_nothing_but_itself(world: World) -> None:
    before = world.rows()
    for route in sorted({*world.routes(), *QUERIES}):
        if route in _OPEN:
            continue
        answer = world.ask(route, world.things(), world.task_token)
        expected = 200 if route in OWN | _KNOWN_TO_TASKS else QUERIES.get(route, 404)
        if "task" not in _roles(route):
            expected = 403
        assert answer.status == expected, (route, answer.status, answer.body[:300])
        assert SECRET not in answer.body.decode() or f"id={SECRET}" in route, route
    assert world.rows() == before
    own = world.api.call("GET", f"/v1/tasks/{world.top}", token=world.task_token).good
    assert own["name"] == "mine"
    assert world.api.call("GET", f"/v1/tasks/{world.hidden}", token=world.task_token).status == 404
    assert world.api.call("GET", f"/v1/tasks/{world.hidden}/logs", token=world.task_token).status == 404


@pytest.mark.parametrize("token", [None, "wrong", "geres_task_1.1.1.1_" + "A" * 43])
def test_nobody_gets_in_without_a_token(world: World, token: str | None) -> None:
    before = world.rows()
    for route in world.routes():
        answer = world.ask(route, world.things(), token)
        assert answer.status == (200 if route in _OPEN else 401), (route, answer.status)
        assert MARK not in answer.body.decode(), route
    assert world.rows() == before


def test_routes_beside_the_document_are_as_closed(world: World) -> None:
    """Those of agents and servers; who joins shows a join token in the body, a server signs."""
    document = {tuple(route.split(" ", 1)) for route in world.routes()}
    hidden = [rule for rule in access.RULES if rule not in document and rule[0] != "WEBSOCKET"]
    before = world.rows()
    for method, path in hidden:
        if path == "/openapi.json":
            continue
        target = path.replace("{task}", "1").replace("{attempt}", "1").replace("{stream}", "stdout")
        assert "{" not in target, f"{path}: say here what to ask it with"
        for token in (None, "wrong", world.okapi, world.viewer, world.task_token):
            answer = world.api.call(method, target, b"{}" if method == "POST" else b"", token=token)
            assert 400 <= answer.status < 500, (method, path, answer.status)
            assert MARK not in answer.body.decode(), path
    assert world.rows() == before


def test_outputs_and_streams_are_as_closed_as_the_rest(world: World) -> None:
    agents = world.agents
    key, attempt = agents["zebra"].assigned[0].task, agents["zebra"].assigned[0].attempt
    path = f"/v1/agents/outputs/{key}/{attempt}/stdout"
    theirs = f"okapi-node-{'x' * 30}"

    assert world.api.call("PUT", path, b"x", token=theirs).status == 404
    with closing(
        sqlite3.connect(world.api.home / "geres.db", timeout=10)
    ) as db:  # of another node of the tenant
        credential = "c" * 43
        db.execute(
            "INSERT INTO token (tenant_id, hash, subject, role, created_at, node_name) SELECT tenant_id, ?,"
            " 'other', 'node', 0, 'other' FROM token WHERE subject = 'zebra-n1'",
            (tokens.token_hash(credential),),
        )
        db.commit()
    assert world.api.call("PUT", path, b"x", token=credential).status == 404
    assert world.api.call("PUT", path, b"x", token=f"zebra-node-{'x' * 30}").status == 200
    for token, status in ((world.okapi, 403), (world.viewer, 403), (world.task_token, 403), (None, 401)):
        assert world.api.call("PUT", path, b"x", token=token).status == status
    for path, token, status in (
        (f"/v1/tasks/{world.top}/attach", world.okapi, 404),
        (f"/v1/tasks/{world.top}/attach?stdin=1", world.viewer, 403),
        (f"/v1/tasks/{world.waiting}/attach", world.task_token, 404),
        (f"/v1/tasks/{world.top}/attach", "wrong", 401),
        ("/v1/agents", world.okapi, 403),
        ("/v1/agents", world.task_token, 403),
        ("/v1/agents/streams/x", world.viewer, 403),
    ):
        with pytest.raises(InvalidStatus) as refused:
            world.api.socket(path, token=token)
        assert refused.value.response.status_code == status, (path, status)
        assert MARK.encode() not in refused.value.response.body.replace(b"zebra-ann", b"")


def test_the_admin_of_a_tenant_by_header_is_nobody_elses_way_in(world: World) -> None:
    for token in (world.okapi, world.viewer, world.task_token):
        tenant = "okapi" if token != world.okapi else "zebra"
        refused = world.api.call("GET", "/v1/tasks", token=token, headers={"Geres-Tenant": tenant})
        assert refused.status == 404
        assert refused.error["message"] == f"there is no tenant '{tenant}'"
    found = world.api.call("GET", "/v1/tasks", headers={"Geres-Tenant": "zebra"}).good
    assert {task["tenant"] for task in found["items"]} == {"zebra"}
    assert world.api.get("/v1/tasks")["items"] == []
