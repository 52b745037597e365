"""The service itself: who may ask, what is refused and how, the document, starting and stopping."""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import socket
import sqlite3
import stat
from pathlib import Path

import pytest

from geres.errors import Conflict, Invalid, StoreUnavailable
from geres.model.callers import Role
from geres.model.wire import Frame
from geres.server import opening
from geres.store import tokens
from geres.store.database import Tx, open_database
from tests.api.world import Agent, Api


def add_token(api: Api, token: str, role: Role, subject: str = "eve") -> str:
    def make(tx: Tx) -> None:
        tokens.ensure_token(tx, token, tenant_id=1, subject=subject, role=role, now_us=0)

    db = open_database(f"sqlite:{api.home / 'geres.db'}")
    try:
        db.call(make)
    finally:
        db.close()
    return token


def test_health_needs_no_token_and_everything_else_does(api: Api) -> None:
    assert api.call("GET", "/healthz", token=None).body == b"ok\n"
    assert api.call("GET", "/readyz", token=None).status == 200
    for method, path in (
        ("GET", "/v1/tasks"),
        ("POST", "/v1/tasks"),
        ("GET", "/metrics"),
        ("GET", "/nothing"),
    ):
        refused = api.call(method, path, token=None)
        assert (refused.status, refused.error["code"]) == (401, "unauthenticated")
        assert refused.headers["www-authenticate"] == "Bearer"
    assert api.call("GET", "/v1/tasks", token="wrong").error["code"] == "unauthenticated"


def test_the_home_gets_tokens_and_an_address_for_its_owner_alone(api: Api) -> None:
    address = json.loads((api.home / "address.json").read_text())

    assert address["url"] == api.url
    assert set(address) == {
        "url",
        "host_id",
        "host",
        "pid",
        "version",
        "started_at",
        "fingerprint",
        "listens",
    }
    for name in ("token", "agent.token", "address.json"):
        assert stat.S_IMODE((api.home / name).stat().st_mode) == 0o600
    assert len(api.token) == len(api.agent_token) == 43
    assert api.get("/v1/whoami")["role"] == "admin"


def test_roles_bound_what_a_token_may_do(api: Api) -> None:
    viewer, node = add_token(api, "v" * 43, "viewer"), api.agent_token

    assert api.call("GET", "/v1/tasks", token=viewer).status == 200
    assert api.call("POST", "/v1/tasks", {"task": {"command": ["x"]}}, token=viewer).error["code"] == "denied"
    assert api.call("GET", "/v1/tasks", token=node).error["code"] == "denied"
    assert api.call("PUT", "/v1/agents/outputs/1/1/stdout", b"", token=viewer).status == 403


def test_a_user_acts_on_their_own_tasks_only(api: Api) -> None:
    task, user = api.submit(), add_token(api, "u" * 43, "user")
    own = api.call("POST", "/v1/tasks", {"task": {"command": ["true"]}}, token=user).good["task"]

    answer = api.call("POST", "/v1/tasks:cancel", {"ids": [task, own["id"]]}, token=user).good

    assert [item.get("code") or item["state"] for item in answer["items"]] == ["denied", "cancelled"]
    assert own["submitted_by"] == "eve"
    assert own["job_id"] != task.partition(".")[0]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "words"),
    [
        ("POST", "/v1/tasks", b"{", 400, "not_understood", "the body is no JSON"),
        ("POST", "/v1/tasks", b"", 400, "not_understood", "has no body"),
        (
            "POST",
            "/v1/tasks",
            b'{"task":{"command":["a"],"cpu":1}}',
            422,
            "invalid",
            "task.cpu: there is no such field",
        ),
        (
            "POST",
            "/v1/tasks",
            b'{"task":{"command":["a"],"cpus":"4"}}',
            422,
            "invalid",
            "task.cpus: Expected `float`",
        ),
        (
            "POST",
            "/v1/tasks",
            b'{"task":{"command":["a"],"cpus":-1}}',
            422,
            "invalid",
            "task.cpus: -1 is not between",
        ),
        ("POST", "/v1/tasks", b'{"task":{}}', 422, "invalid", "task.command: is missing"),
        ("POST", "/v1/tasks", b'{"job":"default"}', 422, "invalid", "task: is missing"),
        (
            "POST",
            "/v1/tasks",
            b'{"task":{"command":["a"]},"job":7}',
            422,
            "invalid",
            "job: is a number where a text",
        ),
        ("POST", "/v1/tasks", b'{"task":{"command":["a"]},"job":"77"}', 404, "not_found", "no job '77'"),
        ("POST", "/v1/tasks", b'{"task":{"command":["a"],"match":"node.x == 1"}}', 422, "invalid", "match"),
        (
            "POST",
            "/v1/tasks?dry=1",
            b'{"task":{"command":["a"]}}',
            422,
            "invalid",
            "dry: there is no such parameter",
        ),
        ("POST", "/v1/tasks:cancel", b'{"ids":["1.1"],"x":1}', 422, "invalid", "x: there is no such field"),
        ("POST", "/v1/tasks:cancel", b'{"ids":[1.5]}', 422, "invalid", "write it in quotes"),
        ("POST", "/v1/tasks:rerun", b'{"ids":["1"],"changes":{"cpu":1}}', 422, "invalid", "changes"),
        ("POST", "/v1/jobs", b'{"name":"a.b"}', 422, "invalid", "name: 'a.b' cannot be a name"),
        ("GET", "/v1/tasks?stat=failed", None, 422, "invalid", "stat: there is no such parameter"),
        ("GET", "/v1/tasks?limit=many", None, 422, "invalid", "limit: "),
        ("GET", "/v1/tasks/1.99", None, 404, "not_found", "there is no task 1.99"),
        ("GET", "/v1/tasks/nonsense", None, 404, "not_found", "is no id of a task"),
        ("GET", "/v1/tasks/1.1?wait_seconds=61", None, 422, "invalid", "wait_seconds: 61 is not between"),
        ("GET", "/v1/jobs/5/results", None, 404, "not_found", "no job 5"),
        ("GET", "/v1/nodes/none", None, 404, "not_found", "no node 'none'"),
        ("GET", "/v1/nothing", None, 404, "not_found", "/openapi.json lists what is"),
        ("DELETE", "/v1/tasks", None, 405, "invalid", "DELETE does not go with"),
    ],
)
def test_what_is_wrong_is_refused_with_one_sentence(
    api: Api, method: str, path: str, body: bytes | None, status: int, code: str, words: str
) -> None:
    answer = api.call(method, path, body)

    assert (answer.status, answer.error["code"]) == (status, code), answer.body
    assert words in answer.error["message"]
    assert api.get("/v1/tasks")["items"] == []


def test_a_body_without_end_is_cut_off(api: Api) -> None:
    answer = api.call("POST", "/v1/tasks:cancel", b"", headers={"Content-Length": str(1 << 40)})

    assert answer.status == 413
    assert answer.error["message"] == "body: is longer than 16 MiB; send it in pieces"


def test_the_document_describes_every_route_and_says_what_is_strict(api: Api) -> None:
    document = json.loads(api.call("GET", "/openapi.json", token=None).body)

    paths = document["paths"]
    assert {"post", "get"} <= set(paths["/v1/tasks"])
    for path in ("/v1/tasks:bulk", "/v1/tasks/{task_id}", "/v1/jobs/{job_ref}/results", "/v1/tasks:cancel"):
        assert path in paths
    assert not any("agents" in path for path in paths)
    schemas = document["components"]["schemas"]
    for strict in ("TaskSpec", "SubmitTask", "SubmitBulk", "TaskRow", "JobSpec", "CancelTasks"):
        assert schemas[strict]["additionalProperties"] is False, strict
    assert "additionalProperties" not in schemas["TaskDetail"]
    named = {one["name"] for one in paths["/v1/tasks"]["get"]["parameters"]}
    assert {"filter", "cursor", "state", "count"} <= named
    references = {text.partition('"')[0] for text in json.dumps(document).split("#/components/schemas/")[1:]}
    assert references <= set(schemas)
    for operations in paths.values():
        for operation in operations.values():
            assert operation["summary"]
            assert "default" in operation["responses"]


def test_metrics_are_prometheus_text(api: Api) -> None:
    api.submit()

    answer = api.call("GET", "/metrics")

    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'geres_tasks{state="queued"} 1' in answer.body.decode().splitlines()


def test_a_server_goes_on_with_what_was_stored(tmp_path: Path) -> None:
    with Api(tmp_path) as first:
        task, token = first.submit(), first.token
    assert not (tmp_path / "address.json").exists()

    with Api(tmp_path) as second:
        assert second.token == token
        assert second.get(f"/v1/tasks/{task}")["state"] == "queued"


def test_two_servers_never_share_a_file(api: Api) -> None:
    with pytest.raises(Conflict, match="another server uses"), Api(api.home):
        pass

    assert api.get("/v1/summary")


def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        other = Api(tmp_path)
        other.settings = type(other.settings)(port=taken.getsockname()[1])

        with pytest.raises(Conflict, match="is taken; choose another --port"), other:
            pass


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "geres.db").write_text("this is my diary\n" * 100)

    with pytest.raises(Invalid, match="is no database of geres") as caught, Api(tmp_path):
        pass

    assert caught.value.exit_status == 2
    assert (tmp_path / "geres.db").read_text().startswith("this is my diary")


def test_a_copy_that_does_not_fit_on_the_disk_is_not_half_there(tmp_path: Path) -> None:
    path = tmp_path / "geres.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE schema_version (version INTEGER); INSERT INTO schema_version VALUES (1);"
            "CREATE TABLE much (data BLOB); INSERT INTO much VALUES (zeroblob(1000000));"
        )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))  # as a full disk does, for this process
    try:
        with pytest.raises(StoreUnavailable, match="can be kept before its migration"):
            opening.keep_copy(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [one.name for one in tmp_path.iterdir()] == ["geres.db"]

    copy = opening.keep_copy(path)
    assert copy == tmp_path / "geres.db.schema-1"
    assert copy.stat().st_size >= 1_000_000
    assert copy.stat().st_mode & 0o077 == 0


def test_a_database_of_a_newer_program_is_refused_and_the_copy_named(tmp_path: Path) -> None:
    with Api(tmp_path):
        pass
    (tmp_path / "geres.db.schema-1").touch()
    with sqlite3.connect(tmp_path / "geres.db") as connection:
        connection.execute("INSERT INTO schema_version VALUES (999, 'later', 'x', 0)")
    connection.close()

    with pytest.raises(Conflict, match=r"has schema 999.*geres\.db\.schema-1"), Api(tmp_path):
        pass


def test_stopping_answers_those_who_wait(api: Api) -> None:
    task = api.submit()
    waiting = http.client.HTTPConnection("127.0.0.1", api.port, timeout=20)
    waiting.request(
        "GET", f"/v1/tasks/{task}?wait_seconds=60", headers={"Authorization": f"Bearer {api.token}"}
    )
    assert api.get("/v1/summary")  # the server reads requests in the order in which they came

    api.stop()

    assert json.loads(waiting.getresponse().read())["state"] == "queued"
    waiting.close()


def test_a_good_bye_is_stored_when_the_server_stops_at_once(tmp_path: Path) -> None:
    with Api(tmp_path) as api:
        agent = Agent(api)
        agent.send(Frame(drain=True))
        agent.close()
        api.stop()
    with contextlib.closing(sqlite3.connect(tmp_path / "geres.db")) as database:
        assert database.execute("SELECT state FROM node").fetchall() == [("offline",)]


@pytest.mark.parametrize(
    ("path", "listed"),
    [
        ("/v1/tokens", "/v1/tokens"),
        ("/v1/tokens/laptop/rotate", "/v1/tokens"),
        ("/v1/join-tokens", "/v1/join-tokens"),
    ],
)
def test_a_repeated_request_makes_no_second_token_and_keeps_no_secret(
    api: Api, path: str, listed: str
) -> None:
    api.post("/v1/tokens", {"name": "laptop"})
    before = len(api.get(listed))

    first = api.call("POST", path, {}, headers={"Idempotency-Key": "one"})
    again = api.call("POST", path, {}, headers={"Idempotency-Key": "one"})
    other = api.call("POST", path, {}, headers={"Idempotency-Key": "two"})

    assert (first.status, again.status, other.status) == (201, 409, 201)
    assert again.error["code"] == "conflict"
    assert again.error["facts"] == {"id": first.good["id"]}
    assert len(api.get(listed)) == before + 2
    secret = first.good.get("token") or first.good["join"].rpartition("#")[2]
    kept = b"".join(file.read_bytes() for file in api.home.glob("geres.db*"))
    assert secret.encode() not in kept
