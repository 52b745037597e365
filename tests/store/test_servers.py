"""Servers' own leases: who is there, whose nodes are held, and which leases go on after an absence."""

from __future__ import annotations

from typing import Any

import msgspec

from geres.model.callers import Caller
from geres.store import nodes, servers
from geres.store.database import Tx
from geres.store.servers import Introduction
from tests.store.world import LEASE_US, SECOND, World


def start(world: World, url: str = "http://a:1") -> Introduction:
    return world.db.call(
        servers.register, Introduction(0, url, "1", world.now_us, f"secret of {url}"), lease_us=LEASE_US
    )


def renew(world: World, me: Introduction, last_us: int | None = None) -> bool:
    last = world.now_us if last_us is None else last_us
    return world.db.call(servers.renew, me, last_us=last, lease_us=LEASE_US, now_us=world.now_us)


def bury(world: World, me: Introduction) -> list[str]:
    return [url for _, url in world.db.call(servers.bury, me.id, now_us=world.now_us)]


def shown(world: World, me: Introduction) -> list[tuple[str, int, bool]]:
    found = world.db.call(servers.list_servers, world.ann, me.id, now_us=world.now_us)
    return [(one.url, one.nodes, one.answers) for one in found]


def hold(world: World, node: nodes.Connected, me: Introduction) -> None:
    world.db.call(
        nodes.renew,
        [(node.node_id, node.epoch)],
        server_id=me.id,
        lease_us=LEASE_US,
        now_us=world.now_us,
    )


def lease_of(world: World, node: nodes.Connected) -> Any:
    return world.row("SELECT lease_until FROM node WHERE id = :id", id=node.node_id)["lease_until"]


def test_a_tenant_counts_its_own_nodes_and_an_admin_all(world: World) -> None:
    a = start(world, "http://a:1")
    hold(world, world.connect(), a)
    olga = Caller(world.tenant_id + 1, "other", "olga", "operator")

    def count(caller: Caller) -> int:
        return world.db.call(servers.list_servers, caller, a.id, now_us=world.now_us)[0].nodes

    other = msgspec.structs.replace(world.ann, tenant_id=world.tenant_id + 1, home="default")
    assert (count(world.ann), count(world.bob), count(olga), count(other)) == (1, 1, 0, 0)


def test_servers_see_each_other_and_their_nodes(world: World) -> None:
    a, b = start(world, "http://a:1"), start(world, "http://b:1")
    node = world.connect()
    hold(world, node, b)

    assert shown(world, a) == [("http://a:1", 0, True), ("http://b:1", 1, False)]
    assert [peer.secret for peer in world.db.call(servers.living, now_us=world.now_us)] == [
        "secret of http://a:1",
        "secret of http://b:1",
    ]


def test_a_server_that_is_gone_is_forgotten_and_holds_nothing(world: World) -> None:
    a, b = start(world, "http://a:1"), start(world, "http://b:1")
    mine, its = world.connect("mine"), world.connect("its")
    hold(world, mine, a)
    hold(world, its, b)
    world.now_us += LEASE_US
    renew(world, a)

    assert bury(world, a) == ["http://b:1"]
    assert bury(world, a) == []
    assert shown(world, a) == [("http://a:1", 1, True)]
    row = world.row("SELECT server_id, epoch FROM node WHERE id = :id", id=its.node_id)
    assert row == {"server_id": None, "epoch": its.epoch}  # its lease goes on; it may be on its way


def test_a_server_of_the_previous_release_is_there_while_its_nodes_are(world: World) -> None:
    """It has no secret, and renews the leases of its nodes but none of its own."""
    a = start(world, "http://a:1")
    older = world.db.call(
        servers.register, Introduction(0, "http://older:1", "0", world.now_us), lease_us=LEASE_US
    )
    node = world.connect()
    hold(world, node, older)
    for _ in range(3):
        world.now_us += LEASE_US - SECOND
        renew(world, a)
        hold(world, node, older)
        assert bury(world, a) == []
    world.now_us += LEASE_US
    renew(world, a)

    assert bury(world, a) == ["http://older:1"]


def test_a_server_that_was_thought_gone_comes_back_with_its_nodes(world: World) -> None:
    a, b = start(world, "http://a:1"), start(world, "http://b:1")
    node = world.connect()
    hold(world, node, b)
    world.now_us += LEASE_US
    renew(world, a)
    bury(world, a)

    renew(world, b, last_us=world.now_us - LEASE_US)
    hold(world, node, b)

    assert shown(world, b) == [("http://a:1", 0, False), ("http://b:1", 1, True)]


def test_a_server_that_stops_holds_nothing_at_once(world: World) -> None:
    a, b = start(world, "http://a:1"), start(world, "http://b:1")
    node = world.connect()
    hold(world, node, b)

    world.db.call(servers.leave, b.id)

    assert shown(world, a) == [("http://a:1", 0, True)]
    assert world.row("SELECT server_id FROM node")["server_id"] is None


def test_the_first_server_of_all_lets_every_lease_go_on_and_a_second_one_does_not(world: World) -> None:
    node = world.connect()
    world.now_us += LEASE_US - SECOND
    a = start(world)
    assert lease_of(world, node) == world.now_us + LEASE_US
    until = lease_of(world, node)
    world.now_us += LEASE_US - SECOND
    renew(world, a)

    start(world, "http://b:1")

    assert lease_of(world, node) == until


def test_after_an_outage_of_the_store_every_lease_goes_on(world: World) -> None:
    a, b = start(world, "http://a:1"), start(world, "http://b:1")
    others = world.connect("others")
    hold(world, others, b)
    last = world.now_us
    world.now_us += 3 * LEASE_US  # nobody could renew anything

    assert renew(world, a, last_us=last)

    assert lease_of(world, others) == world.now_us + LEASE_US
    assert bury(world, a) == []  # nor could the other server
    assert renew(world, b, last_us=last)
    assert world.lose().stale_nodes == []


def test_a_frozen_server_that_comes_back_lets_only_its_own_leases_go_on(world: World) -> None:
    a, b = start(world, "http://a:1"), start(world, "http://b:1")
    mine, lost = world.connect("mine"), world.connect("lost")
    hold(world, mine, a)
    hold(world, lost, b)
    last = world.now_us
    for _ in range(14):
        world.now_us += SECOND
        renew(world, b)

    assert renew(world, a, last_us=last)

    assert lease_of(world, mine) == world.now_us + LEASE_US
    assert lease_of(world, lost) == last + LEASE_US


def test_a_short_pause_changes_no_lease(world: World) -> None:
    a = start(world)
    node = world.connect()
    until = lease_of(world, node)
    world.now_us += LEASE_US // 3

    assert not renew(world, a, last_us=world.now_us - LEASE_US // 3)

    assert lease_of(world, node) == until


def test_the_holder_of_an_attempt_is_found_while_its_server_lives(world: World) -> None:
    b = start(world, "http://b:1")
    world.submit()
    node = world.connect()
    hold(world, node, b)
    world.assign(node)
    key = world.row("SELECT id FROM task")["id"]

    def holder(attempt: int) -> str | None:
        found = world.db.call(servers.holder, key, attempt, now_us=world.now_us)
        return found.url if found else None

    assert holder(1) == "http://b:1"
    assert holder(2) is None
    world.now_us += LEASE_US
    assert holder(1) is None


def test_a_node_that_is_drained_learns_it_with_its_heartbeat(world: World) -> None:
    a = start(world)
    node = world.connect()

    def drain(tx: Tx) -> None:
        tx.raw_run("UPDATE node SET draining = 1", ())

    world.db.call(drain)

    held = world.db.call(
        nodes.renew, [(node.node_id, node.epoch)], server_id=a.id, lease_us=LEASE_US, now_us=world.now_us
    )
    assert held == {node.node_id: True}
