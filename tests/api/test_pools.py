"""Pools over HTTP, and what a server does with a node whose start task is not done."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from geres.model.wire import Frame, StartReport
from tests.api.world import Agent, Api


def patch(api: Api, body: Any, pool: str = "lab", **headers: str) -> Any:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return api.call("PATCH", f"/v1/pools/{pool}", body, headers=sent)


def wait_for_node(api: Api, name: str, state: str) -> Any:
    until = time.monotonic() + 20
    while (node := api.get(f"/v1/nodes/{name}"))["state"] != state:
        assert time.monotonic() < until, node
        threading.Event().wait(0.01)
    return node


def test_a_pool_is_made_read_and_edited_by_its_version(api: Api) -> None:
    assert patch(api, {"start_task": None}, "none-1").error["code"] == "not_found"
    made = patch(api, {"start_task": {"shell": "touch x"}, "create": True}, "read-1")
    assert made.good["start_task"]["shell"] == "touch x"
    found = api.call("GET", "/v1/pools/read-1")
    assert found.headers["etag"] == made.headers["etag"] == '"2"'
    assert "read-1" in [pool["name"] for pool in api.get("/v1/pools")]

    changed = {"start_task": {"command": ["true"], "retries": 0}}
    assert patch(api, changed, "read-1", If_Match='"1"').status == 412
    assert patch(api, changed | {"dry_run": True}, "read-1").good["start_task"]["command"] == ["true"]
    assert api.get("/v1/pools/read-1")["start_task"]["shell"] == "touch x"
    assert patch(api, changed, "read-1", If_Match='"2"').headers["etag"] == '"3"'
    assert patch(api, {"start_task": None}, "read-1").good["start_task"] is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"start_task": {"comand": ["x"]}}, "start_task.comand"),
        ({"start_task": {"command": []}}, "start_task.command"),
        ({"start_task": {"command": ["x"], "env": {"A": 1}}}, "start_task.env"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_what_cannot_be_is_refused_with_the_field(api: Api, body: Any, field: str) -> None:
    refused = patch(api, body, "default")
    assert refused.status == 422
    assert refused.error["facts"]["field"].startswith(field)
    assert api.get("/v1/pools/default")["start_task"] is None


def test_nothing_is_placed_on_a_node_before_its_start_task_is_done(api: Api) -> None:
    assert patch(api, {"start_task": {"command": ["prepare"]}, "create": True}).status == 200
    with_old_agent = Agent(api, "old", pool="lab", cpus=1.0)
    assert with_old_agent.welcome.start_task is None
    with_old_agent.close()

    agent = Agent(api, "new", pool="lab", start=StartReport())
    order = agent.welcome.start_task
    assert order is not None
    assert order.argv == ["prepare"]
    first = api.submit("one", pool="lab", nodelist=["new"])
    why = api.get(f"/v1/tasks/{first}/why")
    assert "no node is in service: start task runs on new" in why["summary"]
    assert why["satisfiable"]
    assert wait_for_node(api, "new", "starting")["reason"] == "its start task runs"

    agent.send(Frame(start=StartReport("of another version", "done")))
    agent.send(Frame(start=StartReport(order.digest, "failed", "exit 9")))
    assert wait_for_node(api, "new", "start_failed")["reason"] == "its start task failed: exit 9"
    why = api.get(f"/v1/tasks/{first}/why")
    assert "no node is in service: start task failed on new: exit 9" in why["summary"]
    big = api.call("POST", "/v1/tasks", {"task": {"command": ["x"], "cpus": 64, "pool": "lab"}}).good
    assert "no node can ever run this" in big["warnings"][0]
    small = api.call("POST", "/v1/tasks", {"task": {"command": ["x"], "cpus": 4, "pool": "lab"}}).good
    assert small.get("warnings", []) == []
    assert any(one["kind"] == "node" for one in api.get("/v1/doctor"))
    assert agent.assigned == []
    agent.close()

    again = Agent(api, "new", pool="lab", start=StartReport())
    again.send(Frame(start=StartReport(order.digest, "done")))
    assert first in again.take(1)
    again.close()
