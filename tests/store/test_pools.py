"""Pools and the start tasks of their nodes, on both databases."""

from __future__ import annotations

import msgspec
import pytest

from geres.errors import Changed, Denied, Invalid, NotFound
from geres.model.callers import Caller
from geres.model.pools import Pool, PoolPatch, SetStartTask, StartTask
from geres.model.wire import StartReport
from geres.store import dispatching, doctor, node_actions, node_list, nodes, pools
from tests.store.world import LEASE_US, World

TOUCH = StartTask(command=["touch", "x"], env={"KEY": "secret"})


def set_start(world: World, start: StartTask | None = TOUCH, name: str = "default", **how) -> Pool:
    given = None if start is None else SetStartTask(**msgspec.structs.asdict(start))
    changes = PoolPatch(start_task=given, **{k: how.pop(k) for k in ("create", "dry_run") if k in how})
    how = {"version": None, "now_us": world.now_us} | how
    return world.db.call(pools.patch, how.pop("caller", world.ann), name, changes, **how)


def connect(world: World, *report: str, **facts) -> nodes.Connected:
    """A node that has come so far with its start task; `touch` stands for the digest of TOUCH."""
    digest = pools.order_of(TOUCH).digest
    report = tuple(digest if word == "touch" else word for word in report)
    return world.connect(start=StartReport(*report), **facts)


def note(world: World, node: nodes.Connected, state: str, why: str = "", tail: str = "") -> None:
    said = StartReport(pools.order_of(TOUCH).digest, state, why, tail)
    world.now_us += 1
    world.db.call(pools.note_start, node.node_id, node.epoch, said, now_us=world.now_us)


def shown(world: World) -> tuple[str, str | None]:
    node = world.db.call(node_list.get, world.ann, "n1")
    return node.state.value, node.reason


def history(world: World) -> list[tuple[str, str]]:
    node = world.db.call(node_list.get, world.ann, "n1")
    return [(change.state.value, change.why or "") for change in node.history]


def act(world: World, action: str) -> None:
    function = {"drain": node_actions.drain, "undrain": node_actions.undrain}[action]
    world.db.call(function, world.ann, ["n1"], why=None, now_us=world.now_us)


def test_only_operators_set_what_runs_as_the_agents_account(world: World) -> None:
    with pytest.raises(Denied, match="operator"):
        set_start(world, caller=world.bob)
    assert world.db.call(pools.get, world.ann, "default").start_task is None

    operator = Caller(world.tenant_id, "default", "ops", "operator")
    assert set_start(world, caller=operator).start_task == TOUCH
    (entry,) = world.rows("SELECT subject, target, facts FROM audit WHERE action = 'pool.set'")
    assert (entry["subject"], entry["target"]) == ("ops", "default")
    assert msgspec.json.decode(entry["facts"])["start_task"]["env"] == ["KEY"]


@pytest.mark.parametrize(
    ("start", "field"),
    [
        (StartTask(), "start_task.command"),
        (StartTask(command=["a"], shell="b"), "start_task.shell"),
        (StartTask(shell="sleep 1 &"), "start_task.shell"),
        (StartTask(command=["a"], retries=-1), "start_task.retries"),
        (StartTask(command=["a"], time_limit_seconds=0), "start_task.time_limit_seconds"),
        (StartTask(command=["a"], time_limit_seconds=float("nan")), "start_task.time_limit_seconds"),
        (StartTask(command=["a"], env={"A=B": "c"}), "start_task.env"),
    ],
)
def test_what_no_node_could_run_is_refused(world: World, start: StartTask, field: str) -> None:
    with pytest.raises(Invalid, match=field):
        set_start(world, start)
    assert world.db.call(pools.get, world.ann, "default").version == 1


def test_a_pool_is_edited_by_version_made_on_request_and_kept_with_what_is_newer(world: World) -> None:
    assert set_start(world, version=1).version == 2
    with pytest.raises(Changed):
        set_start(world, None, version=1)
    with pytest.raises(NotFound, match="default"):
        set_start(world, name="defolt")
    assert set_start(world, name="gpu", create=True, dry_run=True).start_task == TOUCH
    assert [pool.name for pool in world.db.call(pools.list_pools, world.ann)] == ["default"]
    set_start(world, name="gpu", create=True)
    assert world.db.call(pools.get, world.ann, "gpu").start_task == TOUCH

    newer = '{"start_task": {"command": ["a"], "colour": "red"}, "scale": {"most": 9}}'
    world.db.call(lambda tx: tx.run("edit_pool", pool_id=1, settings=newer))
    assert world.db.call(pools.get, world.ann, "default").start_task == StartTask(command=["a"])
    set_start(world, None)
    assert world.row("SELECT settings FROM pool WHERE id = 1")["settings"] == (
        '{"start_task":null,"scale":{"most":9}}'
    )
    assert world.db.call(pools.get, world.ann, "default").start_task is None


def test_a_node_is_starting_until_its_start_task_succeeded_and_says_so(world: World) -> None:
    set_start(world)
    node = connect(world)
    assert node.start.order is not None
    assert node.start.order.argv == ["touch", "x"]
    assert shown(world) == ("starting", "its start task runs")
    note(world, node, "done", tail="hello\n")
    note(world, node, "done", tail="hello\n")
    assert shown(world) == ("idle", None)
    assert history(world) == [
        ("starting", "connected from n1; its start task runs"),
        ("idle", "its start task succeeded; it wrote: hello"),
    ]
    assert connect(world, "touch", "done").start.state is None
    assert shown(world)[0] == "idle"


def test_an_agent_that_knows_no_start_tasks_takes_tasks_at_once(world: World) -> None:
    set_start(world)
    assert world.connect().start.order is None
    assert shown(world) == ("idle", None)


def test_one_that_fails_keeps_the_node_out_of_service_with_its_reason(world: World) -> None:
    set_start(world)
    node = connect(world)
    why = "exit 1, after 3 tries"
    note(world, node, "failed", why, "a\0b" + "x" * 5000)
    assert shown(world) == ("start_failed", f"its start task failed: {why}")
    assert len(history(world)[-1][1]) < 1200
    (found,) = [one for one in world.db.call(doctor.findings, now_us=world.now_us) if one.kind == "node"]
    assert (found.id, why in found.text) == ("n1", True)

    assert connect(world, "touch", "failed", why).start.state == "start_failed"
    assert connect(world, "touch", "running").start.state == "starting"
    assert shown(world)[0] == "starting"  # its agent was started again


def test_another_version_of_it_runs_again_and_none_does_not(world: World) -> None:
    set_start(world)
    assert connect(world, "touch", "done").start.state is None
    set_start(world, StartTask(command=["touch", "y"]))
    assert connect(world, "touch", "done").start.state == "starting"
    set_start(world, None)
    assert connect(world, "touch", "failed", "exit 1").start.order is None
    assert shown(world)[0] == "idle"


def test_what_an_earlier_connection_says_does_not_count(world: World) -> None:
    set_start(world)
    before = connect(world)
    connect(world, "touch", "running")
    note(world, before, "done")
    assert shown(world)[0] == "starting"


def test_a_node_that_is_drained_while_it_starts_is_drained_afterwards(world: World) -> None:
    set_start(world)
    node = connect(world)
    act(world, "drain")
    assert shown(world)[0] == "starting"
    note(world, node, "done")
    assert shown(world)[0] == "draining"

    node = connect(world)
    act(world, "undrain")
    assert shown(world)[0] == "starting"
    note(world, node, "done")
    assert shown(world)[0] == "idle"


def test_its_tasks_stay_with_a_node_that_starts_again(world: World) -> None:
    set_start(world)
    node = connect(world, "touch", "done")
    (task,) = world.submit()
    ((_, attempt),) = world.assign(node)
    set_start(world, StartTask(shell="true"))
    key = world.task(task)["id"]
    again = connect(world, "touch", "done", has=[(key, attempt)], running=[(key, attempt)])
    assert (again.start.state, [held.id for held in again.held], again.kill) == ("starting", [key], [])
    note(world, again, "done")
    assert shown(world)[0] == "running"


def test_a_node_whose_start_task_failed_is_lost_like_others(world: World) -> None:
    set_start(world)
    note(world, connect(world), "failed", "exit 1")
    world.now_us += LEASE_US + 1
    world.lose()
    assert shown(world) == ("lost", None)


def test_it_runs_again_after_a_reboot(world: World) -> None:
    set_start(world)
    connect(world, "touch", "done")
    how = {"why": None, "now_us": world.now_us, "how": "reboot", "running": "wait"}
    world.db.call(node_actions.leave, world.ann, ["n1"], **how)
    (wish,) = world.db.call(node_actions.going)
    assert world.db.call(node_actions.begin, wish, now_us=world.now_us)
    world.now_us += 1
    node = connect(world, boot_id="the next")
    assert (node.draining, shown(world)[0]) == (False, "starting")
    note(world, node, "done")
    assert [state for state, _ in history(world)][-2:] == ["starting", "idle"]


def test_other_servers_know_that_it_takes_nothing(world: World) -> None:
    set_start(world)
    node = connect(world)
    (far,) = world.db.call(dispatching.far_nodes, 2)
    assert far.out_of_service == "its start task runs"
    note(world, node, "done")
    (far,) = world.db.call(dispatching.far_nodes, 2)
    assert far.out_of_service is None
