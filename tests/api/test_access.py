"""The table of routes and roles, and the buckets: pure parts of who may do what."""

from __future__ import annotations

import json

import pytest

from geres.api import access
from geres.api.limits import Bucket, Buckets
from geres.errors import Denied, GeresError
from geres.model.callers import Caller, Role
from tests.api.world import Api


def caller(role: Role) -> Caller:
    return Caller(1, "default", "ann", role)


def test_every_route_of_the_document_is_in_the_table(api: Api) -> None:
    document = json.loads(api.call("GET", "/openapi.json", token=None).body)
    routes = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}

    assert routes <= set(access.RULES)
    for method, path in set(access.RULES) - routes:
        assert (
            method == "WEBSOCKET" or path == "/openapi.json" or path.startswith(("/v1/agents/", "/v1/peers/"))
        ), path


def test_a_route_that_is_not_in_the_table_is_not_there(monkeypatch: pytest.MonkeyPatch, api: Api) -> None:
    fewer = {route: roles for route, roles in access.RULES.items() if route != ("GET", "/v1/summary")}
    monkeypatch.setattr(access, "_ROOT", access._tree(fewer))

    assert api.call("GET", "/v1/summary").status == 404


@pytest.mark.parametrize(
    ("method", "path", "roles"),
    [
        ("GET", "/v1/tasks", access.READERS | {"task"}),
        ("GET", "/v1/tasks/1.2", access.READERS | {"task"}),
        ("GET", "/v1/tasks/1.2/why", access.READERS | {"task"}),
        ("POST", "/v1/tasks:bulk", access.CHANGERS | {"task"}),
        ("GET", "/healthz", access.NOBODY),
        ("WEBSOCKET", "/v1/agents", access.NODES),
        ("GET", "/v1/tasks/", None),
        ("GET", "//v1/tasks", None),
        ("GET", "/v1//tasks", None),
        ("GET", "/v1/tasks/1.2/why/more", None),
        ("GET", "/v1", None),
        ("GET", "", None),
        ("OPTIONS", "/v1/tasks", None),
        ("TRACE", "/v1/tasks", None),
    ],
)
def test_a_path_has_the_roles_of_its_route(method: str, path: str, roles: access.Roles | None) -> None:
    assert access.roles_for(method, path) == roles


@pytest.mark.parametrize(
    ("role", "method", "path", "status"),
    [
        ("viewer", "GET", "/v1/jobs/7", None),
        ("viewer", "POST", "/v1/jobs", 403),
        ("node", "GET", "/v1/tasks", 403),
        ("task", "GET", "/v1/summary", 403),
        ("operator", "GET", "/v1/doctor", 403),
        ("admin", "GET", "/v1/nothing", 404),
        ("admin", "DELETE", "/v1/tasks", 405),
    ],
)
def test_a_role_that_a_route_does_not_take_is_denied(
    role: Role, method: str, path: str, status: int | None
) -> None:
    def check() -> None:
        access.check(caller(role), access.roles_for(method, path), method, path)

    if status is None:
        check()
        return
    with pytest.raises(GeresError) as refused:
        check()
    assert refused.value.http_status == status
    assert isinstance(refused.value, Denied) == (status == 403)


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = Bucket(10.0, 3.0, 0.0)

    assert [bucket.take(0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take(0.0) == pytest.approx(0.1)
    assert bucket.take(0.05) == pytest.approx(0.05)
    assert bucket.take(0.1) == 0.0
    assert [bucket.take(60.0) > 0 for _ in range(4)] == [False, False, False, True]


def test_buckets_are_bounded_and_forget_the_one_asked_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geres.api.limits._MOST_BUCKETS", 2)
    buckets = Buckets(1.0, 1.0, monotonic=lambda: 0.0)

    assert [buckets.take(key) > 0 for key in ("a", "b", "a")] == [False, False, True]
    assert buckets.take("c") == 0.0  # b goes
    assert [buckets.take(key) > 0 for key in ("a", "b")] == [True, False]
