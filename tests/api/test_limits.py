"""How often one may ask, and how soon a token is no good any more."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from geres.api import auth, front
from geres.errors import RateLimited, Unauthenticated
from geres.sdk.client import Client
from geres.server import main
from geres.store import tokens
from geres.store.database import open_database
from tests.api.world import Agent, Answer, Api


@pytest.fixture
def slow_api(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Api]:
    """A server where a token may make two requests at once, and one a second."""
    monkeypatch.setattr(main, "_REQUESTS_A_SECOND", 1.0)
    with Api(tmp_path / "home") as running:
        yield running


def test_who_asks_too_often_is_told_when_to_ask_again(slow_api: Api) -> None:
    answers = [slow_api.call("GET", "/v1/whoami") for _ in range(14)]

    refused = [answer for answer in answers if answer.status == 429]
    assert answers[0].status == 200
    first = refused[0]
    assert first.error["code"] == "rate_limited"
    assert 0 < first.error["facts"]["retry_after_seconds"] <= 1
    assert first.headers["retry-after"] == "1"
    made = slow_api.call("GET", "/v1/whoami", token=slow_api.agent_token)
    assert made.status == 403  # another token has an allowance of its own


def test_a_token_that_is_written_otherwise_has_no_other_allowance(slow_api: Api) -> None:
    token, statuses = slow_api.token, []
    for n in range(14):
        written = f"{('Bearer', 'bearer', 'BEARER')[n % 3]} {' ' * n}{token}"
        answer = slow_api.call("GET", "/v1/whoami", token=None, headers={"Authorization": written})
        statuses.append(answer.status)
    assert statuses[0] == 200
    assert 429 in statuses


def test_the_client_waits_until_it_may_ask_again(slow_api: Api) -> None:
    with Client(slow_api.url, slow_api.token) as client:
        assert [client.whoami().role for _ in range(5)] == ["admin"] * 5
    with Client(slow_api.url, slow_api.token, patience=0.01) as client, pytest.raises(RateLimited):
        _ = [client.whoami() for _ in range(30)]


def test_trying_tokens_out_is_slow_and_does_not_keep_others_out(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: api.call("GET", "/v1/whoami", token=f"t{n}"), range(auth._FREE_FAILURES)))
        began = time.monotonic()
        slowed = list(pool.map(lambda n: api.call("GET", "/v1/whoami", token=f"u{n}"), range(40)))
        took = time.monotonic() - began
    assert {answer.status for answer in slowed} == {401}
    assert took > auth._SLOWED_SECONDS
    assert api.call("GET", "/v1/whoami").status == 200
    fresh = api.post("/v1/tokens", {"name": "fresh"})["token"]
    assert api.call("GET", "/v1/whoami", token=fresh).status == 200

    monkeypatch.setattr(auth, "_MOST_SLOWED", 0)  # as many wait as may wait
    refused = next(
        answer for n in range(200) if (answer := api.call("GET", "/v1/whoami", token=f"v{n}")).status != 401
    )
    assert (refused.status, refused.error["code"]) == (429, "rate_limited")
    assert api.call("GET", "/v1/whoami").status == 200
    assert len(api.get("/v1/audit", result="unauthenticated", limit=1000)["items"]) < 200


def test_whoever_tries_tokens_out_keeps_nobody_out_who_was_let_in_or_comes_from_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(auth, "_FREE_FAILURES", 3)
    monkeypatch.setattr(auth, "_FAILURES_A_SECOND", 0.001)
    monkeypatch.setattr(auth, "_SLOWED_SECONDS", 0.01)
    monkeypatch.setattr(auth, "REMEMBER_SECONDS", 0.0)
    with Api(tmp_path / "home") as api:
        fresh, gone = (api.post("/v1/tokens", {"name": name}) for name in ("fresh", "gone"))
        assert {api.call("GET", "/v1/whoami", token=f"t{n}").status for n in range(6)} == {401}
        monkeypatch.setattr(auth, "_MOST_SLOWED", 0)  # as many wait as may wait

        assert api.call("GET", "/v1/whoami", token="u").status == 429
        assert api.call("GET", "/v1/whoami", token=fresh["token"]).status == 429  # as good as the others
        assert api.call("GET", "/v1/whoami").status == 200
        api.post(f"/v1/tokens/{gone['id']}/revoke")  # all are looked up again
        assert api.call("GET", "/v1/whoami").status == 200
        connection = http.client.HTTPConnection("127.0.0.1", api.port, 10, source_address=("127.0.0.9", 0))
        with closing(connection):
            connection.request("GET", "/v1/whoami", headers={"Authorization": f"Bearer {fresh['token']}"})
            assert connection.getresponse().status == 200


def test_what_needs_no_token_cannot_be_asked_without_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(auth, "_FREE_OPEN", 3)
    monkeypatch.setattr(auth, "_OPEN_A_SECOND", 0.001)
    with Api(tmp_path / "home") as api:
        statuses = [api.call("GET", path, token=None).status for path in ("/readyz", "/healthz", "/v1/jobs")]
        assert statuses == [200, 200, 401]
        for path in ("/readyz", "/openapi.json", "/v1/jobs"):
            refused = api.call("GET", path, token=None)
            assert (refused.status, refused.error["code"]) == (429, "rate_limited")
            assert int(refused.headers["retry-after"]) > 100
        assert api.get("/v1/whoami")


def test_a_revoked_token_is_refused_at_once_and_elsewhere_within_seconds(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "REMEMBER_SECONDS", 0.5)
    first, second = (api.post("/v1/tokens", {"name": name}) for name in ("a", "b"))
    for made in (first, second):
        assert api.call("GET", "/v1/whoami", token=made["token"]).status == 200

    api.post(f"/v1/tokens/{first['id']}/revoke")
    assert api.call("GET", "/v1/whoami", token=first["token"]).status == 401

    db = open_database(f"sqlite:{api.home / 'geres.db'}")  # as another server does it
    try:
        digest = tokens.token_hash(second["token"])
        caller = db.call(tokens.find_caller, digest, now_us=time.time_ns() // 1000)
        db.call(tokens.revoke, caller, second["id"], now_us=time.time_ns() // 1000)
        with pytest.raises(Unauthenticated):
            db.call(tokens.find_caller, digest, now_us=time.time_ns() // 1000)
    finally:
        db.close()
    until = time.monotonic() + 20
    while _status(api, second["token"]) != 401:
        assert time.monotonic() < until
        threading.Event().wait(0.05)


def test_a_token_that_was_revoked_elsewhere_gives_nobody_rights_that_last(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "REMEMBER_SECONDS", 600.0)
    made = api.post("/v1/tokens", {"name": "a"})
    assert _status(api, made["token"]) == 200
    with closing(open_database(f"sqlite:{api.home / 'geres.db'}")) as db:  # as another server does it
        caller = db.call(tokens.find_caller, tokens.token_hash(made["token"]), now_us=time.time_ns() // 1000)
        db.call(tokens.revoke, caller, made["id"], now_us=time.time_ns() // 1000)

    assert _status(api, made["token"]) == 200  # for a while
    for path, body in (
        ("/v1/tokens", {}),
        (f"/v1/tokens/{made['id']}/rotate", {}),
        ("/v1/users", {"name": "mia"}),
        ("/v1/tenants", {"name": "third"}),
        ("/v1/join-tokens", {}),
        ("/v1/webhooks", {"url": "http://127.0.0.1:9/"}),
    ):
        assert api.call("POST", path, body, token=made["token"]).status == 401, path
    pool = {"start_task": {"command": ["true"]}}
    assert api.call("PATCH", "/v1/pools/default", pool, token=made["token"]).status == 401
    assert [one["name"] for one in api.get("/v1/tokens") if one["name"] == "a"] == []
    assert api.get("/v1/join-tokens") == []


def _status(api: Api, token: str) -> int:
    return api.call("GET", "/v1/whoami", token=token).status


def test_tokens_that_are_no_text_or_far_too_long_are_refused(api: Api) -> None:
    def ask(header: bytes) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=10)
        try:
            connection.putrequest("GET", "/v1/whoami")
            connection.putheader("Authorization", header)
            connection.endheaders()
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(), dict(answer.getheaders()))
        finally:
            connection.close()

    for header in (
        b"Bearer " + b"x" * 20_000,
        b"Bearer \xff\xfe",
        b"Bearer geres_task_",
        b"Bearer geres_task_99999999999999999999.1.1.1_" + b"A" * 43,
        b"Bearer a.b.c",
        b"Basic " + b"QWxhZGRpbg==",
        b"Bearer",
    ):
        answer = ask(header)
        assert (answer.status, answer.error["code"]) == (401, "unauthenticated"), header[:40]
    assert api.get("/v1/whoami")["role"] == "admin"


def test_an_open_stream_ends_with_its_token(
    monkeypatch: pytest.MonkeyPatch, api: Api, agent: Callable[..., Agent]
) -> None:
    monkeypatch.setattr(front, "_LOOK_AGAIN_SECONDS", 0.05)
    made = api.post("/v1/tokens", {"name": "a"})
    task = api.submit("sleep", "9")
    with closing(api.socket(f"/v1/tasks/{task}/attach", token=made["token"])) as attached:
        assert attached.read()  # the task's state
        with pytest.raises(TimeoutError):
            attached.read(0.5)
        api.post(f"/v1/tokens/{made['id']}/revoke")

        with pytest.raises(ConnectionClosed) as closed:
            attached.read(20)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (
        1008,
        "the token was revoked: ask your administrator",
    )
    with pytest.raises(InvalidStatus) as refused:
        api.socket(f"/v1/tasks/{task}/attach", token=made["token"])
    assert refused.value.response.status_code == 401
    agent()  # whose token is good stays
    assert api.wait(task, "assigned")


def test_an_open_stream_ends_when_its_user_gets_another_role(
    monkeypatch: pytest.MonkeyPatch, api: Api
) -> None:
    monkeypatch.setattr(front, "_LOOK_AGAIN_SECONDS", 0.05)
    api.post("/v1/users", {"name": "mia"})
    token = api.post("/v1/tokens", {"user": "mia"})["token"]
    made = api.call("POST", "/v1/tasks", {"task": {"command": ["true"]}}, token=token).good
    with closing(api.socket(f"/v1/tasks/{made['task']['id']}/attach?stdin=1", token=token)) as attached:
        assert attached.read()
        api.call("PATCH", "/v1/users/mia", {"role": "viewer"})
        with pytest.raises(ConnectionClosed) as closed:
            attached.read(20)
    assert closed.value.rcvd is not None
    assert "another one by now" in closed.value.rcvd.reason
