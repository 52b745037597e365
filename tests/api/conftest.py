"""A real server on loopback, in a thread of the test's process, and an agent made of frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.api.world import Agent, Api


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with Api(tmp_path / "home") as running:
        yield running


@pytest.fixture
def agent(api: Api) -> Iterator[Callable[..., Agent]]:
    """Call it for an agent that is connected; as often as needed."""
    made: list[Agent] = []

    def connect(name: str = "n1", **facts: object) -> Agent:
        made.append(Agent(api, name, **facts))
        return made[-1]

    yield connect
    for one in made:
        one.close()
