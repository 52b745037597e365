"""Bad requests to a running server, on both stores: a 4xx that names the field, and nothing stored."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import math
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from geres.model.wire import PROTOCOL, Ended, Frame, Heartbeat, Hello, decode, encode
from tests.acceptance.harm import peak_bytes, unharmed
from tests.cluster import Cluster

MIB = 1 << 20
TASK: dict[str, Any] = {"command": ["true"], "hold": True}


class Asker:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.address = urlsplit(cluster.url)

    def open(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.address.hostname or "", self.address.port, timeout=30)

    def raw(self) -> socket.socket:
        return socket.create_connection((self.address.hostname, self.address.port), timeout=30)

    def ask(
        self, method: str, path: str, body: object = None, token: str | None = "", **headers: str
    ) -> tuple[int, Any]:
        """(status, the error, or what else came).  `token` None sends none."""
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if token is not None:
            headers["Authorization"] = f"Bearer {token or self.cluster.token}"
        connection = self.open()
        try:
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status < 400:
            return answer.status, text
        return answer.status, json.loads(text)["error"]


@pytest.fixture(scope="module")
def asker(any_cluster: Cluster) -> Asker:
    done = any_cluster.run("run", "--", "echo", "hi")
    assert done.stdout == "hi\n"
    assert Asker(any_cluster).ask("POST", "/v1/tasks", {"task": TASK})[0] == 201
    return Asker(any_cluster)


def _task(**fields: object) -> dict[str, Any]:
    return {"task": {**TASK, **fields}}


def _cursor(*values: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


TASKS_BAD: list[tuple[object, int, str]] = [
    (b"", 400, "no body"),
    (b"{", 400, "no JSON"),
    (b"\xff\xfe", 400, "no JSON"),
    (b"[" * 100_000, 422, "the body"),
    ([], 422, "the body"),
    (None, 400, "no body"),
    ({}, 422, "task: is missing"),
    ({"task": {}}, 422, "task.command: is missing"),
    ({"task": TASK, "bogus": 1}, 422, "bogus: there is no such field"),
    (_task(bogus=1), 422, "task.bogus"),
    (_task(command="true"), 422, "task.command"),
    (_task(command=[]), 422, "task.command"),
    (_task(command=[1]), 422, "task.command[0]: is a number where a text is wanted: write it in quotes"),
    (_task(command=["a\0b"]), 422, "task.command[0]"),
    (b'{"task": {"command": ["\\ud800"]}}', 400, "no JSON"),
    (_task(name="a\0"), 422, "task.name"),
    (_task(meta={"a": "\0"}), 422, "task.meta.a"),
    (_task(env={"a\0": ""}), 422, "task.env"),
    (_task(env={"a=b": ""}), 422, "task.env"),
    (_task(meta={"a": 1}), 422, "task.meta"),
    (_task(cpus="2"), 422, "task.cpus"),
    (_task(cpus=-1), 422, "task.cpus"),
    (_task(memory_bytes=1 << 70), 422, "task.memory_bytes"),
    (_task(gpus=1 << 60), 422, "task.gpus"),
    (_task(resources={"a": -1}), 422, "task.resources.a"),
    (_task(priority=2000), 422, "task.priority"),
    (_task(id="12"), 422, "task.id"),
    (_task(pool="\x1b[2J"), 422, r"task.pool: '\x1b[2J'"),
    (_task(match="node.nosuch"), 422, "task.match"),
    (_task(match="not " * 150 + "node.name"), 201, ""),
    (_task(not_before="0001-01-01T00:00:00+23:00"), 422, "task.not_before"),
    (_task(not_before="9999-12-31T23:59:59.999999Z"), 201, ""),
    (_task(retry={"most": 1 << 40}), 422, "task.retry.most"),
    (_task(retry={"bogus": 1}), 422, "task.retry.bogus"),
    (_task(umask=-1), 422, "task.umask"),
    (_task(stdin=1), 422, "task.stdin"),
    ({"task": TASK, "job": 12}, 422, "job: is a number where a text is wanted: write it in quotes"),
    ({"task": TASK, "job": "\0"}, 422, "job"),
    ({"task": TASK, "job": "nosuch"}, 404, "nosuch"),
    (
        {"task": TASK, "after": [12.7]},
        422,
        "after[0]: is a number where a text is wanted: write it in quotes",
    ),
    ({"task": TASK, "after": ["999.1"]}, 404, "after: there is no task 999.1"),
]


@pytest.mark.parametrize(("body", "status", "told"), TASKS_BAD, ids=lambda value: str(value)[:50])
def test_a_bad_task_is_refused(asker: Asker, body: object, status: int, told: str) -> None:
    with unharmed(asker.cluster, stores_nothing=status != 201):
        found, error = asker.ask("POST", "/v1/tasks", body)
    assert found == status, error
    if status != 201:
        _assert_one_sentence(error, told)


OTHERS_BAD: list[tuple[str, str, object, int, str]] = [
    ("POST", "/v1/tasks?dry_run=maybe", _task(), 422, "dry_run"),
    ("POST", "/v1/tasks?bogus=1", _task(), 422, "bogus: there is no such parameter"),
    ("POST", "/v1/tasks:bulk", {"tasks": [TASK, {"cpus": -1, **TASK}]}, 422, "tasks[1].cpus"),
    ("POST", "/v1/tasks:bulk", {"tasks": [TASK, 7]}, 422, "tasks[1]"),
    ("POST", "/v1/tasks:bulk", {"tasks": [TASK] * 100_001}, 422, "tasks: a request takes at most 100,000"),
    ("POST", "/v1/tasks:bulk", {"tasks": [TASK], "defaults": {"cpus": -1}}, 422, "defaults.cpus"),
    ("POST", "/v1/tasks:cancel", {}, 422, "ids: is missing"),
    ("POST", "/v1/tasks:cancel", {"ids": [1.2]}, 422, "ids[0]: is a number where a text is wanted"),
    ("POST", "/v1/tasks:cancel", {"ids": ["9" * 5000]}, 404, "there is no"),
    ("POST", "/v1/tasks:cancel", {"ids": ["1.1-" + "9" * 30]}, 404, "range"),
    ("POST", "/v1/tasks:cancel", {"ids": ["1.1"], "signal": "NOPE"}, 422, "signal"),
    ("POST", "/v1/tasks:hold", {"ids": ["999.1"]}, 404, "999.1"),
    ("POST", "/v1/tasks:edit", {"ids": ["1.2"]}, 422, "nothing to change"),
    ("POST", "/v1/tasks:edit", {"ids": ["1.2"], "memory_bytes": 1 << 80}, 422, "memory_bytes"),
    ("POST", "/v1/tasks:edit", {"ids": ["1.2"], "match": "x"}, 422, "match"),
    ("POST", "/v1/tasks:rerun", {"ids": ["1.1"], "changes": {"bogus": 1}}, 422, "changes.bogus"),
    ("POST", "/v1/tasks:rerun", {"ids": ["1.1"], "changes": {"cpus": "x"}}, 422, "changes.cpus"),
    ("POST", "/v1/jobs", b"", 400, "no body"),
    ("POST", "/v1/jobs", {"name": "5"}, 422, "name"),
    ("POST", "/v1/jobs", {"max_parallel": 1 << 70}, 422, "max_parallel"),
    ("POST", "/v1/jobs", {"array": {"range": "1-10"}}, 422, "task: is missing"),
    ("POST", "/v1/jobs", {"task": TASK, "array": {}}, 422, "array"),
    ("POST", "/v1/jobs", {"task": TASK, "array": {"range": "1,1"}}, 422, "name each index once"),
    ("POST", "/v1/jobs", {"task": TASK, "array": {"range": "1-4294967295"}}, 422, "10,000,000"),
    ("POST", "/v1/jobs", {"task": TASK, "array": {"items": ["a\0"]}}, 422, "array.items[0]"),
    ("PATCH", "/v1/jobs/1", {"meta": {"": "x"}}, 422, "meta"),
    ("PATCH", "/v1/jobs/1", {"max_parallel": 1 << 70}, 422, "max_parallel"),
    ("PATCH", "/v1/jobs/nosuch", {"priority": 1}, 404, "nosuch"),
    ("POST", "/v1/jobs/1/disable", {"running": "x"}, 422, "running"),
    ("GET", "/v1/tasks/%00", None, 404, "NUL"),
    ("GET", "/v1/tasks/99999999999.1", None, 404, "99999999999.1"),
    ("GET", "/v1/tasks/1.1?wait_seconds=nan", None, 422, "wait_seconds"),
    ("GET", "/v1/tasks/1.1?wait_seconds=1e400", None, 422, "wait_seconds"),
    ("GET", "/v1/tasks/1.1/logs?stream=x", None, 422, "stream"),
    ("GET", "/v1/tasks/1.1/logs?attempt=99999999999999999999", None, 422, "attempt"),
    ("GET", "/v1/jobs/" + "9" * 5000, None, 404, "no job"),
    ("GET", "/v1/jobs/%ff", None, 404, "no job"),
    ("GET", "/v1/jobs/1/results?after=99999999999999999999", None, 422, "after"),
    ("GET", "/v1/jobs/1/results?limit=0", None, 422, "limit"),
    ("GET", "/v1/jobs?cursor=%C2%B2", None, 422, "cursor"),
    ("GET", "/v1/jobs?cursor=" + "9" * 30, None, 422, "cursor"),
    ("GET", "/v1/jobs?state=flying", None, 422, "state"),
    ("GET", "/v1/jobs?bogus=1", None, 422, "bogus"),
    ("GET", "/v1/tasks?limit=1e400", None, 422, "limit"),
    ("GET", "/v1/tasks?name=%00", None, 422, "name: cannot hold a NUL"),
    ("GET", "/v1/tasks?user=%ff", None, 400, "query"),
    ("GET", "/v1/tasks?since=yesterday", None, 422, "since"),
    ("GET", "/v1/tasks?sort=beauty", None, 422, "sort"),
    ("GET", "/v1/tasks?cursor=nonsense", None, 422, "cursor"),
    ("GET", "/v1/tasks?cursor=" + _cursor("-id", 10**30), None, 422, "cursor"),
    ("GET", "/v1/tasks?cursor=" + _cursor("-id", "x"), None, 422, "cursor"),
    ("GET", "/v1/tasks?sort=-name&cursor=" + _cursor("-name", "\0", 5), None, 422, "cursor"),
    ("GET", "/v1/tasks?sort=-name&cursor=" + _cursor("-name", 5, 5), None, 422, "cursor"),
    ("GET", "/v1/tasks?filter=state===", None, 422, "filter: at character"),
    ("GET", "/v1/tasks?filter=" + quote("__import__('os')"), None, 422, "filter"),
    ("GET", "/v1/tasks?filter=" + "(" * 1900, None, 422, "filter"),
    ("GET", "/v1/tasks?filter=" + quote(r'name=="\ud800"'), None, 422, "filter"),
    ("GET", "/v1/tasks?filter=" + quote(r'meta["\ud800"]=="1"'), None, 422, "filter"),
    ("GET", "/v1/tasks?filter=" + quote(r'name=="\x00"'), None, 422, "filter"),
    ("GET", "/v1/tasks?filter=" + quote("priority>" + "9" * 400), None, 422, "filter"),
    ("GET", "/v1/tasks?filter=" + quote("id==12.7"), None, 422, "write '12.7' in quotes"),
    ("GET", "/v1/tasks?filter=" + quote("priority==name"), None, 422, "different kinds"),
    ("GET", "/v1/tasks?" + "a=1&" * 2000, None, 400, "query"),
    ("GET", "/v1/find?id=", None, 422, "id"),
    ("GET", "/v1/find?id=1.9-2", None, 422, "id"),
    ("GET", "/v1/nodes/nosuch", None, 404, "nosuch"),
    ("GET", "/v1/nothing", None, 404, "/openapi.json"),
    ("DELETE", "/v1/tasks", None, 405, "DELETE"),
    ("PUT", "/v1/agents/outputs/" + "9" * 26 + "/1/stdout", b"x", 404, "no id"),
    ("PUT", "/v1/agents/outputs/4294967297/1/stdfoo", b"x", 422, "stdfoo"),
    ("PUT", "/v1/agents/outputs/4294967297/1/stdout", b"x", 409, "over"),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "told"),
    OTHERS_BAD,
    ids=[f"{one[0]} {one[1][:40]} {str(one[2])[:30]}" for one in OTHERS_BAD],
)
def test_a_bad_request_is_refused(
    asker: Asker, method: str, path: str, body: object, status: int, told: str
) -> None:
    with unharmed(asker.cluster, stores_nothing=True):
        found, error = asker.ask(method, path, body)
    assert found == status, error
    _assert_one_sentence(error, told)


def _assert_one_sentence(error: Any, told: str) -> None:
    assert set(error) == {"code", "message", "facts"}
    assert told in error["message"], error
    assert "\n" not in error["message"]


def test_only_versions_that_exist_are_matched(asker: Asker) -> None:
    for match, status in (("x", 422), ('"999"', 412), ('"' + "9" * 5000 + '"', 422), ("²", 422)):
        headers = {"If-Match": match.encode("latin-1").decode("latin-1")}
        assert asker.ask("PATCH", "/v1/jobs/1", {"priority": 0}, **headers)[0] == status


def test_an_idempotency_key_names_one_request(asker: Asker) -> None:
    key = {"Idempotency-Key": "the same"}
    status, first = asker.ask("POST", "/v1/tasks", _task(), **key)
    assert status == 201
    with unharmed(asker.cluster, stores_nothing=True):
        assert asker.ask("POST", "/v1/tasks", _task(), **key) == (201, first)
        for path, body in (("/v1/tasks", _task(name="other")), ("/v1/jobs", {}), ("/v1/jobs", {"name": "x"})):
            status, error = asker.ask("POST", path, body, **key)
            assert (status, error["code"]) == (409, "key_reused")
        for bad in ("x" * 300, "a\tb", "\xe9\x80"):
            status, error = asker.ask("POST", "/v1/tasks", _task(), **{"Idempotency-Key": bad})
            assert (status, error["facts"]) == (422, {"field": "Idempotency-Key"})


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-msgpack", "application/x-www-form-urlencoded", "multipart/form-data"],
)
def test_another_content_type_is_read_as_json_or_refused(asker: Asker, kind: str) -> None:
    headers = {"Content-Type": kind}
    for path in ("/v1/tasks", "/v1/jobs", "/v1/tasks:cancel"):
        status, error = asker.ask("POST", path, b"a=b&c=d", **headers)
        assert (status, error["code"]) == (400, "not_understood")
    assert asker.ask("POST", "/v1/tasks", _task(), **headers)[0] == 201


def test_every_route_wants_a_token_that_it_knows(asker: Asker) -> None:
    document = json.loads(asker.ask("GET", "/openapi.json")[1])
    node_token = (asker.cluster.home / "agent.token").read_text().strip()
    asked = 0
    with unharmed(asker.cluster, stores_nothing=True):
        for path, operations in document["paths"].items():
            for method in operations:
                target = path.replace("{task_id}", "1.1").replace("{job_ref}", "1").replace("{name}", "x")
                if path in ("/healthz", "/readyz"):
                    assert asker.ask(method.upper(), target, token=None)[0] == 200
                    continue
                asked += 1
                for token, status in ((None, 401), ("wrong", 401), ("ü", 401), (node_token, 403)):
                    found, error = asker.ask(method.upper(), target, b"{}", token=token)
                    assert found == status, f"{method} {path} with {token}: {found} {error}"
        for hidden in ("/openapi/plain", "/v1/agents", "/v1/tasks/1.1/attach", "/nothing"):
            assert asker.ask("GET", hidden, token=None)[0] == 401, hidden
        for scheme in ("Basic eDp5", "Bearer", "Bearer ", asker.cluster.token):
            connection = asker.open()
            connection.request("GET", "/v1/whoami", headers={"Authorization": scheme})
            assert connection.getresponse().status == 401
            connection.close()
    assert asked > 25


@pytest.mark.parametrize(
    ("path", "most"), [("/v1/tasks", 16 * MIB), ("/v1/jobs/1/close", 16 * MIB), ("/v1/tasks:bulk", 256 * MIB)]
)
def test_a_huge_body_is_refused_before_it_is_read(asker: Asker, path: str, most: int) -> None:
    before = peak_bytes(asker.cluster, "server")
    with unharmed(asker.cluster, stores_nothing=True):
        connection = asker.open()
        connection.putrequest("POST", path)
        connection.putheader("Authorization", f"Bearer {asker.cluster.token}")
        connection.putheader("Content-Length", str(most + 1))
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 413
        assert "MiB" in json.loads(answer.read())["error"]["message"]
        connection.close()
    assert peak_bytes(asker.cluster, "server") < before + 16 * MIB


def test_a_body_without_an_end_is_cut_off(asker: Asker) -> None:
    """Sent in chunks, with no length told; the connection may be closed before all of it is sent."""
    before = peak_bytes(asker.cluster, "server")
    with unharmed(asker.cluster, stores_nothing=True), asker.raw() as raw:
        head = f"POST /v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {asker.cluster.token}\r\n"
        raw.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        answer = b""
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                raw.sendall(b"100000\r\n" + b" " * MIB + b"\r\n")
        with contextlib.suppress(ConnectionError):
            answer = raw.recv(100)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 413 ")
    assert peak_bytes(asker.cluster, "server") < before + 64 * MIB


@pytest.mark.parametrize(
    "sent", [b"", b"GET", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"\0" * 9000]
)
def test_what_is_no_http_is_closed(asker: Asker, sent: bytes) -> None:
    with unharmed(asker.cluster, stores_nothing=True), asker.raw() as raw:
        raw.sendall(sent)
        raw.shutdown(socket.SHUT_WR)
        assert not raw.recv(1 << 16).startswith(b"HTTP/1.1 2")


# WebSockets


def _socket(asker: Asker, path: str, token: str) -> ClientConnection:
    url = asker.cluster.url.replace("http", "ws", 1) + path
    return connect(
        url, additional_headers={"Authorization": f"Bearer {token}"}, max_size=None, open_timeout=30
    )


def _node_token(asker: Asker) -> str:
    return (asker.cluster.home / "agent.token").read_text().strip()


def _hello(**facts: Any) -> Frame:
    usual = {
        "protocol": PROTOCOL,
        "version": "0",
        "node": "stranger",
        "boot_id": "b",
        "host_id": "h",
        "host": "h",
        "arch": "a",
        "os": "o",
        "pid": 1,
        "account": "x",
        "cpus": 0.0,
        "memory_bytes": 0,
    }
    return Frame(hello=Hello(**(usual | facts)))


HELLOS: list[tuple[bytes | str, str]] = [
    (b"", "must be a hello"),
    ("text", "must be a hello"),
    (b"\xc1\xff", "cannot be read"),
    (encode(_hello())[:20], "cannot be read"),
    (encode(Frame()), "must be a hello"),
    (encode(_hello(protocol=99)), "protocol 99"),
    (encode(_hello(node="")), "node"),
    (encode(_hello(node="a\0b")), "node"),
    (encode(_hello(node="\x1b[2J")), "node"),
    (encode(_hello(node="x" * 100_000)), "node"),
    (encode(_hello(pool="5")), "pool"),
    (encode(_hello(host="h\0")), "NUL"),
    (encode(_hello(cpus=math.nan)), "cpus"),
    (encode(_hello(cpus=-1.0)), "cpus"),
    (encode(_hello(memory_bytes=1 << 63)), "memory_bytes"),
    (encode(_hello(gpus=1 << 40)), "gpus"),
    (encode(_hello(resources={"a": 1 << 63})), "resources.a"),
    (encode(_hello(attempts=[((1 << 64) - 1, 1)])), "attempts"),
]


@pytest.mark.parametrize(("first", "told"), HELLOS, ids=lambda value: str(value)[:40])
def test_an_agent_that_makes_no_sense_is_told_and_let_go(asker: Asker, first: bytes | str, told: str) -> None:
    agent = _socket(asker, "/v1/agents", _node_token(asker))
    with unharmed(asker.cluster, stores_nothing=True), agent:
        agent.send(first)
        assert told in (decode(agent.recv(timeout=30)).error or "")  # type: ignore[arg-type]
        with pytest.raises(ConnectionClosed):
            agent.recv(timeout=30)


def _nonsense() -> Iterator[Frame]:
    huge, ended = (1 << 64) - 1, {"outcome": "succeeded", "reason": "exit"}
    for task, attempt in ((huge, 1), (-1, 1), (1, 1 << 63), (4294967297, -1), (4294967297, 1)):
        yield Frame(ended=[Ended(task=task, attempt=attempt, **ended)])  # type: ignore[arg-type]
    yield Frame(started=[(huge, huge, huge)])
    yield Frame(asked=[(-1, -1, "\0")])
    yield Frame(heartbeat=Heartbeat(count=-1, checksum=huge, outside_cpus=math.nan))
    yield Frame(error="a\0")


def test_reports_of_what_an_agent_never_had_change_nothing(asker: Asker) -> None:
    before = asker.ask("GET", "/v1/tasks/1.1")
    with unharmed(asker.cluster):
        for frame in _nonsense():
            with _socket(asker, "/v1/agents", _node_token(asker)) as agent:
                agent.send(encode(_hello()))
                assert decode(agent.recv(timeout=30)).welcome is not None  # type: ignore[arg-type]
                agent.send(encode(frame))
                agent.send(encode(Frame(drain=True)))
        assert asker.cluster.run("run", "--", "echo", "hi").stdout == "hi\n"
    assert asker.ask("GET", "/v1/tasks/1.1") == before


def test_a_frame_cut_in_the_middle_ends_a_connection_and_no_more(asker: Asker) -> None:
    """The handshake is right; then a frame announces 1 MiB, brings 10 bytes, and the line goes dead."""
    with unharmed(asker.cluster, stores_nothing=True):
        for path, token in (
            ("/v1/agents", _node_token(asker)),
            ("/v1/tasks/1.2/attach", asker.cluster.token),
        ):
            for frame in (b"\x82\xff\0\0\0\0\0\x10\0\0abcd0123456789", b"\xff" * 50, b"\x82"):
                with socket.create_connection(
                    (asker.address.hostname, asker.address.port), timeout=30
                ) as raw:
                    raw.sendall(
                        f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}\r\n"
                        f"Sec-WebSocket-Version: 13\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
                    )
                    assert raw.recv(1 << 16).startswith(b"HTTP/1.1 101 ")
                    raw.sendall(frame)


@pytest.mark.parametrize(
    ("path", "token", "status"),
    [
        ("/v1/agents", "wrong", 401),
        ("/v1/tasks/1.2/attach", "wrong", 401),
        ("/v1/tasks/999.1/attach", "", 404),
        ("/v1/tasks/x/attach", "", 404),
        ("/v1/tasks/1.2/attach?stdin=x", "", 422),
        ("/v1/tasks/1.2/attach?bogus=1", "", 422),
        ("/v1/tasks/1.2/attach?out=-1", "", 422),
        ("/v1/tasks/1.2/attach?err=" + "9" * 30, "", 422),
        ("/v1/tasks/1.2/attach?from=yesterday", "", 422),
        ("/v1/agents/streams/nosuch", "", 404),
        ("/v1/nothing", "", 422),
    ],
)
def test_a_bad_handshake_is_refused_with_a_status(asker: Asker, path: str, token: str, status: int) -> None:
    with unharmed(asker.cluster, stores_nothing=True):
        with pytest.raises(InvalidStatus) as refused:
            _socket(asker, path, token or asker.cluster.token)
        assert refused.value.response.status_code == status
        assert json.loads(refused.value.response.body)["error"]["message"]
    assert not [text for _, text in asker.cluster.logs() if "without completing handshake" in text]


NO_INPUT: list[bytes | str] = [
    *(b"", b"\xc1", "text", b"\x90", b"\x91\x01", b"\x92\xa1i\x05", b"\x91\xa4flap", b"\x92\xa3sig\xa1\0"),
    b"\x92\xa1i\xcf" + b"\xff" * 8,
]


def test_frames_that_make_no_sense_do_not_disturb_an_attachment(asker: Asker) -> None:
    body = {"task": {"command": ["cat"], "stdin": True}}
    task = json.loads(asker.ask("POST", "/v1/tasks", body)[1])["task"]["id"]
    client = _socket(asker, f"/v1/tasks/{task}/attach?stdin=1", asker.cluster.token)
    with unharmed(asker.cluster), client:
        for frame in NO_INPUT:
            client.send(frame)
        client.send(b"\x92\xa1i\xc4\x03hi\n")
        client.send(b"\x91\xa3eof")
        seen = b"".join(frame for frame in client if isinstance(frame, bytes))
    assert b"\xc4\x03hi\n" in seen
    assert b"succeeded" in seen


@pytest.mark.parametrize("any_cluster", ["postgres"], indirect=True)
def test_schemathesis_finds_no_fault(asker: Asker) -> None:
    """For 15 seconds, on PostgreSQL, which is the stricter store; test_fuzz.py does so on SQLite."""
    program = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [
            *(str(program), "run", f"{asker.cluster.url}/openapi.json", "--no-color"),
            *("-H", f"Authorization: Bearer {asker.cluster.token}"),
            *("--max-time", "15", "--phases", "coverage,fuzzing", "--continue-on-failure"),
            *(
                "--checks",
                "not_a_server_error,ignored_auth",
                "--exclude-path-regex",
                "^/v1/jobs/[^/]*/cancel$",
            ),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=asker.cluster.home.parent,
    )
    assert done.returncode == 0, done.stdout[-4000:]
