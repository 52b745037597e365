"""`why` in every state, in words and in facts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.api.world import Agent, Api

Connect = Callable[..., Agent]


def why(api: Api, what: str) -> Any:
    return api.get(f"/v1/{'tasks' if '.' in what else 'jobs'}/{what}/why")


def test_a_queued_task_names_each_node_and_what_it_lacks(api: Api, agent: Connect) -> None:
    agent("small", memory_bytes=1 << 30)
    agent("large", memory_bytes=8 << 30)

    found = why(api, api.submit(memory_bytes=9 << 40))

    assert found["state"] == "queued"
    assert found["summary"].startswith("queued: no node can ever run it: it needs 9.0T of memory")
    assert found["satisfiable"] is False
    assert {(node["node"], node["ever"]) for node in found["nodes"]} == {("small", False), ("large", False)}
    assert found["next_command"].startswith("geres edit 1.1 memory=")


def test_a_queued_task_waits_for_room(api: Api, agent: Connect) -> None:
    node = agent(cpus=1.0)
    api.submit()
    node.take()
    second, third = api.submit(), api.submit()

    found = why(api, third)

    assert found["summary"] == "queued: no node has room: n1: needs 1 cpus, 0 are free"
    assert found["satisfiable"] is True
    assert "1 tasks like it start first" in found["lines"]
    assert found["next_command"] == "geres tasks --node n1"
    assert why(api, second)["lines"][0].startswith("waits for ")


def test_a_queued_task_without_nodes(api: Api) -> None:
    found = why(api, api.submit(pool="gpu"))

    assert found["summary"] == "queued: no node of pool gpu is connected"


def test_a_capped_task_names_the_cap(api: Api, agent: Connect) -> None:
    node = agent()
    job = api.post("/v1/jobs", {"task": {"command": ["x"]}, "array": {"range": "1-3"}, "max_parallel": 1})[
        "id"
    ]
    node.take()

    assert f"1 of at most 1 tasks of job {job} run already" in why(api, f"{job}.3")["summary"]
    assert [group["text"] for group in why(api, job)["groups"]] == [
        "wait: 1 of at most 1 tasks of job 1 run already",
        "are about to start",
    ]


def test_a_blocked_task_names_what_it_waits_for(api: Api) -> None:
    parents = [api.submit() for _ in range(7)]
    child = api.post("/v1/tasks", {"task": {"command": ["x"]}, "after": parents})["task"]["id"]

    found = why(api, child)

    assert found["summary"] == f"blocked: waits for {', '.join(parents[:5])} and 2 more"
    assert found["next_command"] == f"geres why {parents[0]}"


def test_a_task_that_waits_for_a_time_says_until_when(api: Api) -> None:
    found = why(api, api.submit(not_before="2099-01-01T00:00:00Z"))

    assert "until 2099-01-01T00:00:00.000000Z" in found["summary"]


def test_a_held_task_says_how_to_go_on(api: Api) -> None:
    task = api.submit(hold=True)

    assert why(api, task)["next_command"] == f"geres release {task}"


def test_a_running_task_says_since_when_and_where_against_its_limits(api: Api, agent: Connect) -> None:
    node = agent()
    task = api.submit(time_limit_seconds=3600.0, memory_bytes=1 << 30)
    node.take()
    assert "given to node n1" in why(api, task)["summary"]
    node.start(task)
    api.wait(task, "running")

    found = why(api, task)

    assert found["summary"].startswith("running: on node n1 for ")
    assert any("of its limit of 1h00m" in line for line in found["lines"])
    assert "may use 1.0G of memory" in found["lines"]
    api.post("/v1/tasks:cancel", {"ids": [task]})
    assert any("asked to cancel" in line for line in why(api, task)["lines"])


def test_a_failed_task_shows_exit_use_and_the_end_of_its_stderr(api: Api, agent: Connect) -> None:
    node = agent()
    task = api.submit("sh", memory_bytes=1 << 30)
    node.take()
    stderr = b"".join(b"line %d\n" % number for number in range(30)) + b"bad \xff\n"
    node.end(
        task,
        outcome="failed",
        reason="exit",
        exit_code=3,
        stderr=stderr,
        stderr_bytes=len(stderr),
        usage={"wall_seconds": 2.0, "user_seconds": 1.5, "max_rss_bytes": 512 << 20},
    )

    found = why(api, task)

    assert found["summary"] == "failed: exit 3 on node n1 (attempt 1)"
    assert found["lines"] == ["ran 2.00s, 1.50s of cpu", "peak memory 512M of 1.0G asked for"]
    assert len(found["stderr_tail"]) == 20
    assert found["stderr_tail"][-1].startswith("bad")
    assert found["next_command"] == f"geres logs {task}"


def test_a_task_out_of_memory_says_how_to_run_it_again(api: Api, agent: Connect) -> None:
    node = agent()
    task = api.submit(memory_bytes=1 << 30)
    node.take()
    node.end(task, outcome="failed", reason="out_of_memory", signal=9)

    found = why(api, task)

    assert "took more memory than it asked for" in found["summary"]
    assert found["next_command"] == f"geres rerun {task} memory=2.0G"


def test_a_retry_says_what_went_wrong_and_when_the_next_try_comes(api: Api, agent: Connect) -> None:
    node = agent()
    task = api.submit(retry={"most": 2, "delay_seconds": 60.0})
    node.take()
    node.end(task, outcome="failed", reason="exit", exit_code=1, stderr=b"oops\n", stderr_bytes=5)

    found = why(api, task)

    assert found["state"] == "blocked"
    assert "for try 2; the last one exit 1" in found["summary"]
    assert found["stderr_tail"] == ["oops"]


def test_ended_tasks_of_every_kind_have_an_answer(api: Api, agent: Connect) -> None:
    node = agent()
    good, bad, cancelled = api.submit(), api.submit(), api.submit()
    skipped = api.post("/v1/tasks", {"task": {"command": ["x"]}, "after": [bad]})["task"]["id"]
    node.take(3)
    node.end(good)
    node.end(bad, outcome="failed", reason="not_found", exit_code=127, message="no program sh")
    node.end(cancelled, outcome="cancelled", reason="requested")

    assert why(api, good)["summary"].startswith("succeeded: exit 0 on node n1")
    assert "names a program that is not on the node (no program sh)" in why(api, bad)["summary"]
    assert why(api, cancelled)["summary"] == "cancelled: on request"
    assert (
        f"needed the success of a task that did not succeed: {bad} failed" in (why(api, skipped)["summary"])
    )


def test_a_job_groups_its_tasks(api: Api, agent: Connect) -> None:
    node = agent(cpus=4.0)
    job = api.post("/v1/jobs", {"name": "j"})["id"]
    api.post("/v1/tasks:bulk", {"job": "j", "tasks": [{"command": ["x"]}] * 4})
    api.post("/v1/tasks:bulk", {"job": "j", "tasks": [{"command": ["x"], "memory_bytes": 9 << 40}] * 3})
    first, second, third, fourth = node.take(4)
    node.end(first, second, outcome="failed", reason="exit", exit_code=1)
    node.end(third, outcome="failed", reason="timeout")
    node.start(fourth)
    api.wait(fourth, "running")

    found = why(api, job)

    assert found["summary"] == "active: 3 of 7 tasks have ended"
    groups = {group["text"]: (group["count"], group["example"]) for group in found["groups"]}
    assert groups["failed: exit 1"] == (2, first)
    assert groups["failed: timeout"] == (1, third)
    assert groups["run"] == (1, fourth)
    [never] = [text for text in groups if text.startswith("can never run")]
    assert groups[never] == (3, f"{job}.5")
    assert "9.0T of memory" in never
    assert found["next_command"] == f"geres rerun --failed --job {job}"
