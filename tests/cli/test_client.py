"""The client against a real cluster: submit, wait, results, arrays, groups, actions."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest

import geres
from geres.errors import Conflict, Invalid, NotFound, TaskFailed, TimedOut
from geres.model.states import JobState, Reason, TaskState

_names = (f"job-{number}" for number in itertools.count())


def test_a_task_runs_and_tells_how_it_ended(client):
    task = client.submit(["sh", "-c", "echo out; echo err >&2; exit 3"], name="n", meta={"a": "b"})
    assert task.wait(timeout=20) is task
    assert (task.state, task.reason, task.exit_code, task.done()) == (TaskState.FAILED, Reason.EXIT, 3, True)
    assert (task.stdout(), task.stderr()) == ("out\n", "err\n")
    assert (task.name, task.attempt, task.info.meta) == ("n", 1, {"a": "b"})
    assert task.usage.wall_seconds >= 0
    with pytest.raises(TaskFailed, match=r"exit 3; `geres why") as failed:
        task.result()
    assert failed.value.facts["exit_code"] == 3


def test_a_shell_line_is_expanded_and_an_argv_is_not(client):
    assert client.submit(shell="echo $((1+1)) | cat").wait(20).stdout() == "2\n"
    assert client.submit(["echo", "$HOME"]).wait(20).stdout() == "$HOME\n"


def test_a_command_leaves_no_value(client):
    assert client.submit(["true"]).result(timeout=20) is None


def test_waiting_has_an_end(client, blocker):
    with pytest.raises(TimedOut, match=r"is still running after 0\.1 s"):
        blocker.wait(timeout=0.1)
    queued = client.submit_many([["true"]] * 10)
    with pytest.raises(TimedOut):
        queued.wait(timeout=0.1)
    with pytest.raises(TimedOut):
        client.wait(list(queued), timeout=0.1)
    queued.cancel()


def test_bad_input_never_leaves_the_client(client):
    before = next(client.task_pages(count=True, limit=1)).matched
    for bad in ({"cpus": -1}, {"memory": "2Q"}, {"mem": "2G"}):
        with pytest.raises(Invalid):
            client.submit(["true"], **bad)
    with pytest.raises(Invalid, match=r"tasks\[2\]\.command"):
        client.submit_many([["a"], ["b"], []])
    assert next(client.task_pages(count=True, limit=1)).matched == before


def test_options_are_defaults_of_a_client_of_its_own(client):
    small = client.options(cpus=0.5, meta={"from": "options"})
    task = small.submit(["true"], priority="low")
    assert (task.info.cpus, task.info.priority, task.info.meta) == (0.5, -500, {"from": "options"})
    assert client.submit(["true"]).info.cpus == 1
    with pytest.raises(Invalid, match="did you mean 'memory'"):
        client.options(memry="2G")


def test_an_own_id_is_taken_while_its_task_lives(client):
    first = client.submit(["sleep", "600"], id="only-one")
    with pytest.raises(Conflict, match=first.id):
        client.submit(["true"], id="only-one")
    assert client.submit(["true"], id="only-one", if_exists="attach").id == first.id
    assert client.task("only-one").id == first.id
    first.cancel().wait(20)
    second = client.submit(["true"], id="only-one")
    assert second.id != first.id


def test_many_tasks_come_back_in_the_order_given(client):
    seen = []
    tasks = client.submit_many(
        [["echo", "0"], {"command": ["echo", "1"], "name": "x"}, {"shell": "exit 2"}],
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (len(tasks), seen) == (3, [(3, 3)])
    assert tasks.wait(timeout=20) is tasks
    assert [task.stdout() for task in tasks] == ["0\n", "1\n", ""]
    assert tasks[1].name == "x"
    assert [task.id for task in tasks] == list(tasks.ids())
    assert tasks[-1].exit_code == 2
    with pytest.raises(TaskFailed, match=r"1 of 3 tasks did not succeed, the first: task .*: exit 2"):
        tasks.wait(timeout=20, check=True)
    with pytest.raises(IndexError):
        tasks[3]


def test_more_tasks_than_a_piece_are_numbered_in_order(client):
    job = client.create_job(next(_names))
    job.disable()
    tasks = client.submit_many([["echo", str(number)] for number in range(25_000)], job=job)
    assert len(tasks) == 25_000
    assert tasks[0].id == f"{job.id}.1"
    assert [tasks[place].info.command for place in (9_999, 10_000, 24_999)] == [
        ["echo", "9999"],
        ["echo", "10000"],
        ["echo", "24999"],
    ]
    job.cancel()


def test_ends_come_once_each_as_they_happen(client):
    tasks = client.submit_many([["sh", "-c", f"exit {code}"] for code in range(5)])
    ended = {task.id: task for task in tasks.as_ended(timeout=20)}
    assert [ended[one].exit_code for one in tasks.ids()] == [0, 1, 2, 3, 4]


def test_an_array_is_a_job_with_a_task_for_each_item(client):
    job = client.submit_array(["sh", "-c", "echo $0 {index}", "{}"], items=["a b", "c"], max_parallel=1)
    ended = {task.item: task for task in job.as_ended(timeout=20)}
    assert {item: task.stdout() for item, task in ended.items()} == {"a b": "a b 1\n", "c": "c 2\n"}
    assert job.wait(timeout=20, check=True).counts.succeeded == 2
    assert job.outcome == "ok"


def test_a_results_stream_goes_on_after_a_number_and_a_rerun_comes_again(client):
    job = client.submit_array(["sh", "-c", "test {index} != 2"], range="1-3")
    job.wait(timeout=20)
    first = list(job.results())
    assert [end.finish_no for end in first] == [1, 2, 3]
    assert [end.finish_no for end in job.results(after=2)] == [3]
    with pytest.raises(TaskFailed, match=f"task {job.id}.2 failed: exit 1"):
        job.wait(timeout=20, check=True)
    acted = job.rerun(failed=True, memory="64M")
    assert [one.id for one in acted if not one.code] == [f"{job.id}.2"]
    again = list(job.as_ended(after=3, timeout=20))
    assert [(task.id, task.attempt) for task in again] == [(f"{job.id}.2", 2)]
    assert client.task(f"{job.id}.2").info.memory_bytes == 64 << 20


def test_a_task_waits_for_others(client, blocker):
    parent = client.submit(["true"])
    group = client.submit_many([["true"], ["true"]])
    child = client.submit(["echo", "late"], after=[parent, *group])
    assert child.state is TaskState.BLOCKED
    blocker.cancel()
    assert child.wait(timeout=20, check=True).stdout() == "late\n"
    assert parent.done()


def test_wait_takes_ids_names_jobs_and_handles_in_one_call(client):
    job = client.submit_array(["true"], range="1-4")
    named = client.submit(["false"], id="named-one")
    ended = client.wait([f"{job.id}.2-3", "named-one", job], timeout=20)
    assert [one.id for one in ended] == [f"{job.id}.2", f"{job.id}.3", named.id, job.id]
    with pytest.raises(NotFound, match="no-such-thing"):
        client.wait("no-such-thing")
    with pytest.raises(NotFound):
        client.wait("99999.1")
    with pytest.raises(Invalid, match="in quotes"):
        client.wait([1.7])


def test_wait_any_returns_those_that_have_ended(client):
    slow, quick = client.submit(["sleep", "600"]), client.submit(["true"])
    assert [task.id for task in client.wait([slow, quick], any=True, timeout=20)] == [quick.id]
    slow.cancel().wait(20)


def test_waiting_for_many_asks_for_the_stream_and_not_for_each_task(client, monkeypatch):
    tasks = client.submit_many([["true"]] * 300)
    asked = []
    call = client.transport.call

    def counted(method, path, *args, **kwargs):
        asked.append(path)
        return call(method, path, *args, **kwargs)

    monkeypatch.setattr(client.transport, "call", counted)
    assert len(client.wait(list(tasks), timeout=60)) == 300
    assert not [path for path in asked if path.startswith("/v1/tasks/")]
    assert len(asked) < 150


class Watched(geres.Client):
    """Tells when it waits for results."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__(url, token)
        self.waits = threading.Event()

    def results_page(self, *args: Any, **query: Any) -> Any:
        self.waits.set()
        return super().results_page(*args, **query)


def test_waiting_for_a_job_is_about_the_tasks_it_has_now(client, cluster, tmp_path):
    job = client.create_job(next(_names))
    job.submit(shell=f"until [ -e {tmp_path / 'go'} ]; do sleep 0.02; done")
    watched = Watched(cluster.url, cluster.token)
    waited = threading.Thread(target=watched.job(job.id).wait, kwargs={"timeout": 20})
    waited.start()
    assert watched.waits.wait(20)  # it knows by now which tasks there are

    late = job.submit(["sleep", "600"], hold=True)
    (tmp_path / "go").touch()

    waited.join(20)
    assert not waited.is_alive()
    assert late.state is TaskState.HELD
    watched.close()
    job.cancel()


def test_hold_release_edit_and_cancel(client, blocker):
    task = client.submit(["true"], hold=True)
    assert task.state is TaskState.HELD
    assert task.release().state is TaskState.QUEUED
    assert task.hold().state is TaskState.HELD
    task.edit(memory="2G", cpus=0.5, priority="high", retries=2)
    info = task.refresh().info
    assert (info.memory_bytes, info.cpus, info.priority, info.spec.retry.most) == (2 << 30, 0.5, 500, 2)
    with pytest.raises(Invalid, match="edit"):
        task.edit(shell="x")
    task.cancel(reason="enough")
    assert task.wait(20).state is TaskState.CANCELLED
    with pytest.raises(Conflict):
        task.hold()
    assert task.rerun().state in (TaskState.HELD, TaskState.QUEUED)
    task.cancel().wait(20)


def test_one_bad_id_does_not_stop_the_others(client, blocker):
    task = client.submit(["true"])
    acted = client.cancel("1.999999", task)
    assert [(one.id, one.code) for one in acted] == [("1.999999", "not_found"), (task.id, None)]


def test_jobs_are_made_closed_disabled_and_cancelled(client):
    job = client.create_job(next(_names), priority="high", max_parallel=3, meta={"x": "y"}, time_limit="1h")
    assert (job.info.priority, job.info.max_parallel, job.info.time_limit_seconds) == (500, 3, 3600)
    assert client.job(job.name).id == job.id
    assert job.disable().state is JobState.DISABLED
    task = job.submit(["true"])
    assert job.enable().state is JobState.ACTIVE
    task.wait(timeout=20)
    assert job.close().state in (JobState.CLOSING, JobState.COMPLETED)
    with pytest.raises(Conflict):
        job.submit(["true"])
    with pytest.raises(Conflict):
        client.job("default").cancel()
    with pytest.raises(NotFound):
        client.job("no-such-job")


def test_a_job_is_edited_unless_somebody_else_did_meanwhile(client):
    from geres.model.jobs import JobPatch

    job = client.create_job(next(_names))
    assert client.edit_job(job.id, JobPatch(priority=7, max_parallel=2)).priority == 7
    assert client.job_info(job.id).max_parallel == 2


def test_lists_page_without_repeats(client):
    job = client.create_job(next(_names))
    job.disable()
    client.submit_many([["true"]] * 250, job=job)
    pages = list(client.task_pages(job=job.id, limit=100, count=True))
    assert [len(page.items) for page in pages] == [100, 100, 50]
    assert pages[0].matched == 250
    numbers = [task.number for page in pages for task in page.items]
    assert numbers == sorted(set(numbers), reverse=True)
    assert len(list(job.tasks(state="queued"))) == 250
    assert job.id in {one.id for one in client.jobs(state="disabled")}
    job.cancel()


def test_why_tells_of_tasks_and_jobs(client):
    job = client.submit_array(["sh", "-c", "echo bad >&2; exit 3"], range="1-2")
    job.wait(timeout=20)
    assert "exit 3" in client.why(f"{job.id}.1").summary
    assert client.why(f"{job.id}.1").stderr_tail == ["bad"]
    assert sum(group.count for group in client.why(job).groups) == 2


def test_the_rest_of_the_questions_have_answers(client):
    assert client.whoami().role == "admin"
    assert client.summary().nodes
    (node,) = client.nodes()
    assert client.node(node.name).total == node.total
    assert client.doctor() == []
    dry = client.dry_run(["true"], memory="9000T")
    assert dry.spec.memory_bytes == 9000 << 40
    assert client.find("default").kind == "job"


def test_threads_share_a_client(client):
    results = []

    def work() -> None:
        results.append(client.submit(["true"]).wait(timeout=30).exit_code)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0] * 8
