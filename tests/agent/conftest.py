"""An agent with its server, for each test of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.agent.world import Agent, Server, serving


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as server:
        yield server


@pytest.fixture
def make_agent(tmp_path: Path, server: Server) -> Iterator[Callable[..., Agent]]:
    """Call it with more flags for a started agent.  All end after the test, with no traceback in a log."""
    agents: list[Agent] = []

    def make(*flags: str, **environment: str) -> Agent:
        agents.append(Agent(tmp_path / "home", server.url, *flags, **environment))
        return agents[-1]

    yield make
    for agent in agents:
        agent.end()
    for agent in agents:
        assert "Traceback" not in agent.log, agent.log
        assert "Traceback" not in agent.supervisor_log, agent.supervisor_log


@pytest.fixture
async def agent(server: Server, make_agent: Callable[..., Agent]) -> Agent:
    """An agent that is connected."""
    agent = make_agent()
    await server.connected()
    return agent
