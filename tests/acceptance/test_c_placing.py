"""Choosing what runs where: priorities, slots, memory, caps."""

from __future__ import annotations

import pytest

from tests.acceptance.acts import (
    eventually,
    fresh_job,
    most_at_once,
    own_cluster,
    shown,
    states,
    submit,
    wait_for_state,
)

GIB = 1 << 30


@pytest.fixture(scope="module")
def cluster(request):
    with own_cluster(request, cpus=4, flags=("--memory", "10G")) as started:
        yield started


def fill(cluster, gate):
    """Take the whole node until the gate opens."""
    blocker = submit(cluster, "--job", fresh_job(cluster), "-c", "4", "--", *gate.words)
    wait_for_state(cluster, blocker, "running")
    return blocker


def in_order_of_start(cluster, ids):
    cluster.run("wait", *ids, check=True)
    began = {row["id"]: row["started_at"] for row in shown(cluster, "tasks")}
    return sorted(ids, key=began.__getitem__)


def test_u042_names_of_priorities(cluster, gate):
    fill(cluster, gate)
    ids = {
        name: submit(cluster, "-c", "4", "--priority", name, "--", "true")
        for name in ("low", "normal", "high")
    }
    medium = submit(cluster, "-c", "4", "--priority", "medium", "--", "true")

    given = {row["id"]: row["priority"] for row in shown(cluster, "tasks", "--pending")}
    gate.open()

    assert [given[ids[name]] for name in ("low", "normal", "high")] == [-500, 0, 500]
    assert given[medium] == 0
    order = in_order_of_start(cluster, [*ids.values(), medium])
    assert order == [ids["high"], ids["normal"], medium, ids["low"]]


def test_u042_the_newer_of_equals_waits_for_the_older(cluster, gate):
    fill(cluster, gate)
    ids = [submit(cluster, "-c", "4", "--", "true") for _ in range(3)]

    gate.open()

    assert in_order_of_start(cluster, ids) == ids


def test_u043_numbers_are_changed_while_a_task_waits(cluster, gate):
    fill(cluster, gate)
    ids = [submit(cluster, "-c", "4", "--priority", str(number), "--", "true") for number in (300, -7, 5)]
    pending = cluster.run("tasks", "--pending", "-q", check=True).stdout.split()
    assert pending == [ids[0], ids[2], ids[1]]

    cluster.run("edit", ids[1], "priority=900", check=True)

    assert cluster.run("tasks", "--pending", "-q", check=True).stdout.split() == [ids[1], ids[0], ids[2]]
    gate.open()
    assert in_order_of_start(cluster, ids) == [ids[1], ids[0], ids[2]]


def test_u043_a_priority_has_bounds_and_a_default(cluster):
    for bad in ("1001", "-1001", "urgent", "1.5"):
        refused = cluster.run("submit", "--priority", bad, "--", "true")
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "priority" in refused.stderr
    task = submit(cluster, "--hold", "--", "true", env={"GERES_CLIENT__PRIORITY": "high"})

    assert shown(cluster, "task", "show", task)["priority"] == 500
    assert cluster.run("edit", task, "priority=5000").returncode == 2
    cluster.run("cancel", task, check=True)
    assert cluster.run("edit", task, "priority=1").returncode == 5


def test_u046_a_node_runs_as_many_tasks_as_it_has_cpus(cluster, gate):
    own = ("--job", fresh_job(cluster))
    four = [submit(cluster, *own, "--", *gate.words) for _ in range(4)]
    for one in four:
        wait_for_state(cluster, one, "running")

    fifth = submit(cluster, *own, "--", "true")
    big = submit(cluster, *own, "-c", "3", "--", "true")

    assert states(cluster, *four, fifth, big) == ["running"] * 4 + ["queued"] * 2
    assert shown(cluster, "node", "show", shown(cluster, "nodes")[0]["name"])["task_ids"] == sorted(four)
    gate.open()
    cluster.run("wait", *four, fifth, big, check=True)
    rows = [row for row in shown(cluster, "tasks") if row["id"] in four]
    assert most_at_once(rows) == 4


def test_u046_slots_are_another_bound(make_cluster, gate):
    slotted = make_cluster(cpus=4, flags=("--slots", "2"))
    two = [submit(slotted, "-c", "0.1", "--", *gate.words) for _ in range(2)]
    for one in two:
        wait_for_state(slotted, one, "running")

    third = submit(slotted, "-c", "0.1", "--", "true")

    assert states(slotted, third) == ["queued"]
    assert "slots" in slotted.run("why", third, check=True).stdout
    gate.open()
    slotted.run("wait", *two, third, check=True)


def test_u048_memory_is_kept_for_a_task_until_it_ends(cluster, gate):
    [node] = shown(cluster, "nodes")
    total = node["total"]["memory_bytes"]
    assert total == 10 * GIB
    share = str(total * 6 // 10)
    large = ("--job", fresh_job(cluster), "-m", share, "--")
    first = submit(cluster, *large, *gate.words)
    wait_for_state(cluster, first, "running")
    second = submit(cluster, *large, "true")
    small = submit(cluster, "-c", "1", "-m", "1G", "--", "true")
    cluster.run("wait", small, check=True)

    [node] = shown(cluster, "nodes")
    assert node["free"]["memory_bytes"] == total - total * 6 // 10
    assert states(cluster, second) == ["queued"]
    assert "memory" in cluster.run("why", second, check=True).stdout

    gate.open()
    cluster.run("wait", first, second, check=True)
    rows = [row for row in shown(cluster, "tasks") if row["id"] in (first, second)]
    assert most_at_once(rows) == 1
    [node] = shown(cluster, "nodes")
    assert node["free"]["memory_bytes"] == total
    assert node["free"]["cpus"] == 4


def test_u050_a_job_has_a_cap(cluster, gate):
    cluster.run("job", "create", "capped", "--max-parallel", "2", check=True)
    first = [submit(cluster, "--job", "capped", "-c", "0.1", "--", *gate.words) for _ in range(3)]
    job = first[0].partition(".")[0]
    cluster.client().submit_many([["sleep", "0.05"]] * 7, job=job, cpus=0.1)

    counts = eventually(
        lambda: shown(cluster, "job", "show", job)["counts"], lambda counts: counts.get("running") == 2
    )
    assert counts["queued"] == 8
    cluster.run("run", "-c", "0.1", "--", "true", check=True)  # a turn in which others start
    assert states(cluster, *first) == ["running", "running", "queued"]
    gate.open()
    cluster.run("wait", job, check=True)

    rows = shown(cluster, "tasks", "--job", job)
    assert len(rows) == 10
    assert most_at_once(rows) == 2


def test_u050_a_cap_is_told_and_changed(cluster, gate):
    cluster.run("job", "create", "recapped", "--max-parallel", "1", check=True)
    ids = [submit(cluster, "--job", "recapped", "-c", "0.1", "--", *gate.words) for _ in range(3)]
    eventually(lambda: sorted(states(cluster, *ids)), lambda now: now == ["queued", "queued", "running"])
    waiting = next(one for one in ids if states(cluster, one) == ["queued"])

    assert "1 of at most 1" in cluster.run("why", waiting, check=True).stdout
    cluster.run("job", "edit", "recapped", "--max-parallel", "2", check=True)
    eventually(lambda: sorted(states(cluster, *ids)), lambda now: now == ["queued", "running", "running"])
    cluster.run("job", "edit", "recapped", "--max-parallel", "0", check=True)
    eventually(lambda: states(cluster, *ids), lambda now: now == ["running"] * 3)

    gate.open()
    cluster.run("wait", *ids, check=True)


def test_u050_a_label_has_a_cap_across_jobs(cluster, gate):
    cluster.run("job", "create", "other", check=True)
    words = ("-c", "0.1", "--label", "licence=2")
    ids = [submit(cluster, *words, "--", *gate.words) for _ in range(2)]
    ids += [submit(cluster, "--job", "other", *words, "--", *gate.words) for _ in range(2)]
    free = submit(cluster, "-c", "0.1", "--", "true")
    cluster.run("wait", free, check=True)
    eventually(lambda: states(cluster, *ids).count("running"), lambda now: now == 2)
    waiting = next(one for one in ids if states(cluster, one) == ["queued"])

    assert "licence" in cluster.run("why", waiting, check=True).stdout
    gate.open()
    cluster.run("wait", *ids, check=True)
    rows = [row for row in shown(cluster, "tasks") if row["id"] in ids]
    assert most_at_once(rows) == 2
    assert cluster.run("submit", "--label", "licence", "--", "true").returncode == 2
