"""Many nodes: simulated agents with real connections; `python -m bench fleet` is the same with 10,000."""

from __future__ import annotations

import pytest

from bench.fleet import agents, servers_on
from bench.place import TRUE
from tests.conftest import missing
from tests.postgres import NoPostgres

NODES, TASKS = 300, 6000


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_u150_hundreds_of_nodes_lose_no_task_and_end_none_twice(store):
    try:
        place = servers_on(store, 1)
        with place as (servers, _), agents(servers, NODES):
            client = servers.client()
            assert sum(node.connected for node in client.nodes()) == NODES
            job = client.submit_array(TRUE, range=f"1-{TASKS}")
            job.wait(timeout=120, check=True)
            ended = []
            while len(ended) < TASKS:
                page = client.results_page(job.id, after=len(ended), limit=10_000)
                assert page.items
                ended += page.items
            client.close()
    except NoPostgres as error:
        missing(str(error))

    assert [one.finish_no for one in ended] == list(range(1, TASKS + 1))
    assert len({one.task_id for one in ended}) == TASKS
    assert {one.state for one in ended} == {"succeeded"}
    assert len({one.node for one in ended}) > 1
