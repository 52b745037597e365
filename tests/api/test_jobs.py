"""Jobs over HTTP, and their results streams."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.api.world import Agent, Api

Connect = Callable[..., Agent]


def test_a_large_array_is_accepted_at_once_and_unfolded_by_a_loop(api: Api) -> None:
    job = api.post("/v1/jobs", {"task": {"command": ["echo", "{}"]}, "array": {"range": "1-30000"}})
    assert (job["task_count"], job["is_array"], job["counts"].get("not_yet", 0) > 0) == (30_000, True, True)

    while api.get(f"/v1/jobs/{job['id']}")["counts"].get("not_yet"):
        pass

    counts = api.get(f"/v1/jobs/{job['id']}")["counts"]
    assert {state: n for state, n in counts.items() if n} == {"queued": 30_000}
    task = api.get(f"/v1/tasks/{job['id']}.29999")
    assert (task["command"], task["index"]) == (["echo", "29999"], 29_999)


def test_items_are_shown_in_the_command(api: Api) -> None:
    job = api.post("/v1/jobs", {"task": {"command": ["gzip", "{}"]}, "array": {"items": ["a b", "c"]}})["id"]

    assert api.get(f"/v1/tasks/{job}.1")["command"] == ["gzip", "a b"]
    assert api.get(f"/v1/tasks/{job}.2")["item"] == "c"


def test_results_wait_for_the_next_end_and_answer_at_once_when_all_have_ended(
    api: Api, agent: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geres.api.waiting._POLL_SECONDS", 60.0)  # only the bell can wake
    node = agent()
    first, second = api.submit(), api.submit()
    node.take(2)
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(api.get("/v1/jobs/1/results", wait_seconds=20)))
    waiting.start()

    node.end(first)
    waiting.join(5)

    assert not waiting.is_alive(), "the end did not wake the reader"
    assert [one["task_id"] for one in found[0]["items"]] == [first]
    assert (found[0]["last"], found[0]["open"]) == (1, 1)
    node.end(second)
    rest = api.get("/v1/jobs/1/results", after=1, wait_seconds=20)
    assert [one["task_id"] for one in rest["items"]] == [second]
    over = api.get("/v1/jobs/default/results", after=2, wait_seconds=60)
    assert (over["items"], over["open"], over["last"]) == ([], 0, 2)


def test_a_whole_stream_is_read_in_pieces(api: Api, agent: Connect) -> None:
    node = agent(cpus=500.0)
    api.post("/v1/tasks:bulk", {"tasks": [{"command": ["x"]}] * 400})
    node.end(*node.take(400))
    numbers, after = list[int](), 0

    while True:
        piece = api.get("/v1/jobs/1/results", after=after, limit=150)
        if not piece["items"]:
            break
        numbers += [one["finish_no"] for one in piece["items"]]
        after = piece["last"]

    assert numbers == list(range(1, 401))


def test_an_edit_with_an_older_etag_is_refused(api: Api) -> None:
    api.post("/v1/jobs", {"name": "j", "max_parallel": 3})
    etag = api.call("GET", "/v1/jobs/j").headers["etag"]

    changed = api.call("PATCH", "/v1/jobs/j", {"priority": 7}, headers={"If-Match": etag})
    late = api.call("PATCH", "/v1/jobs/j", {"priority": 8}, headers={"If-Match": etag})

    assert changed.good["priority"] == 7
    assert changed.headers["etag"] == '"2"'
    assert (late.status, late.error["code"]) == (412, "changed")
    assert api.call("PATCH", "/v1/jobs/j", {}, headers={"If-Match": "x"}).status == 422


def test_closing_refuses_new_tasks_and_completes_with_the_last(api: Api, agent: Connect) -> None:
    node = agent()
    job = api.post("/v1/jobs", {"name": "j"})["id"]
    api.post("/v1/tasks", {"job": "j", "task": {"command": ["x"]}})
    [task] = node.take()

    assert api.post("/v1/jobs/j/close")["state"] == "closing"
    refused = api.call("POST", "/v1/tasks", {"job": job, "task": {"command": ["x"]}})
    assert refused.error["code"] == "job_finished"
    node.end(task)

    assert (api.get(f"/v1/jobs/{job}")["state"], api.get(f"/v1/jobs/{job}")["outcome"]) == ("completed", "ok")


def test_cancelling_a_job_cancels_all_of_it(api: Api, agent: Connect) -> None:
    node = agent(cpus=2.0)
    job = api.post("/v1/jobs", {"task": {"command": ["x"]}, "array": {"range": "1-7"}})["id"]
    running = node.take(2)
    node.start(*running)
    api.wait(running[1], "running")

    assert api.post(f"/v1/jobs/{job}/cancel")["counts"]["cancelled"] == 5
    node.until(lambda: len(node.asked) >= 2)
    node.end(*running, outcome="cancelled")

    assert api.get(f"/v1/jobs/{job}")["state"] == "cancelled"
    assert len(api.get("/v1/tasks", job=job, state="cancelled")["items"]) == 7


def test_the_default_job_is_always_there(api: Api) -> None:
    api.submit()

    refused = api.call("POST", "/v1/jobs/default/cancel", {})

    assert (refused.status, refused.error["code"]) == (409, "conflict")


def test_disabling_with_requeue_takes_running_tasks_back(api: Api, agent: Connect) -> None:
    node = agent()
    api.post("/v1/jobs", {"name": "j", "task": {"command": ["x"]}, "array": {"range": "1-2"}})
    running = node.take(2)
    node.start(*running)
    api.wait(running[1], "running")

    api.post("/v1/jobs/j/disable", {"running": "requeue", "reason": "power cut"})
    node.until(lambda: len(node.asked) >= 2)
    node.end(*running, outcome="cancelled")

    task = api.wait(running[0], "queued")
    assert task["requeue_count"] == 1
    why = api.get(f"/v1/tasks/{running[0]}/why")
    assert "is disabled (requested: power cut)" in why["summary"]
    assert why["next_command"].startswith("geres job enable")
    api.post("/v1/jobs/j/enable")
    node.take(4)


def test_a_job_that_waits_for_another_is_freed_when_that_has_ended(api: Api, agent: Connect) -> None:
    node = agent()
    job = api.post("/v1/jobs", {"task": {"command": ["x"]}, "array": {"range": "1-2"}})["id"]
    child = api.post("/v1/tasks", {"task": {"command": ["y"]}, "after": [job]})["task"]["id"]
    assert api.get(f"/v1/tasks/{child}")["state"] == "blocked"

    node.end(*node.take(2))

    node.take(3)
    assert api.get(f"/v1/tasks/{child}")["state"] == "assigned"


def test_a_time_that_has_come_starts_its_task(api: Api, agent: Connect) -> None:
    node = agent()
    task = api.submit(not_before="2099-01-01T00:00:00Z")
    assert api.get(f"/v1/tasks/{task}")["state"] == "blocked"

    api.post("/v1/tasks:edit", {"ids": [task], "not_before": "2020-01-01T00:00:00Z"})

    assert node.take() == [task]


def test_a_cursor_behind_the_cut_is_gone(api: Api, agent: Connect) -> None:
    node = agent()
    node.end(*[task for task in [api.submit()] if node.take()])
    with sqlite3.connect(api.home / "geres.db") as connection:
        connection.execute("UPDATE job SET results_cut = 1")
    connection.close()

    gone = api.call("GET", "/v1/jobs/1/results", after=0)

    assert (gone.status, gone.error["facts"]["oldest"]) == (410, 2)


def test_the_summary_counts_what_lists_show(api: Api, agent: Connect) -> None:
    node = agent()
    done = api.submit()
    node.end(*node.take())
    api.submit(hold=True)
    api.post("/v1/jobs", {"name": "j"})

    summary = api.get("/v1/summary")

    assert {state: n for state, n in summary["tasks"].items() if n} == {"succeeded": 1, "held": 1}
    assert summary["jobs"]["active"] == len(api.get("/v1/jobs")["items"]) == 2
    assert sum(summary["nodes"].values()) == 1
    assert api.get(f"/v1/tasks/{done}")["state"] == "succeeded"
