"""Several nodes: which of them takes a task."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.acceptance.acts import Gate, another_node, eventually, fresh_job, own_cluster, shown, submit


@pytest.mark.parametrize(("placement", "split"), [("pack", [4]), ("spread", [2, 2])])
def test_u047_one_machine_is_filled_first_or_all_alike(request, tmp_path, placement, split):
    gate = Gate(tmp_path)
    settings = f'[server]\nplacement = "{placement}"\n'
    flags = ("--name", "first")
    with (
        own_cluster(request, cpus=4, flags=flags, settings=settings) as cluster,
        another_node(cluster, "second", "--cpus", "4"),
    ):
        job = fresh_job(cluster)
        ids = [submit(cluster, "--job", job, "--", *gate.words) for _ in range(4)]
        rows = eventually(
            lambda: shown(cluster, "tasks", "--job", job),
            lambda rows: [row["state"] for row in rows] == ["running"] * 4,
        )
        gate.open()
        cluster.run("wait", *ids, check=True)

        assert sorted(Counter(row["node"] for row in rows).values()) == split


def test_u020_the_node_that_is_named_takes_the_task(cluster):
    with another_node(cluster, "special", "--cpus", "1", "--label", "disk=fast"):
        words = ("--nodelist", "special"), ("--nodelist", "sp*"), ("--match", 'node.labels.disk=="fast"')
        ids = [submit(cluster, *one, "--", "true") for one in words]
        cluster.run("wait", *ids, check=True)
        assert {shown(cluster, "task", "show", one)["node"] for one in ids} == {"special"}

    waiting = submit(cluster, "--nodelist", "special", "--", "true")
    assert "no node can ever run" in cluster.run("why", waiting, check=True).stdout
    cluster.run("cancel", waiting, check=True)
