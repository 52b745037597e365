"""Lists of tasks: filters, orders, pages, counts."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from geres.errors import Invalid, NotFound
from geres.model.jobs import ArraySpec
from geres.model.tasks import Task, TaskPage, TaskSpec
from geres.store import task_actions, task_fields, task_list, tasks
from geres.store.task_list import TaskQuery
from tests.store.world import SECOND, World, ended, key


def page(world: World, *, job_id: int | None = None, **query: Any) -> TaskPage:
    return world.db.call(task_list.list_tasks, world.ann, TaskQuery(**query), job_id=job_id)


def listed(world: World, **query: Any) -> list[str]:
    return [task.id for task in page(world, **query).items]


def test_pages_of_100_over_250_do_not_repeat_while_tasks_are_added(world: World) -> None:
    world.submit(250)
    sizes, seen, cursor = [], list[str](), None

    while True:
        found = page(world, limit=100, cursor=cursor)
        sizes.append(len(found.items))
        seen += [task.id for task in found.items]
        world.submit(10)
        if (cursor := found.next_cursor) is None:
            break

    assert sizes == [100, 100, 50]
    assert seen == [f"1.{number}" for number in range(250, 0, -1)]


@pytest.mark.parametrize(
    "sort",
    [
        *("name", "-name", "priority", "-created_at", "exit_code", "-node", "-usage.wall_seconds", "queue"),
        *("cpus", "-memory_bytes"),
    ],
)
def test_every_order_pages_through_everything_once(world: World, sort: str) -> None:
    for number in range(7):
        world.submit(name="ab"[number % 2], priority=number % 3)
        world.now_us += SECOND
    node = world.connect()
    for task, attempt in world.assign(node, 2):
        world.turn(node, 0, ended=[ended(task, attempt)])
    whole = listed(world, sort=sort)
    pages, cursor = list[str](), None

    while True:
        found = page(world, sort=sort, limit=2, cursor=cursor)
        pages += [task.id for task in found.items]
        if (cursor := found.next_cursor) is None:
            break

    assert pages == whole
    assert len(set(whole)) == 7


def test_waiting_tasks_come_in_the_order_in_which_they_will_start(world: World) -> None:
    first, second = world.submit(2)
    [high] = world.submit(priority=900)

    assert listed(world, state="pending") == [high, first, second]


def test_filters_return_exactly_what_matches(world: World) -> None:
    job = world.job(name="other")
    [plain] = world.submit()
    [tagged] = world.submit(meta={"proj": "x"}, name="align", job=job)
    [fails] = world.submit(job=job)
    node = world.connect("big-node")
    started = dict(world.assign(node))
    world.turn(node, 0, ended=[ended(fails, started[fails], "failed", exit_code=7)])

    assert listed(world, filter='meta.proj=="x"') == [tagged]
    assert listed(world, filter="exit_code == 7") == [fails]
    assert listed(world, filter=f'id == "{plain}"') == [plain]
    assert listed(world, filter=f'job == "{job}" and exit_code == None') == [tagged]
    assert listed(world, filter='node == "big-node" and state == "failed"') == [fails]
    assert listed(world, filter='pool == "default" and not meta.proj == "x"') == [plain, fails]
    assert listed(world, state="failed") == [fails]
    assert listed(world, state="on_node", name="align") == [tagged]
    assert listed(world, node="big-node", state="final") == [fails]
    assert listed(world, job_id=int(job)) == [fails, tagged]
    assert listed(world, dead=True) == [fails]
    assert listed(world, user="ann", state="assigned,failed") == [plain, fails, tagged]
    world.add_user("bob")
    assert listed(world, user="bob") == []
    for name in ("user", "node", "pool"):
        with pytest.raises(NotFound, match=f"there is no {name} 'nobody'"):
            listed(world, **{name: "nobody"})
    with pytest.raises(NotFound, match="there is no job 99"):
        listed(world, job_id=99)


def test_grep_looks_into_commands_as_people_see_them(world: World) -> None:
    [odd] = world.submit(name="50%_done")
    spec = TaskSpec(command=["gzip", "-9", "{}"])
    job = world.job(task=spec, array=ArraySpec(items=["a b.txt", 'q"uote']))

    assert listed(world, grep="TRUE") == [odd]
    assert listed(world, grep="gzip -9") == [f"{job}.2", f"{job}.1"]
    assert listed(world, grep="a b.t") == [f"{job}.1"]
    assert listed(world, grep="50%_d") == [odd]
    assert listed(world, grep="5%_d") == []


def test_times_cut_by_creation_and_ended_ones_by_their_end(world: World) -> None:
    [old] = world.submit()
    world.now_us += 100 * SECOND
    [new] = world.submit()
    node = world.connect()
    world.assign(node)
    world.now_us += 100 * SECOND
    world.turn(node, 0, ended=[ended(old, 1, ended_us=world.now_us)])

    assert listed(world, since="1970-01-01T00:17:30Z") == [new]
    assert listed(world, until="1970-01-01T00:17:30Z") == [old]
    assert listed(world, since="1970-01-01T00:19:50Z", state="final") == [old]


def test_matched_counts_what_the_filter_matches_whatever_the_page_holds(world: World) -> None:
    job = world.job()
    world.add_user("bob")
    world.submit(5)
    [held] = world.submit(job=job)
    world.db.call(task_actions.hold, world.ann, [key(held)], now_us=world.now_us)

    for query, matched in (
        ({}, 6),
        ({"state": "queued"}, 5),
        ({"state": "held"}, 1),
        ({"state": "final"}, 0),
        ({"state": "pending"}, 6),
        ({"filter": "priority == 0"}, 6),
        ({"user": "bob"}, 0),
    ):
        found = page(world, limit=1, count=True, **query)
        assert found.matched == matched == len(page(world, limit=100, **query).items), query
    assert page(world, job_id=int(job), count=True).matched == 1
    assert page(world).matched is None


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"state": "runing"}, "state"),
        ({"sort": "colour"}, "sort"),
        ({"limit": 0}, "limit"),
        ({"limit": 10_001}, "limit"),
        ({"cursor": "nonsense"}, "cursor"),
        ({"filter": "nonsense"}, "filter"),
        ({"since": "yesterday-ish"}, "since"),
    ],
)
def test_a_bad_query_names_its_parameter(world: World, query: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        page(world, **query)

    assert caught.value.facts["field"] == field


def test_a_cursor_of_another_order_is_refused(world: World) -> None:
    world.submit(3)
    cursor = page(world, limit=1).next_cursor

    with pytest.raises(Invalid, match="sorted by '-id', not by name"):
        page(world, sort="name", cursor=cursor)


def test_ids_mean_what_they_say(world: World) -> None:
    job = world.job(name="many")
    world.submit(12, job=job)
    [mine] = world.submit(id="mine")

    def keys(ref: str) -> list[str]:
        return [task.id for task in tasks_of(world, ref)]

    assert keys(f"{job}.3-5,11") == [f"{job}.{n}" for n in (3, 4, 5, 11)]
    assert keys(f"{job}.1-12:4") == [f"{job}.{n}" for n in (1, 5, 9)]
    assert keys("many") == keys(job) == [f"{job}.{n}" for n in range(1, 13)]
    assert keys("mine") == [mine]
    assert world.db.call(tasks.find, world.ann, "many").kind == "job"
    assert world.db.call(tasks.find, world.ann, "mine").task_ids == [mine]
    for unknown in ("99", "1.999", "nobody", "99.1-5"):
        with pytest.raises(NotFound):
            world.db.call(tasks.find, world.ann, unknown)
    with pytest.raises(Invalid):
        world.db.call(tasks.find, world.ann, "1.x")


def tasks_of(world: World, ref: str) -> list[Any]:
    found = world.db.call(tasks.keys_of, world.ann, ref)
    return [world.db.call(tasks.get_short, world.ann, one) for one in found]


def test_filters_ask_for_cpus_memory_and_gpus(world: World) -> None:
    [small] = world.submit()
    [large] = world.submit(cpus=2.5, memory_bytes=2 << 30, gpus=1)
    [half] = world.submit(cpus=0.5, memory_bytes=1 << 30)

    assert listed(world, filter="cpus > 2 and memory_bytes > 1e9") == [large]
    assert listed(world, filter='memory_bytes == "1G"') == [half]
    assert listed(world, filter="cpus == 0.5 or gpus == 1") == [half, large]
    assert listed(world, filter="cpus == 1 and memory_bytes == 0", count=True) == [small]
    assert listed(world, sort="-cpus") == [large, small, half]


def test_what_has_no_exit_code_differs_from_none(world: World) -> None:
    node = world.connect()
    [fails, waits] = world.submit(2)
    [(_, attempt)] = world.assign(node, 1)
    world.turn(node, 0, ended=[ended(fails, attempt, "failed", exit_code=7)])

    assert listed(world, filter="exit_code != 0") == [fails]
    assert listed(world, filter="exit_code == None") == [waits]


def test_some_fields_are_those_of_the_whole_task(world: World) -> None:
    node = world.connect()
    ids = world.submit(4, name="x", meta={"a": "b"})
    world.job(task=TaskSpec(shell="echo {}"), array=ArraySpec(items=["p", "q"]))
    for number, (task, attempt) in enumerate(world.assign(node, 3)):
        if number:
            world.turn(node, 0, ended=[ended(task, attempt, "failed")])
    world.db.call(task_actions.cancel, world.ann, [key(ids[3])], now_us=world.now_us)
    names = [field.name for field in msgspec.structs.fields(Task)]
    whole = [msgspec.to_builtins(task) for task in page(world).items]

    for some in (names, [*task_fields._SHOWN], ["state"], ["node"], ["shell", "name"]):
        found = page(world, fields=",".join(some)).items
        assert msgspec.to_builtins(found) == [{name: task[name] for name in some} for task in whole]
    with pytest.raises(Invalid, match="'nope' is no field of a task; there are assigned_at, attempt, "):
        page(world, fields="id,nope")
