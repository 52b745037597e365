"""Draining, removing, rebooting and reviving nodes, on both databases."""

from __future__ import annotations

import msgspec
import pytest

from geres.errors import Conflict, Invalid
from geres.model.nodes import NodeActed
from geres.model.states import NodeState, TaskState
from geres.model.wire import Hello
from geres.store import node_actions, node_list, nodes
from geres.store.node_actions import Going, Silent
from tests.store.world import LEASE_US, SECOND, World, ended, key


def act(world: World, action: str, *names: str, **how) -> list[NodeActed]:
    function = {"drain": node_actions.drain, "undrain": node_actions.undrain}.get(action, node_actions.leave)
    if function is node_actions.leave:
        how = {"how": action, "running": "wait"} | how
    done = world.db.call(function, world.ann, list(names), why=None, now_us=world.now_us, **how)
    return done.items


def state(world: World, name: str = "n1") -> str:
    return world.row("SELECT state FROM node WHERE name = :name", name=name)["state"]


def going(world: World) -> list[Going]:
    return world.db.call(node_actions.going)


def begin(world: World, node: Going) -> bool:
    return world.db.call(node_actions.begin, node, now_us=world.now_us)


def send_off(world: World, node: Going) -> set[int]:
    return world.db.call(node_actions.send_off, node, now_us=world.now_us).asked_nodes


def silent(world: World, seconds: int = 20, again: int = 30, give_up: int = 3600) -> list[Silent]:
    return world.db.call(
        node_actions.silent,
        silent_us=seconds * SECOND,
        again_us=again * SECOND,
        give_up_us=give_up * SECOND,
        now_us=world.now_us,
    )


def test_a_drained_node_stays_so_over_connections_until_it_is_taken_back(world: World) -> None:
    world.connect()
    assert [(one.state, one.code) for one in act(world, "drain", "n1", "none")] == [
        (NodeState.DRAINING, None),
        (None, "not_found"),
    ]
    assert state(world) == "draining"
    assert world.connect().draining
    act(world, "undrain", "n1")
    assert state(world) == "idle"
    assert not world.connect().draining
    found = world.rows("SELECT why FROM node_event ORDER BY at, why")
    assert sum("by ann" in (row["why"] or "") for row in found) == 2


def test_a_dry_run_changes_nothing(world: World) -> None:
    world.connect()
    assert act(world, "remove", "n1", dry_run=True)[0].state is NodeState.DRAINING
    assert (state(world), going(world)) == ("idle", [])


def test_names_that_cannot_be_are_answered_one_by_one_and_none_is_refused(world: World) -> None:
    assert act(world, "drain", "a\0b", "x" * 5000)[0].code == "not_found"
    with pytest.raises(Invalid, match="names"):
        act(world, "drain")


def test_a_node_is_removed_when_no_task_is_on_it_and_stays_out(world: World) -> None:
    node = world.connect()
    (task,) = world.submit()
    world.assign(node)
    act(world, "remove", "n1")
    assert going(world) == []  # there is nothing to do now

    world.turn(node, 0, ended=[ended(task, 1)])
    (wish,) = going(world)
    assert send_off(world, wish) == set()
    assert begin(world, wish)
    assert not begin(world, wish)
    assert going(world) == []
    assert state(world) == "offline"
    assert world.db.call(node_list.list_nodes, world.ann) == []
    with pytest.raises(Conflict, match="undrain n1"):
        world.connect()
    assert act(world, "drain", "n1")[0].code == "conflict"
    act(world, "undrain", "n1")
    assert not world.connect().draining
    assert len(world.db.call(node_list.list_nodes, world.ann)) == 1


def test_nodes_that_wait_for_long_tasks_do_not_hide_the_others(world: World) -> None:
    for number, running in ((1, "wait"), (2, "requeue"), (3, "wait")):
        node = world.connect(f"n{number}")
        if number < 3:
            world.submit()
            world.assign(node)
        act(world, "remove", f"n{number}", running=running)
    found = world.db.call(node_actions.going, limit=2)
    assert [wish.name for wish in found] == ["n2", "n3"]
    assert not world.db.call(node_actions.begin, found[0], now_us=world.now_us)
    send_off(world, found[0])
    assert [wish.name for wish in going(world)] == ["n3"]  # n2 was told, and its task is on the way out


@pytest.mark.parametrize(
    ("running", "asked", "then"),
    [("requeue", "requeue", TaskState.QUEUED), ("terminate", "cancel", TaskState.CANCELLED)],
)
def test_what_runs_is_asked_to_leave(world: World, running: str, asked: str, then: TaskState) -> None:
    node = world.connect()
    (task,) = world.submit()
    world.assign(node)
    world.turn(node, 0, started=[(key(task), 1)])
    act(world, "remove", "n1", running=running)
    (wish,) = going(world)
    assert send_off(world, wish) == {node.node_id}
    assert world.task(task)["asked"] == asked
    assert send_off(world, wish) == set()  # once is enough

    world.turn(node, 0, ended=[ended(task, 1, "cancelled")])
    assert world.state(task) is then
    assert world.task(task)["retry_count"] == 0
    assert begin(world, wish)


def test_taking_a_node_back_ends_the_wish(world: World) -> None:
    world.connect()
    act(world, "remove", "n1")
    (wish,) = going(world)
    act(world, "undrain", "n1")
    assert not begin(world, wish)
    assert going(world) == []


def hello(name: str, boot_id: str) -> Hello:
    return Hello(1, "0", name, boot_id, "host", name, "x86_64", "linux", 1, "ann", 4.0, 1 << 33)


def connect_after_boot(world: World, boot_id: str) -> nodes.Connected:
    how = {"tenant_id": world.tenant_id, "server_id": 1, "lease_us": LEASE_US, "now_us": world.now_us}
    return world.db.call(nodes.hello, hello("n1", boot_id), **how)


def test_a_rebooted_node_is_taken_back_by_its_next_boot_alone(world: World) -> None:
    connect_after_boot(world, "first")
    act(world, "reboot", "n1")
    (wish,) = going(world)
    assert begin(world, wish)
    assert connect_after_boot(world, "first").draining
    assert not connect_after_boot(world, "second").draining
    assert world.row("SELECT going FROM node")["going"] is None


def test_a_reboot_that_cannot_be_begun_leaves_the_node_drained(world: World) -> None:
    connect_after_boot(world, "first")
    act(world, "reboot", "n1")
    (wish,) = going(world)
    begin(world, wish)
    world.db.call(node_actions.give_up, wish, "no such command", now_us=world.now_us)
    assert (going(world), state(world)) == ([], "draining")
    assert connect_after_boot(world, "second").draining


def kick(world: World, node: Silent) -> int | None:
    return world.db.call(node_actions.note_kick, node, now_us=world.now_us)


def test_a_silent_node_is_kicked_once_per_try_at_growing_intervals(world: World) -> None:
    world.connect()
    world.now_us += LEASE_US + SECOND
    world.lose()
    assert silent(world) == []
    world.now_us += 5 * SECOND
    (found,) = silent(world)
    assert kick(world, found) == 1
    assert kick(world, found) is None  # another server has seen the same
    waits = []
    for number in (2, 3):
        began = world.now_us
        while not silent(world):
            world.now_us += 10 * SECOND
        waits.append((world.now_us - began) // SECOND)
        assert kick(world, silent(world)[0]) == number
    assert waits == [30, 60]

    world.now_us += 3600 * SECOND
    assert silent(world) == []  # given up


def test_nodes_that_were_tried_lately_do_not_hide_the_others(world: World) -> None:
    world.connect("n1")
    world.connect("n2")
    world.now_us += LEASE_US + SECOND
    world.lose()
    world.now_us += 10 * SECOND
    for _ in range(3):
        node = next(node for node in silent(world) if node.name == "n1")
        kick(world, node)
        world.now_us += 125 * SECOND
    kick(world, next(node for node in silent(world) if node.name == "n1"))
    world.now_us += 60 * SECOND
    found = world.db.call(
        node_actions.silent,
        silent_us=20 * SECOND,
        again_us=30 * SECOND,
        give_up_us=3600 * SECOND,
        now_us=world.now_us,
        limit=1,
    )
    assert [node.name for node in found] == ["n2"]


def test_a_node_that_was_heard_again_begins_with_the_first_try(world: World) -> None:
    world.connect()
    world.now_us += LEASE_US + SECOND
    world.lose()
    world.now_us += 10 * SECOND
    kick(world, silent(world)[0])
    world.connect()
    assert silent(world) == []
    world.now_us += 100 * SECOND
    world.lose()
    assert [node.tries for node in silent(world)] == [0]


def test_nodes_that_left_on_purpose_are_left_alone(world: World) -> None:
    node = world.connect()
    world.db.call(nodes.goodbye, node.node_id, node.epoch, now_us=world.now_us)
    world.now_us += 1000 * SECOND
    world.lose()
    assert silent(world) == []


def test_the_login_of_a_node_is_its_label_or_where_it_came_from(world: World) -> None:
    world.connect()
    assert world.db.call(node_list.get, world.ann, "n1").login == "n1"
    how = {"tenant_id": world.tenant_id, "server_id": 1, "lease_us": LEASE_US, "now_us": world.now_us}
    from_address = msgspec.structs.replace(hello("n1", "boot"), address="192.0.2.7")
    world.db.call(nodes.hello, from_address, **how)
    assert world.db.call(node_list.get, world.ann, "n1").login == "192.0.2.7"
    labelled = msgspec.structs.replace(from_address, labels={"ssh": "ops@n1"})
    world.db.call(nodes.hello, labelled, **how)
    assert world.db.call(node_list.get, world.ann, "n1").login == "ops@n1"


@pytest.mark.parametrize(("labels", "last"), [({}, "failed"), ({"class": "spot"}, "queued")])
def test_losses_of_a_spot_node_do_not_count_towards_the_crash_limit(
    world: World, labels: dict[str, str], last: str
) -> None:
    (task,) = world.submit()
    how = {"tenant_id": world.tenant_id, "server_id": 1, "lease_us": LEASE_US}
    for _ in range(3):
        node = world.db.call(
            nodes.hello,
            msgspec.structs.replace(hello("n1", "boot"), labels=labels),
            now_us=world.now_us,
            **how,
        )
        ((started, attempt),) = world.assign(node)
        world.turn(node, 0, started=[(key(started), attempt)])
        world.now_us += 2 * LEASE_US
        world.lose()
    assert world.state(task) == last
    assert world.task(task)["retry_count"] == 0


def test_what_a_private_user_does_not_see(world: World) -> None:
    node = world.connect()
    (task,) = world.submit()
    world.assign(node)
    bob = msgspec.structs.replace(world.bob, private=True)
    assert world.db.call(node_list.get, world.ann, "n1").task_ids == [task]
    assert world.db.call(node_list.get, bob, "n1").task_ids == []
