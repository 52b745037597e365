"""A server at work while another one migrates its database."""

from __future__ import annotations

import time

import psycopg
import pytest

from geres.errors import StoreUnavailable
from geres.store.database import Tx, open_database
from geres.store.migrate import end_older_connections, migrate


def find(tx: Tx):
    return tx.raw("SELECT * FROM node")


@pytest.fixture
def two(fresh_postgres):
    url = fresh_postgres()
    one, other = open_database(url), open_database(url)
    one.call(migrate, now_us=0)
    yield one, other
    one.close()
    other.close()


async def test_statements_prepared_before_a_migration_are_prepared_again(two):
    working, migrating = two
    for _ in range(10):
        working.call(find)
        await working.read(find)

    migrating.call(lambda tx: tx.script("ALTER TABLE node ADD COLUMN colour TEXT"))

    assert working.call(find) == []
    assert await working.read(find) == []


async def test_a_server_whose_connections_are_ended_goes_on(two):
    working, migrating = two
    working.call(find)
    await working.read(find)

    assert migrating.call(end_older_connections) >= 2

    deadline = time.monotonic() + 20
    while True:  # loops and clients try again in the same way
        try:
            assert working.call(find) == []
            assert await working.read(find) == []
            return
        except StoreUnavailable:
            assert time.monotonic() < deadline


def test_connections_of_people_and_of_backups_are_left_alone(two):
    _, migrating = two
    name = migrating.call(lambda tx: tx.raw("SELECT current_database()"))[0][0]
    host = migrating.call(lambda tx: tx.raw("SHOW unix_socket_directories"))[0][0]
    with psycopg.connect(f"postgresql://postgres@/{name}?host={host}&application_name=pg_dump") as dump:
        migrating.call(end_older_connections)
        assert dump.execute("SELECT 1").fetchone() == (1,)
