"""Tasks over HTTP: submitting one and many, waiting, reading, acting."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.api.world import Agent, Api

Connect = Callable[..., Agent]


def test_a_task_runs_and_its_end_wakes_who_waits(
    api: Api, agent: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geres.api.waiting._POLL_SECONDS", 60.0)  # only the bell can wake
    node = agent()
    task = api.submit("echo", "hi", name="greet", meta={"proj": "x"})
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(api.get(f"/v1/tasks/{task}", wait_seconds=20)))
    waiting.start()

    node.take()
    node.end(task, stdout=b"hi\n", stdout_bytes=3)
    waiting.join(5)

    assert not waiting.is_alive(), "the end did not wake the waiter"
    [detail] = found
    assert (detail["state"], detail["exit_code"], detail["node"]) == ("succeeded", 0, "n1")
    assert (detail["command"], detail["name"], detail["meta"]) == (["echo", "hi"], "greet", {"proj": "x"})
    assert [one["attempt"] for one in detail["attempts"]] == [1]
    assert detail["spec"]["command"] == ["echo", "hi"]
    assert detail["finish_no"] == 1
    assert api.call("GET", f"/v1/tasks/{task}/logs").body == b"hi\n"


def test_a_wait_ends_when_its_time_is_over(api: Api) -> None:
    task = api.submit()

    assert api.get(f"/v1/tasks/{task}", wait_seconds=0.05)["state"] == "queued"


def test_the_same_idempotency_key_gives_the_first_answer_again(api: Api) -> None:
    body, headers = {"task": {"command": ["true"]}}, {"Idempotency-Key": "k1"}

    first = api.call("POST", "/v1/tasks", body, headers=headers)
    again = api.call("POST", "/v1/tasks", body, headers=headers)
    other = api.call("POST", "/v1/tasks", {"task": {"command": ["false"]}}, headers=headers)

    assert first.body == again.body
    assert (other.status, other.error["code"]) == (409, "key_reused")
    assert len(api.get("/v1/tasks")["items"]) == 1


def test_an_own_id_is_refused_or_attached_to_while_its_task_lives(api: Api) -> None:
    task = api.submit(id="a")

    taken = api.call("POST", "/v1/tasks", {"task": {"command": ["x"], "id": "a"}})
    attached = api.post("/v1/tasks", {"task": {"command": ["x"], "id": "a", "if_exists": "attach"}})

    assert (taken.status, taken.error["code"]) == (409, "name_taken")
    assert taken.error["facts"]["task"] == task
    assert (attached["attached"], attached["task"]["id"]) == (True, task)
    api.post("/v1/tasks:cancel", {"ids": ["a"]})
    assert api.submit(id="a") != task


def test_a_dry_run_stores_nothing_and_guesses_where_it_would_run(api: Api, agent: Connect) -> None:
    agent("big", memory_bytes=8 << 30)

    fits = api.post("/v1/tasks", {"task": {"command": ["x"]}}, dry_run="true")
    never = api.post("/v1/tasks", {"task": {"command": ["x"], "memory_bytes": 9 << 40}}, dry_run="true")

    assert (fits["placement"], fits["job"]) == ("big", "default")
    assert "needs 9.0T of memory" in never["placement"]
    assert api.get("/v1/tasks", count="true")["matched"] == 0


def test_what_no_node_can_run_is_warned_about_at_once(api: Api, agent: Connect) -> None:
    agent("small", memory_bytes=8 << 30)

    answer = api.post("/v1/tasks", {"task": {"command": ["x"], "memory_bytes": 9 << 40}})

    assert "no node can ever run this" in answer["warnings"][0]
    assert "memory" in answer["warnings"][0]


def test_a_bulk_submit_numbers_its_tasks_in_input_order(api: Api) -> None:
    rows = [{"command": ["echo", str(number)]} for number in range(1000)]

    answer = api.post("/v1/tasks:bulk", {"tasks": rows, "defaults": {"cpus": 0.5, "meta": {"a": "b"}}})

    assert (answer["first_number"], answer["count"], answer["errors"]) == (1, 1000, [])
    task = api.get("/v1/tasks/1.700")
    assert (task["command"], task["cpus"], task["meta"]) == (["echo", "699"], 0.5, {"a": "b"})


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"command": ["x"], "cpus": "many"}, "tasks[2].cpus"),
        ({"command": ["x"], "cpu": 1}, "tasks[2].cpu: there is no such field"),
        ({"command": []}, "tasks[2]"),
        ({"command": ["x"], "cpus": -1}, "tasks[2]"),
        ({}, "tasks[2]"),
    ],
)
def test_a_bad_row_refuses_all_or_is_named_by_its_place(api: Api, bad: Any, words: str) -> None:
    rows = [{"command": ["a"]}, {"command": ["b"]}, bad, {"command": ["c"]}]

    refused = api.call("POST", "/v1/tasks:bulk", {"tasks": rows})
    assert (refused.status, refused.error["facts"]["index"]) == (422, 2)
    assert words in refused.error["message"]
    assert api.get("/v1/tasks")["items"] == []

    answer = api.post("/v1/tasks:bulk", {"tasks": rows, "atomic": False})
    assert [error["index"] for error in answer["errors"]] == [2]
    assert answer["count"] == 3
    assert [task["command"] for task in api.get("/v1/tasks", sort="id")["items"]] == [["a"], ["b"], ["c"]]


def test_unreadable_and_wrong_rows_are_both_named_by_their_places(api: Api) -> None:
    rows = [{"command": 5}, {"command": ["a"]}, {"command": ["b"], "cpus": -1}]

    answer = api.post("/v1/tasks:bulk", {"tasks": rows, "atomic": False})

    assert [(error["index"], error["code"]) for error in answer["errors"]] == [(0, "invalid"), (2, "invalid")]
    assert answer["count"] == 1


def test_more_than_100000_tasks_are_refused_with_nothing_stored(api: Api) -> None:
    body = b'{"tasks":[' + b",".join([b'{"command":["x"]}'] * 100_001) + b"]}"

    assert "at most 100,000" in api.call("POST", "/v1/tasks:bulk", body).error["message"]
    assert api.get("/v1/tasks")["items"] == []


def test_lists_take_filters_and_pages(api: Api) -> None:
    api.post("/v1/tasks:bulk", {"tasks": [{"command": ["x"]}] * 250})
    sizes, cursor = [], ""

    while True:
        found = api.get("/v1/tasks", limit=100, count="true", **({"cursor": cursor} if cursor else {}))
        sizes.append(len(found["items"]))
        if not (cursor := found["next_cursor"]):
            break

    assert sizes == [100, 100, 50]
    assert found["matched"] == 250
    assert [task["id"] for task in api.get("/v1/tasks", filter='id == "1.7"')["items"]] == ["1.7"]


def test_history_is_what_ended_the_latest_first(api: Api, agent: Connect) -> None:
    node = agent()
    first, second, _ = (api.submit("sleep", word) for word in ("one", "two", "three"))
    node.take(3)
    node.end(second)
    node.end(first)

    assert [task["id"] for task in api.get("/v1/history")["items"]] == [first, second]
    assert [task["id"] for task in api.get("/v1/history", grep="sleep two")["items"]] == [second]


def test_a_running_task_is_asked_to_end_and_the_agent_is_told(api: Api, agent: Connect) -> None:
    node = agent()
    task = api.submit("sleep", "999")
    node.take()
    node.start(task)
    api.wait(task, "running")

    answer = api.post("/v1/tasks:cancel", {"ids": [task], "reason": "too slow"})
    node.until(lambda: node.asked)

    assert answer["items"] == [{"id": task, "state": "running"}]
    assert (node.asked[0].action, node.asked[0].why) == ("cancel", "too slow")
    assert api.get(f"/v1/tasks/{task}")["cancel_requested_at"]
    node.end(task, outcome="cancelled", signal=15)
    assert api.wait(task, "cancelled")["signal"] == 15


def test_force_frees_the_room_only_when_the_node_has_confirmed(api: Api, agent: Connect) -> None:
    node = agent(cpus=1.0)
    task = api.submit("sleep", "999")
    node.take()
    node.start(task)
    api.wait(task, "running")

    api.post("/v1/tasks:cancel", {"ids": [task], "force": True})
    after = api.submit()

    assert api.get(f"/v1/tasks/{task}")["reason"] == "forced"
    assert "no node has room" in api.get(f"/v1/tasks/{after}/why")["summary"]
    node.until(lambda: node.asked)
    node.end(task)
    node.take(2)
    assert api.get(f"/v1/tasks/{task}")["state"] == "cancelled"


def test_a_signal_reaches_the_agent(api: Api, agent: Connect) -> None:
    node = agent()
    task = api.submit("sleep", "999")
    node.take()
    node.start(task)
    api.wait(task, "running")

    api.post("/v1/tasks:cancel", {"ids": [task], "signal": "USR1"})
    node.until(lambda: node.asked)

    assert (node.asked[0].action, node.asked[0].signal) == ("signal", 10)
    assert "FOO" in api.call("POST", "/v1/tasks:cancel", {"ids": [task], "signal": "FOO"}).error["message"]


def test_one_bad_id_does_not_stop_the_others(api: Api) -> None:
    task = api.submit()

    answer = api.post("/v1/tasks:cancel", {"ids": ["9.9", task, "1.x"]})

    assert {item["id"]: item.get("code") or item["state"] for item in answer["items"]} == {
        "9.9": "not_found",
        task: "cancelled",
        "1.x": "invalid",
    }
    assert api.call("POST", "/v1/tasks:cancel", {"ids": ["9.9", "8.8"]}).status == 404


def test_hold_release_and_edit(api: Api, agent: Connect) -> None:
    first, second = api.submit(), api.submit()
    api.post("/v1/tasks:hold", {"ids": [first]})
    assert api.get(f"/v1/tasks/{first}/why")["next_command"] == f"geres release {first}"
    api.post("/v1/tasks:edit", {"ids": [second], "priority": 900, "memory_bytes": 1 << 30})
    node = agent()

    assert node.take() == [second]
    assert api.get(f"/v1/tasks/{second}")["priority"] == 900
    api.post("/v1/tasks:release", {"ids": [first]})
    assert node.take(2) == [first, second]


def test_rerun_of_the_failed_tasks_of_a_job_with_changes(api: Api, agent: Connect) -> None:
    node = agent()
    job = api.post("/v1/jobs", {"name": "j"})["id"]
    api.post("/v1/tasks:bulk", {"job": "j", "tasks": [{"command": ["x"]}] * 3})
    good, bad, worse = node.take(3)
    node.end(good)
    node.end(bad, worse, outcome="failed", reason="exit", exit_code=1)

    answer = api.post("/v1/tasks:rerun", {"ids": [job], "failed": True, "changes": {"memory_bytes": 1 << 30}})

    assert [item["id"] for item in answer["items"]] == [bad, worse]
    node.take(5)
    node.end(bad, worse)
    results = api.get(f"/v1/jobs/{job}/results")
    assert [one["finish_no"] for one in results["items"]] == [1, 2, 3, 4, 5]
    assert api.get(f"/v1/tasks/{bad}")["memory_bytes"] == 1 << 30
    assert [one["attempt"] for one in api.get(f"/v1/tasks/{bad}")["attempts"]] == [1, 2]


def test_a_value_is_given_as_it_is_and_missing_until_there_is_one(api: Api, agent: Connect) -> None:
    node = agent()
    task = api.submit()
    assert api.call("GET", f"/v1/tasks/{task}/result").status == 404

    node.take()
    node.end(task, value=b'{"n": 1}')

    assert api.get(f"/v1/tasks/{task}/result") == {"n": 1}


def test_find_says_what_an_id_means(api: Api) -> None:
    job = api.post("/v1/jobs", {"name": "named", "task": {"command": ["x"]}, "array": {"range": "1-9"}})["id"]

    assert api.get("/v1/find", id="named") == {"kind": "job", "job_id": job}
    assert api.get("/v1/find", id=f"{job}.2-3") == {
        "kind": "task",
        "job_id": job,
        "task_ids": [f"{job}.2", f"{job}.3"],
    }
    assert api.call("GET", "/v1/find", id="nobody").status == 404
