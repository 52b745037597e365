"""An agent ends when it is told to, whatever hangs, and no end is lost on the way."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import anyio.to_thread

from geres.agent.attempts import Attempt, Spec
from geres.agent.main import Stop
from tests.agent.world import Agent, Server
from tests.conftest import missing

OUTGROWN = "yes | head -c 100000"


async def test_an_upload_that_hangs_does_not_keep_an_agent_from_ending(server: Server, agent: Agent) -> None:
    server.hangs_uploads = True
    await server.assign(server.spec(shell=OUTGROWN), 1)
    await server.until(lambda: agent.supervisor()["ended"])

    try:
        assert await anyio.to_thread.run_sync(agent.terminate, 20.0) == 0
    finally:
        server.hangs_uploads = False


async def test_a_stop_goes_before_beginning_anew() -> None:
    stop = Stop()
    stop.begin_anew()
    assert stop.anew
    stop.signalled()
    assert not stop.anew


async def test_an_end_whose_folder_is_gone_is_reported(
    server: Server, agent: Agent, make_agent: Callable[..., Agent]
) -> None:
    server.acknowledges = False
    await server.assign(server.spec(shell="echo kept > file"), 1)
    end = await server.end_of(1)
    assert end.folder is not None
    agent.kill()
    shutil.rmtree(end.folder)  # as to make room on a full disk, before we know that nobody has its end
    server.ended.clear()
    server.acknowledges = True

    agent.start()
    again = await server.end_of(1)
    assert (again.outcome, again.folder) == ("succeeded", None)
    await server.until(lambda: not agent.supervisor()["ended"])


async def test_an_account_that_can_have_no_folder_here_fails_its_task_alone(server: Server) -> None:
    if os.geteuid() != 0:
        missing("only root can run tasks as other accounts")
    with tempfile.TemporaryDirectory(prefix="geres-test-") as folder:
        os.chmod(folder, 0o755)
        agent = Agent(Path(folder) / "home", server.url, GERES_AGENT__ACCOUNTS="root=root")
        try:
            await server.connected()
            shared = agent.home / "agent" / "shared"
            shared.rmdir()
            shared.write_text("no folder")
            await server.assign(server.spec("true"), 1, submitted_by="games")
            end = await server.end_of(1)
            await server.assign(server.spec("true"), 2, submitted_by="root")
            assert (await server.end_of(2)).outcome == "succeeded"
        finally:
            agent.end()
    assert (end.outcome, end.reason) == ("failed", "internal")
    assert "could not prepare" in (end.message or "")
    assert len(server.peers) == 1, "the agent did not die of it"


async def test_a_supervisor_takes_orders_of_a_newer_agent() -> None:
    """It stays when the agent is upgraded, and with it all tasks: tuples only grow, at their ends."""
    order = (1 << 32 | 1, 1, 1, 7, 0, [b"true"], None, "of a newer release")
    made = Attempt(order, Spec({"argv": [b"true"], "env": {}}), 0.0)
    assert (made.key, made.lane, made.argv) == ((1 << 32 | 1, 1), 7, [b"true"])
