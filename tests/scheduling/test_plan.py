"""The plan against a naive version of itself, and against what must never happen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from geres.model.demand import Demand
from geres.scheduling.plan import Placing, Want, plan, reserve
from geres.scheduling.rooms import Facts, Room, empty_room, how_many, why_not

GIB = 1 << 30


def facts(name: str = "n", cpus: float = 4, memory: int = 8, gpus: int = 0, **more: object) -> Facts:
    plain = Facts(
        name, "default", "x86_64", "linux", name, name, int(cpus * 1000), memory * GIB, gpus, (), (), (), 0
    )
    return plain._replace(**more)


def rooms(*cpus: float, memory: int = 8) -> list[Room]:
    return [empty_room(i, facts(f"n{i}", c, memory)) for i, c in enumerate(cpus, 1)]


def wants(*cpus: float, **more: object) -> list[Want]:
    return [Want(i, Demand(cpus_milli=int(c * 1000), **more)) for i, c in enumerate(cpus, 1)]


def naive(asked: list[Want], free: list[Room], placing: Placing) -> list[tuple[int, int]]:
    """Look at every node for every want."""
    sign = 1 if placing == "pack" else -1
    placed = []
    for want in asked:
        fitting = [room for room in free if why_not(want.demand, room) is None]
        if fitting:
            room = min(fitting, key=lambda room: (sign * room.cpus_milli, room.node_id))
            room.take(want.demand)
            placed.append((want.key, room.node_id))
    return placed


demands = st.builds(
    Demand,
    cpus_milli=st.sampled_from([0, 500, 1000, 2000, 4000]),
    memory_bytes=st.sampled_from([0, GIB, 4 * GIB, 8 * GIB]),
    gpus=st.sampled_from([0, 0, 1]),
    counts=st.sampled_from([(), (("disk", 1),), (("disk", 3),)]),
    exclusive=st.sampled_from([False, False, False, True]),
    nodelist=st.sampled_from([(), (), (), ("n2",), ("n[13]",)]),
    see_path=st.just("/data/x"),
    host=st.sampled_from([None, None, "n1", "n2", "elsewhere"]),
)
nodes = st.builds(
    lambda *values: values,
    st.sampled_from([1, 2, 4]),
    st.sampled_from([2, 8]),
    st.sampled_from([0, 1, 2]),
    st.sampled_from([0, 4]),
    st.sampled_from([0, 2]),
    st.sampled_from([(), (), ("/data",)]),
)


def made(picture: list[tuple[int, int, int, int, int, tuple[str, ...]]]) -> list[Room]:
    return [
        empty_room(
            i, facts(f"n{i}", cpus, memory, gpus, counts=(("disk", disk),), slots=slots, shared_paths=paths)
        )
        for i, (cpus, memory, gpus, disk, slots, paths) in enumerate(picture, 1)
    ]


fleets = st.lists(nodes, max_size=6) | st.lists(
    st.sampled_from([(4, 8, 0, 0, 0, ()), (2, 8, 0, 0, 0, ("/data",))]), max_size=12
)


@given(fleets, st.lists(demands, max_size=20), st.sampled_from(["pack", "spread"]))
def test_the_plan_is_the_naive_plan(picture, asked, placing) -> None:
    asked = [Want(i, demand) for i, demand in enumerate(asked)]

    assert plan(asked, made(picture), placing) == naive(asked, made(picture), placing)


@given(st.lists(nodes, max_size=6), st.lists(demands, max_size=20), st.sampled_from(["pack", "spread"]))
def test_no_room_is_ever_overbooked(picture, asked, placing) -> None:
    free = made(picture)
    plan([Want(i, demand) for i, demand in enumerate(asked)], free, placing)

    for room in free:
        assert min(room.cpus_milli, room.memory_bytes, room.gpus, *room.counts.values()) >= 0
        assert not room.facts.slots or room.tasks <= room.facts.slots
        assert not room.exclusive or room.tasks == 1


def test_pack_fills_one_node_and_spread_balances() -> None:
    assert [node for _, node in plan(wants(1, 1, 1, 1), rooms(4, 4), "pack")] == [1, 1, 1, 1]
    assert sorted(node for _, node in plan(wants(1, 1, 1, 1), rooms(4, 4), "spread")) == [1, 1, 2, 2]


def test_a_task_that_fits_nowhere_lets_smaller_ones_pass() -> None:
    assert plan(wants(8, 1), rooms(4)) == [(2, 1)]


def test_a_node_reserved_for_one_task_takes_no_other() -> None:
    [room] = rooms(4)
    room.reserved_for = 99

    assert plan(wants(1), [room]) == []


def test_the_node_to_empty_is_the_one_that_is_nearest_to_empty() -> None:
    busy, quiet, small = rooms(4, 4, 1)
    busy.take(Demand(cpus_milli=2000))
    busy.take(Demand(cpus_milli=1000))
    quiet.take(Demand(cpus_milli=3000))

    assert reserve(Demand(cpus_milli=4000), [busy, quiet, small]) == 2
    assert reserve(Demand(cpus_milli=9000), [busy, quiet, small]) is None


def test_refusals_are_words_a_person_understands() -> None:
    [room] = rooms(2)

    assert why_not(Demand(memory_bytes=9 << 40), room) == ("needs 9.0T of memory, the node has 8.0G", False)
    assert why_not(Demand(match='node.arch == "arm64"'), room) == (
        'does not match node.arch == "arm64"',
        False,
    )
    room.take(Demand(cpus_milli=1500))
    assert why_not(Demand(), room) == ("needs 1 cpus, 0.5 are free", True)
    assert why_not(Demand(cpus_milli=0, exclusive=True), room) == (
        "runs 1 tasks, and this one wants the node for itself",
        True,
    )


def test_a_directory_is_seen_by_its_host_and_through_shared_paths() -> None:
    here = empty_room(1, facts("here", host_id="me"))
    shared = empty_room(2, facts("shared", shared_paths=("/data",)))
    other = empty_room(3, facts("other", shared_paths=("/dat",)))
    demand = Demand(see_path="/data/x", host="me")

    assert [why_not(demand, room) is None for room in (here, shared, other)] == [True, True, False]


def test_how_many_fit_counts_every_resource() -> None:
    [room] = rooms(4, memory=8)

    assert how_many(Demand(cpus_milli=500), room) == 8
    assert how_many(Demand(cpus_milli=500, memory_bytes=3 * GIB), room) == 2
    assert how_many(Demand(exclusive=True), room) == 1
    assert how_many(Demand(gpus=1), room) == 0
