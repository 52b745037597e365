"""Migrations: forward only, each in a part for at once and one for when no older code is at work."""

from __future__ import annotations

from functools import partial

import pytest

from geres.errors import Conflict
from geres.store import migrate, servers
from geres.store.database import Tx
from geres.store.migrate import Migration
from geres.store.servers import Introduction
from tests.store.world import LEASE_US, SECOND

NOW_US = 1_000 * SECOND
ADD = "ALTER TABLE pool ADD COLUMN colour TEXT;"
TIGHTEN = "UPDATE pool SET colour = 'red' WHERE colour IS NULL;\nALTER TABLE pool DROP COLUMN settings;"


@pytest.fixture
def known():
    """The migrations of this program, and one more in two parts."""
    now = migrate.migrations()
    return [*now, Migration(now[-1].number + 1, "colour", ADD, TIGHTEN)]


def columns(db, table="pool"):
    def read(tx: Tx):
        if tx.dialect == "sqlite":
            return {row[1] for row in tx.raw(f"PRAGMA table_info({table})")}
        return {
            row[0]
            for row in tx.raw(
                f"SELECT column_name FROM information_schema.columns WHERE table_name = '{table}'"
            )
        }

    return db.call(read)


def register(db, now_us=NOW_US):
    me = Introduction(0, "http://127.0.0.1:1", "1", now_us)
    return db.call(servers.register, me, lease_us=LEASE_US).id


def test_each_migration_has_a_number_of_its_own_and_none_is_left_out():
    numbers = [one.number for one in migrate.migrations()]
    assert numbers == list(range(1, len(numbers) + 1))


def test_what_is_missing_is_applied_once(db, known):
    names = db.call(migrate.migrate, now_us=NOW_US)
    assert names == [one.name for one in known[:-1]]
    assert db.call(migrate.migrate, now_us=NOW_US) == []
    assert db.call(migrate.schema_version) == known[-2].number
    assert db.call(migrate.migrate, now_us=NOW_US, known=known) == ["colour"]
    assert {"colour", "settings"} <= columns(db)


def test_the_second_part_waits_for_the_last_server_with_older_code(db, known):
    db.call(migrate.migrate, now_us=NOW_US, known=known)
    old, new = register(db), register(db)

    assert db.call(migrate.finish, new, now_us=NOW_US, known=known) == ([], True)
    assert "settings" in columns(db)
    db.call(servers.leave, old)
    assert db.call(migrate.finish, new, now_us=NOW_US, known=known) == (["colour"], False)
    assert "settings" not in columns(db)
    assert db.call(migrate.finish, new, now_us=NOW_US, known=known) == ([], False)


def test_the_second_part_does_not_wait_for_a_server_whose_lease_has_ended(db, known):
    db.call(migrate.migrate, now_us=NOW_US, known=known)
    register(db)
    new = register(db, NOW_US + LEASE_US // 2)

    later = NOW_US + LEASE_US + 1
    assert db.call(migrate.finish, new, now_us=later, known=known) == (["colour"], False)


def test_two_new_servers_do_not_wait_for_each_other_for_long(db, known):
    db.call(migrate.migrate, now_us=NOW_US, known=known)
    one, two = register(db), register(db)

    assert db.call(migrate.finish, one, now_us=NOW_US, known=known) == ([], True)
    assert db.call(migrate.finish, two, now_us=NOW_US, known=known) == (["colour"], False)


def test_the_only_server_there_can_be_waits_for_none(db, known):
    db.call(migrate.migrate, now_us=NOW_US, known=known)
    register(db)

    assert db.call(migrate.finish, None, now_us=NOW_US, known=known) == (["colour"], False)


@pytest.mark.parametrize("part", ["text", "after"])
def test_a_file_that_was_edited_after_it_was_applied_is_refused(db, known, part):
    db.call(migrate.migrate, now_us=NOW_US, known=known)
    db.call(migrate.finish, None, now_us=NOW_US, known=known)
    edited = [*known[:-1], known[-1]._replace(**{part: getattr(known[-1], part) + "\n-- more"})]
    again = migrate.migrate if part == "text" else partial(migrate.finish, server_id=None)

    with pytest.raises(Conflict, match="was edited after it was applied"):
        db.call(again, now_us=NOW_US, known=edited)


def test_a_database_of_a_newer_program_is_refused_and_left_alone(db, known):
    db.call(migrate.migrate, now_us=NOW_US, known=known)

    with pytest.raises(Conflict, match="use the newer geres"):
        db.call(migrate.migrate, now_us=NOW_US)
    assert db.call(migrate.schema_version) == known[-1].number
