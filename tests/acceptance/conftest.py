"""What acceptance tests share."""

from __future__ import annotations

import pytest

from tests.acceptance.acts import Gate
from tests.conftest import own_postgres


@pytest.fixture
def gate(tmp_path):
    """A command that lasts until the test, or its end, opens it."""
    made = Gate(tmp_path)
    yield made
    made.open()


@pytest.fixture
def postgres_server_of_its_own():
    """A PostgreSQL that a test may crash."""
    with own_postgres() as server:
        yield server
