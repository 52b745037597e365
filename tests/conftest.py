"""Fixtures for all tests.  A missing service skips with its reason on a laptop and fails where CI is set."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from tests.postgres import NoPostgres, PostgresServer


def missing(reason: str) -> None:
    """Skip this test for want of a service; where CI is set it fails, so that nothing is left out unseen."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    try:
        server = PostgresServer()
    except NoPostgres as error:
        missing(str(error))
        raise
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres_url(postgres_server: PostgresServer) -> str:
    """URL of the session's server (its database `postgres`); tests that write take `fresh_postgres`."""
    return postgres_server.url


@pytest.fixture
def fresh_postgres(postgres_server: PostgresServer) -> Iterator[Callable[[], str]]:
    """Call it for the URL of a new empty database; as often as needed.  All are dropped after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(postgres_server.fresh())
