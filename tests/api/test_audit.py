"""Every change has an entry in the audit log; what changed nothing has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.api.world import Agent, Api, Client


def newest(api: Api) -> dict[str, Any]:
    items = api.get("/v1/audit", limit=1)["items"]
    return dict(items[0]) if items else {"id": "0"}


def test_every_change_of_tasks_jobs_and_people_is_noted(api: Api) -> None:
    def task(**more: Any) -> str:
        return str(api.submit("true", **more))

    first = task()
    job = api.post("/v1/jobs", {"name": "x"})["id"]
    token = api.post("/v1/tokens", {"name": "t"})["id"]
    changes: list[tuple[str, str, Any, str, str | None]] = [
        ("POST", "/v1/tasks", {"task": {"command": ["true"]}}, "task.submit", None),
        (
            "POST",
            "/v1/tasks:bulk",
            {"tasks": [{}, {}], "defaults": {"command": ["a"]}, "job": job},
            "task.submit",
            f"{job}.1-2",
        ),
        ("POST", "/v1/tasks:hold", {"ids": [first]}, "task.hold", first),
        ("POST", "/v1/tasks:edit", {"ids": [first], "priority": 4}, "task.edit", first),
        ("POST", "/v1/tasks:release", {"ids": [first]}, "task.release", first),
        ("POST", "/v1/tasks:cancel", {"ids": [first, "77.1"]}, "task.cancel", first),
        ("POST", "/v1/tasks:rerun", {"ids": [first]}, "task.rerun", first),
        ("POST", "/v1/jobs", {"name": "y"}, "job.create", None),
        ("PATCH", f"/v1/jobs/{job}", {"priority": 2}, "job.edit", job),
        ("POST", f"/v1/jobs/{job}/disable", {}, "job.disable", job),
        ("POST", f"/v1/jobs/{job}/enable", {}, "job.enable", job),
        ("POST", f"/v1/jobs/{job}/close", {}, "job.close", job),
        ("POST", f"/v1/jobs/{job}/cancel", {}, "job.cancel", job),
        ("POST", "/v1/tenants", {"name": "beta"}, "tenant.create", "beta"),
        ("POST", "/v1/tenants/beta/disable", {}, "tenant.disable", "beta"),
        ("POST", "/v1/tenants/beta/enable", {}, "tenant.enable", "beta"),
        ("POST", "/v1/users", {"name": "mia"}, "user.create", "mia"),
        ("PATCH", "/v1/users/mia", {"role": "viewer"}, "user.set-role", "mia"),
        ("PATCH", "/v1/users/mia", {"disabled": True}, "user.disable", "mia"),
        ("POST", "/v1/tokens", {"user": "mia"}, "token.create", None),
        ("POST", f"/v1/tokens/{token}/rotate", {}, "token.rotate", token),
        ("POST", f"/v1/tokens/{token}/revoke", {}, "token.revoke", token),
    ]
    subject = api.get("/v1/whoami")["subject"]
    for method, path, body, action, target in changes:
        before = newest(api)["id"]
        answer = api.call(method, path, body)
        assert answer.status < 300, (method, path, answer.body)
        entry = newest(api)
        assert int(entry["id"]) == int(before) + 1, (method, path)
        assert (entry["action"], entry["result"], entry["user"]) == (action, "ok", subject)
        assert (entry["address"], entry["role"], entry["tenant"]) == ("127.0.0.1", "admin", "default")
        assert entry["target"] == target or (target is None and entry["target"]), (method, path, entry)


def test_what_changes_nothing_is_not_noted(api: Api) -> None:
    body = {"task": {"command": ["true"]}}
    key = {"Idempotency-Key": "k1"}
    assert api.call("POST", "/v1/tasks", body, headers=key).status == 201
    before = newest(api)

    assert api.call("POST", "/v1/tasks", body, headers=key).status == 201  # the answer of before
    assert api.call("POST", "/v1/tasks", body, dry_run="true").status == 200
    assert api.call("POST", "/v1/tasks", {"task": {"command": ["x"], "cpus": -1}}).status == 422
    assert api.call("POST", "/v1/jobs/77/cancel", {}).status == 404
    assert api.call("POST", "/v1/jobs/1/cancel", {}).status == 409  # the default job
    assert api.call("GET", "/v1/tasks").status == 200
    assert newest(api) == before


def test_input_and_signals_are_noted(api: Api, agent: Callable[..., Agent]) -> None:
    node = agent()
    task = api.submit("cat")
    node.take()
    node.start(task)
    client = Client(api, task, "?stdin=1")
    stream = node.stream()
    before = int(newest(api)["id"])

    for frame in (("i", b"one"), ("i", b"two"), ("sig", "INT")):
        client.write(*frame)
        stream.read()
    entries = [(one["action"], one["target"], one["facts"]) for one in api.get("/v1/audit")["items"]]
    assert entries[:2] == [("task.signal", task, {"signal": "INT"}), ("task.input", task, {})]
    assert int(newest(api)["id"]) == before + 2
    client.close()
    stream.close()
