"""The clock of the database is set while real tasks run: no node is lost for it, and one that is gone is."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

import geres
from tests.chaos.fleet import Fleet, until
from tests.conftest import missing
from tests.postgres import NoPostgres

_LEASE_SECONDS = 10.0  #: that a busy machine keeps
_SETTINGS = (3.0, 60.0, -60.0, 3600.0, 0.0, -3600.0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_node_is_lost_and_none_is_kept_because_the_clock_was_set() -> None:
    try:
        fleet = Fleet(random.Random(0), agents=3, lease_seconds=_LEASE_SECONDS)
    except NoPostgres as error:
        missing(str(error))
        raise
    with fleet:
        client = fleet.client()
        seconds = len(_SETTINGS) * _LEASE_SECONDS / 2
        tasks = client.submit_many([["sleep", str(seconds + 2 * _LEASE_SECONDS)]] * 3)
        until(lambda: {client.task_info(one.id).state for one in tasks} == {"running"}, "the tasks to run")
        for ahead in _SETTINGS:
            fleet.set_clock(ahead)
            time.sleep(_LEASE_SECONDS / 2)  # not a wait for anything: the moment of the next one
        tasks.wait(timeout=120)

        ends = [client.task_info(one.id) for one in tasks]
        assert {(end.state, end.attempt, end.requeue_count) for end in ends} == {("succeeded", 1, 0)}

        gone = fleet.agents[0]
        if (supervisor := fleet.supervisor(gone)) is not None:
            os.kill(supervisor, signal.SIGKILL)
        gone.kill()
        fleet.set_clock(-7200.0)
        until(lambda: _states(client)["n0"] == "lost", "the node that is gone")
        assert set(_states(client).values()) == {"lost", "idle"}


def _states(client: geres.Client) -> dict[str, str]:
    return {node.name: node.state for node in client.nodes()}
