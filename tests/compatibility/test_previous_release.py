"""Neighbouring releases work together: agents with servers, agents with supervisors, servers on one database.

The previous release is the commit in the file `previous-release`, taken out of the history.
"""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
from pathlib import Path

import pytest

from tests.acceptance.acts import Gate, eventually
from tests.cluster import free_port
from tests.compatibility.releases import NoHistory, World, current, previous
from tests.conftest import missing


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    try:
        before = previous(tmp_path_factory.mktemp("previous"))
    except NoHistory as error:
        missing(str(error))
        raise
    return {"current": current(), "previous": before}


@pytest.fixture
def make_world():
    """Call it for a World, with the URL of a PostgreSQL database or on SQLite; closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(store=None):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="geres-test-"))
            return stack.enter_context(contextlib.closing(World(Path(folder), store)))

        yield make


@pytest.fixture
def gate(tmp_path):
    made = Gate(tmp_path)
    yield made
    made.open()


@pytest.fixture(params=["sqlite", "postgres"])
def world(request, make_world):
    store = request.getfixturevalue("fresh_postgres")() if request.param == "postgres" else None
    return make_world(store)


def wait_running(task):
    """Wait until it runs; the attempt, which need not be the first: a busy node may give one back."""
    eventually(lambda: task.refresh().state.value, lambda state: state == "running")
    return task.refresh().attempt


def ends(client, job):
    """Task number to its accepted results; the stream has no gap."""
    page = client.results_page(job, after=0, limit=10_000)
    assert [one.finish_no for one in page.items] == list(range(1, len(page.items) + 1))
    found = {}
    for one in page.items:
        found.setdefault(one.task_id, []).append(one)
    return found


@pytest.mark.parametrize(("server", "agent"), [("current", "previous"), ("previous", "current")])
def test_an_agent_works_with_a_server_of_the_other_release(releases, world, gate, tmp_path, server, agent):
    serving = world.server(releases[server])
    working = world.agent(releases[agent])
    client = world.client()
    job = client.create_job().id
    long = client.submit([*gate.words], job=job)
    attempt = wait_running(long)
    echoes = [client.submit(["sh", "-c", f"echo {n}; echo e{n} >&2"], job=job) for n in range(20)]
    wrong = client.submit(["sh", "-c", "exit 3"], job=job)
    none = client.submit(["no-such-program-here"], job=job)
    large = client.submit(["sh", "-c", "yes | head -c 300000"], job=job)
    hung = client.submit(["sleep", "1000"], job=job)

    world.kill(working)
    working = world.agent(releases[agent])
    world.kill(serving)
    serving = world.server(releases[server])
    eventually(lambda: hung.refresh().state.value, lambda state: state == "running")
    client.cancel(hung.id)
    for task in [*echoes, wrong, none, large, hung]:
        task.wait(timeout=60)
    gate.open()
    long.wait(timeout=60)

    assert [task.stdout() for task in echoes] == [f"{n}\n" for n in range(20)]
    assert len(large.stdout()) == 300000
    state = {task.id: task.refresh() for task in (long, wrong, none, hung)}
    assert (state[long.id].state, state[long.id].attempt) == ("succeeded", attempt)
    assert (state[wrong.id].state, state[wrong.id].exit_code) == ("failed", 3)
    assert (state[none.id].state, state[none.id].reason) == ("failed", "not_found")
    assert state[hung.id].state == "cancelled"
    accepted = ends(client, job)
    assert len(accepted) == len(echoes) + 5
    assert all(len(results) == 1 for results in accepted.values())
    world.stop(working)
    world.stop(serving)


def test_a_node_is_upgraded_under_its_tasks(releases, make_world, gate):
    """The supervisor of the previous release keeps the tasks, and gives them to the new agent."""
    world = make_world()
    world.server(releases["current"])
    old = world.agent(releases["previous"])
    client = world.client()
    long = client.submit([*gate.words])
    attempt = wait_running(long)

    world.kill(old)
    new = world.agent(releases["current"])
    after = client.submit(["echo", "under the old supervisor"]).wait(timeout=60)
    gate.open()
    long.wait(timeout=60)

    assert after.stdout() == "under the old supervisor\n"
    assert (long.refresh().state, long.refresh().attempt) == ("succeeded", attempt)
    world.stop(new)


def test_a_database_of_the_previous_release_is_migrated_under_work(releases, world, gate, tmp_path):
    """Server after server: what is queued stays queued, what runs goes on, and old results stay readable."""
    old = world.server(releases["previous"])
    agent = world.agent(releases["previous"])
    client = world.client()
    job = client.create_job(name="before").id
    done = client.submit(["echo", "done before"], job=job).wait(timeout=60)
    running = [client.submit([*gate.words], job=job) for _ in range(2)]
    attempts = [wait_running(task) for task in running]
    queued = [client.submit(["echo", f"{n}"], job=job) for n in range(10)]
    held = client.submit(["true"], job=job, hold=True)
    child = client.submit(["echo", "child"], job=job, after=[queued[0]])

    world.stop(old)
    new = world.server(releases["current"])

    assert [task.refresh().state for task in running] == ["running", "running"]
    assert {task.refresh().state for task in queued} <= {"queued", "assigned"}
    assert (held.refresh().state, child.refresh().state) == ("held", "blocked")
    assert done.stdout() == "done before\n"
    gate.open()
    client.release(held.id)
    for task in [*running, *queued, held, child]:
        task.wait(timeout=60)
    assert [task.stdout() for task in queued] == [f"{n}\n" for n in range(10)]
    assert [task.refresh().attempt for task in running] == attempts
    assert len(ends(client, job)) == 15
    assert client.doctor() == []
    world.stop(agent)
    world.stop(new)


def test_an_older_program_refuses_the_database_and_names_the_copy(releases, make_world):
    world = make_world()
    world.stop(world.server(releases["previous"]))
    world.stop(world.server(releases["current"]))
    copy = world.home / "geres.db.schema-1"
    with contextlib.closing(sqlite3.connect(copy)) as kept:
        assert kept.execute("SELECT MAX(version) FROM schema_version").fetchone() == (1,)

    refused = releases["previous"].start("server", world.home, "--port", str(world.port))
    assert refused.wait(60) == 5

    words = (world.home / "server.log").read_text().splitlines()[-1]
    assert "use the newer geres" in words
    assert str(copy) in words


def test_servers_of_both_releases_share_a_database_for_a_while(releases, make_world, fresh_postgres, gate):
    """The new one migrates while the old one is at work, which goes on until it is stopped."""
    world = make_world(fresh_postgres())
    old = world.server(releases["previous"])
    first = world.agent(releases["previous"], "n1")
    client = world.client()
    long = client.submit([*gate.words])
    attempt = wait_running(long)

    other = world.folder / "h2"
    other.mkdir()
    for name in ("token", "agent.token"):
        (other / name).write_bytes((world.home / name).read_bytes())
    port = free_port()
    new = world.server(releases["current"], home=other, port=port)
    second = world.agent(releases["previous"], "n2", port)
    slow = ["sh", "-c", "sleep 0.5; echo $GERES_NODE_ID"]
    tasks = [client.submit(slow) for _ in range(12)]
    for task in tasks:
        task.wait(timeout=60)
    nodes = {task.stdout().strip() for task in tasks}
    assert nodes == {"n1", "n2"}, "both servers dispatch"
    assert old.poll() is None, world.logs()

    gate.open()
    long.wait(timeout=60)
    assert long.refresh().attempt == attempt
    for process in (first, second, old, new):
        world.stop(process)
