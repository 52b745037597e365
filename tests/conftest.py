"""Fixtures for all tests.  A missing service skips with its reason on a laptop and fails where CI is set."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import Cluster
from tests.postgres import NoPostgres, PostgresServer


def missing(reason: str) -> None:
    """Skip this test for want of a service; where CI is set it fails, so that nothing is left out unseen."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def same_umask() -> Iterator[None]:
    """What a test sets of this process would otherwise depend on which tests ran before in it."""
    before = os.umask(0o022)
    yield
    after = os.umask(before)
    assert after == 0o022, f"the test left the umask {after:03o} behind"


@contextlib.contextmanager
def own_postgres() -> Iterator[PostgresServer]:
    """A server of its own, for a test that breaks it."""
    try:
        server = PostgresServer()
    except NoPostgres as error:
        missing(str(error))
        raise
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with own_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(postgres_server: PostgresServer) -> str:
    """URL of the session's server (its database `postgres`); tests that write take `fresh_postgres`."""
    return postgres_server.url


@pytest.fixture
def fresh_postgres(postgres_server: PostgresServer) -> Iterator[Callable[[], str]]:
    """Call it for the URL of a new empty database; as often as needed.  All are dropped after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(postgres_server.fresh())


@pytest.fixture
def make_cluster(request: pytest.FixtureRequest) -> Iterator[Callable[..., Cluster]]:
    """Call it for a started cluster of this test's own: `make_cluster(store="postgres", cpus=2, flags=())`.

    `store` is `sqlite` or `postgres`.  All are stopped and checked after the test.
    """
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(_started(request, **options))


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster on SQLite that the tests of a module share; who breaks things takes `make_cluster`."""
    with _started(request) as started:
        yield started


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def any_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Like `cluster`; each test runs on both stores."""
    with _started(request, store=request.param) as started:
        yield started


@contextlib.contextmanager
def _started(request: pytest.FixtureRequest, store: str = "sqlite", **options: Any) -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        # Not tmp_path: with the names of tests in it, sockets in the home would have too long a path.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="geres-test-")))
        url = None
        if store == "postgres":
            server: PostgresServer = request.getfixturevalue("postgres_server")
            url = stack.enter_context(server.fresh())
        yield stack.enter_context(Cluster(folder, store=url, **options))
