"""Parts are killed at random while tasks run: every task ends, once, with the right output."""

from __future__ import annotations

import os
import random
import time

import pytest

SECONDS = float(os.environ.get("CHAOS_SECONDS", "8"))
PARTS = ("server", "agent", "supervisor")


@pytest.mark.timeout(SECONDS * 4 + 120)
@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_every_task_ends_once_and_right_whatever_is_killed(make_cluster, store):
    seed = int(os.environ.get("CHAOS_SEED", str(random.randrange(10**6))))
    print(f"CHAOS_SEED={seed}")
    dice = random.Random(seed)
    cluster = make_cluster(store=store)
    client = cluster.client()
    job = client.create_job("chaos")
    count = int(SECONDS * 40)
    tasks = client.submit_many(
        [["sh", "-c", f"sleep 0.0{number % 10}; echo {number}"] for number in range(count)], job=job
    )

    killed = []
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        part = dice.choice(PARTS)
        cluster.wait_for(part)
        killed.append(part)
        cluster.kill(part)
        time.sleep(dice.uniform(0, 1.5))  # not a wait for anything: the moment of the next kill
    tasks.wait(timeout=SECONDS * 2 + 60)

    print(f"killed: {killed}")
    job.refresh()
    ends = list(job.results())
    assert job.counts.succeeded == count, job.counts
    assert [end.finish_no for end in ends] == list(range(1, count + 1))
    assert len({end.task_id for end in ends}) == count
    assert [task.stdout() for task in tasks] == [f"{number}\n" for number in range(count)]
    assert client.doctor() == []
