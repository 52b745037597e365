"""What tasks ask of a node: cpus, memory, named resources, certain nodes, the whole node."""

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


@pytest.fixture(scope="module")
def cluster(request):
    flags = ("--resource", "disk_io=4", "--label", "site=north", "--name", "node-one")
    with own_cluster(request, cpus=2, flags=flags) as started:
        yield started


def infos(cluster, ids):
    return [shown(cluster, "task", "show", one) for one in ids]


def test_u017_an_exclusive_task_has_the_node_for_itself(cluster, gate):
    plain = submit(cluster, "-c", "0.5", "--", *gate.words)
    wait_for_state(cluster, plain, "running")
    alone = [submit(cluster, "--exclusive", "-c", "0.5", "--", "sleep", "0.1") for _ in range(2)]
    small = submit(cluster, "-c", "0.5", "--", "sleep", "0.1")
    cluster.run("wait", small, check=True)

    assert states(cluster, *alone) == ["queued", "queued"]
    assert "for itself" in cluster.run("why", alone[0], check=True).stdout
    gate.open()
    others = [submit(cluster, "-c", "0.5", "--", "sleep", "0.1") for _ in range(2)]
    cluster.run("wait", plain, *alone, *others, check=True)

    history = {row["id"]: row for row in shown(cluster, "history")}
    for one in alone:
        for other in {plain, small, *alone, *others} - {one}:
            assert most_at_once([history[one], history[other]]) == 1, (one, other)


def test_u018_fractions_of_cpus_share_the_node(cluster, gate):
    half = ("--job", fresh_job(cluster), "-c", "0.5", "--")
    four = [submit(cluster, *half, *gate.words) for _ in range(4)]
    for one in four:
        wait_for_state(cluster, one, "running")

    fifth = submit(cluster, *half, "true")

    [node] = shown(cluster, "nodes")
    assert node["task_count"] == 4
    assert node["free"].get("cpus", 0) == 0
    assert states(cluster, *four, fifth) == ["running"] * 4 + ["queued"]
    assert "cpus" in cluster.run("why", fifth, check=True).stdout
    gate.open()
    cluster.run("wait", fifth, *four, check=True)
    assert most_at_once(infos(cluster, [*four, fifth])) == 4


def test_u018_sizes_have_units_and_are_bytes_inside(cluster):
    task = submit(cluster, "-m", "1.5G", "--hold", "--", "true")

    assert shown(cluster, "task", "show", task)["memory_bytes"] == 1610612736
    for bad in ("1.5Q", "G", "-1G", "lots"):
        refused = cluster.run("submit", "-m", bad, "--", "true")
        assert (refused.returncode, refused.stdout) == (2, "")
        assert "memory" in refused.stderr
    cluster.run("cancel", task, check=True)


def test_u018_a_site_has_defaults_for_what_is_not_said(cluster):
    site = {"GERES_CLIENT__CPUS": "0.25", "GERES_CLIENT__MEMORY_BYTES": "64M"}

    plain = submit(cluster, "--", "true", env=site)
    said = submit(cluster, "-c", "2", "-m", "128M", "--", "true", env=site)

    asked = [(info["cpus"], info["memory_bytes"]) for info in infos(cluster, [plain, said])]
    assert asked == [(0.25, 64 << 20), (2, 128 << 20)]


def test_u018_the_task_is_told_what_it_got(cluster):
    line = "echo $GERES_CPUS $GERES_MEMORY_BYTES"

    told = cluster.run("run", "--shell", "-c", "0.5", "-m", "500M", "--", line, check=True).stdout

    assert told == f"0.5 {500 << 20}\n"


def test_u019_named_resources_are_counted(cluster, gate):
    three = ("--job", fresh_job(cluster), "-c", "0.5", "-r", "disk_io=3", "--")
    first = submit(cluster, *three, *gate.words)
    wait_for_state(cluster, first, "running")
    second = submit(cluster, *three, "true")
    beside = submit(cluster, "-c", "0.5", "-r", "disk_io=1", "--", "true")

    cluster.run("wait", beside, check=True)

    assert states(cluster, second) == ["queued"]
    assert "disk_io" in cluster.run("why", second, check=True).stdout
    gate.open()
    cluster.run("wait", first, second, check=True)
    assert most_at_once(infos(cluster, [first, second])) == 1
    [node] = shown(cluster, "nodes")
    assert node["total"]["resources"] == {"disk_io": 4}
    assert node["free"]["resources"] == {"disk_io": 4}


def test_u019_what_no_node_has_is_told_at_submit(cluster):
    done = cluster.run("submit", "-r", "licence=1", "--", "true", check=True)

    assert "licence" in done.stderr
    assert "no node can ever run this" in done.stderr
    cluster.run("cancel", done.stdout.strip(), check=True)


def test_u019_labels_are_matched(cluster):
    assert cluster.run("run", "--match", 'node.labels.site=="north"', "--", "true").returncode == 0
    south = submit(cluster, "--match", 'node.labels.site=="south"', "--", "true")

    why = shown(cluster, "why", south)

    assert why["satisfiable"] is False
    cluster.run("cancel", south, check=True)


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        (("--nodelist", "node-one"), True),
        (("--nodelist", "x,node-*"), True),
        (("-w", "node-on?"), True),
        (("--nodelist", "node"), False),
        (("--nodelist", "ode-one"), False),
        (("--match", 'node.arch=="x86_64" or node.arch=="aarch64"'), True),
        (("--match", "node.cpus >= 2 and node.memory_bytes > 1000"), True),
        (("--match", 'node.name in ("a", "node-one")'), True),
        (("--match", 'node.arch=="z80"'), False),
        (("--match", "node.cpus > 1000"), False),
        (("--match", "node.resources.disk_io >= 4"), True),
        (("--match", "not node.labels.site"), False),
    ],
)
def test_u020_only_the_nodes_that_are_meant_take_the_task(cluster, words, fits):
    done = cluster.run("submit", *words, "--", "true", check=True)
    task = done.stdout.strip()

    if fits:
        cluster.run("wait", task, check=True)
        assert done.stderr == ""
    else:
        assert "no node can ever run this" in done.stderr
        why = shown(cluster, "why", task)
        assert (why["state"], why["satisfiable"]) == ("queued", False)
        assert words[1] in why["summary"]
        cluster.run("cancel", task, check=True)


def test_u020_an_expression_can_do_nothing_but_compare(cluster):
    for bad in ("__import__('os')", "node.arch.upper() == 'X'", "node.nosuch == 1", "1/0", "[n for n in x]"):
        refused = cluster.run("submit", "--match", bad, "--", "true")
        assert (bad, refused.returncode, refused.stdout) == (bad, 2, "")
        assert "match" in refused.stderr


def test_u020_a_waiting_task_is_freed_by_an_edit(cluster):
    task = submit(cluster, "--match", 'node.arch=="z80"', "--", "true")

    cluster.run("edit", task, "match=", check=True)

    cluster.run("wait", task, check=True)
    eventually(lambda: states(cluster, task), lambda now: now == ["succeeded"])
