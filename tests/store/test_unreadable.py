"""Records that cannot be read are found while a server runs, and set aside when one starts."""

from __future__ import annotations

import pytest

from geres.model.jobs import ArraySpec
from geres.model.states import Reason, TaskState
from geres.model.tasks import TaskSpec
from geres.store import arrays, doctor, unreadable
from geres.store.database import batch
from tests.store.world import World, key


def spoil(world: World, statement: str, value: str) -> None:
    world.db.call(lambda tx: tx.raw_run(statement, (value,)))


def found(world: World):
    findings = world.db.call(doctor.findings, now_us=world.now_us)
    return [(one.kind, one.text) for one in findings if one.kind != "pool"]  # there is no node


@pytest.mark.parametrize("value", ['{"cpus": "many"}', "[1]", "{", '{"env": {"A": 1}}', "null"])
def test_a_specification_of_another_shape_is_found_and_then_set_aside(world: World, value: str) -> None:
    [good] = world.submit()
    [bad] = world.submit(meta={"a": "b"})
    assert found(world) == []
    spec = world.task(bad)["spec_id"]
    spoil(world, f"UPDATE spec SET body = ? WHERE id = {spec}", value)

    [(kind, text)] = found(world)
    told = world.db.call(unreadable.set_aside, now_us=world.now_us)

    assert (kind, f"specification {spec} of job 1 cannot be read" in text) == ("unreadable", True)
    assert len(told) == 1
    assert world.task(bad)["reason"] == Reason.INTERNAL
    assert world.state(good) is TaskState.QUEUED
    assert [kind for kind, _ in found(world)] == ["quarantine"]
    assert world.db.call(unreadable.set_aside, now_us=world.now_us) == []


@pytest.mark.parametrize(
    ("statement", "value", "about"),
    [
        ("UPDATE spec SET meta = ?", '{"a": 1}', "specification"),
        ("UPDATE resource_class SET body = ?", '{"memory_bytes": "x"}', "class"),
        ("UPDATE job SET spec = ?", '{"priority": "high"}', "job 1"),
        ("UPDATE job SET meta = ?", '["a"]', "job 1"),
        ("UPDATE task SET argv = ?", "[1, 2]", "task 1.1"),
    ],
)
def test_every_kind_of_record_is_looked_at(world: World, statement: str, value: str, about: str) -> None:
    world.submit()
    spoil(world, statement, value)

    [(kind, text)] = found(world)

    assert kind == "unreadable"
    assert about in text
    assert len(world.db.call(unreadable.set_aside, now_us=world.now_us)) == 1
    assert found(world)[0][0] == "quarantine"


def test_tasks_of_an_array_have_nothing_to_be_read(world: World) -> None:
    job = world.job(array=ArraySpec(range="1-3"), task=TaskSpec(command=["true"]))
    world.db.call(arrays.unfold, int(job), now_us=world.now_us)
    assert world.db.call(unreadable.set_aside, now_us=world.now_us) == []
    assert {world.state(f"{job}.{number}") for number in (1, 2, 3)} == {TaskState.QUEUED}


def test_what_a_task_that_has_ended_ran_may_be_unreadable(world: World) -> None:
    [task] = world.submit()
    node = world.connect()
    world.assign(node)
    world.db.call(lambda tx: tx.run("end_tasks", batch=_ended(key(task)), now_us=world.now_us))
    spoil(world, "UPDATE task SET argv = ?", "{")

    assert found(world) == []


def _ended(task: int) -> str:
    return batch([(task, "succeeded", None, None, 0, None, 1, 2)])
