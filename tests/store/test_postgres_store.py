"""What is PostgreSQL's own: deadlocks, lost connections, reads that must not write."""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest

from geres.errors import StoreUnavailable
from geres.model.jobs import ArraySpec
from geres.model.tasks import TaskSpec
from geres.server import loops, opening
from geres.store import arrays, migrate
from geres.store.database import Database, Locked, Tx, open_database
from geres.store.migrate import Migration
from tests.postgres import PostgresServer
from tests.store.world import World


@pytest.fixture
def two_rows(fresh_postgres):
    db = open_database(fresh_postgres())
    db.call(lambda tx: tx.script("CREATE TABLE t (id BIGINT PRIMARY KEY, n BIGINT)"))
    db.call(lambda tx: tx.insert("t", ("id", "n"), [(1, 0), (2, 0)]))
    yield db
    db.close()


def _add(tx: Tx, row: int) -> None:
    tx.raw_run("UPDATE t SET n = n + 1 WHERE id = ?", [row])


def test_a_deadlock_is_tried_again_and_nobody_hears_of_it(two_rows: Database):
    both_hold_one = threading.Barrier(2)
    tries: list[int] = []
    errors: list[BaseException] = []

    def cross(first: int, second: int) -> None:
        def work(tx: Tx) -> None:
            tries.append(first)
            _add(tx, first)
            if tries.count(first) == 1:
                both_hold_one.wait(10)
            _add(tx, second)

        try:
            two_rows.call(work)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=cross, args=rows) for rows in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    assert len(tries) >= 3  # one of the two was the victim, on a slow machine sometimes both
    assert two_rows.call(lambda tx: tx.raw("SELECT n FROM t ORDER BY id")) == [(2,), (2,)]


@pytest.mark.anyio
async def test_a_read_cannot_write(two_rows: Database):
    with pytest.raises(Exception, match="read-only transaction"):
        await two_rows.read(_add, 1)
    assert await two_rows.read(lambda tx: tx.raw("SELECT n FROM t WHERE id = 1")) == [(0,)]


@pytest.mark.anyio
async def test_few_rows_and_many_arrive_alike(two_rows: Database):
    rows = [(number, None if number % 2 else number * 2**40) for number in range(10, 40)]
    await two_rows.run(lambda tx: tx.insert("t", ("id", "n"), iter(rows[:3])))
    await two_rows.run(lambda tx: tx.insert("t", ("id", "n"), iter(rows[3:])))
    await two_rows.run(lambda tx: tx.insert("t", ("id", "n"), iter([])))
    assert await two_rows.read(lambda tx: tx.raw("SELECT id, n FROM t WHERE id >= 10 ORDER BY id")) == rows


def test_connections_that_a_restart_broke_are_not_lent_again():
    server = PostgresServer()
    try:
        db = open_database(server.url)
        try:
            assert db.call(lambda tx: tx.raw("SELECT 1")) == [(1,)]
            server.crash()
            with pytest.raises(StoreUnavailable, match="does not answer"):
                db.call(lambda tx: tx.raw("SELECT 1"))
            server.restart()
            assert db.call(lambda tx: tx.raw("SELECT 2")) == [(2,)]
        finally:
            db.close()
    finally:
        server.stop()


def test_what_was_cut_off_before_its_commit_is_done_again_and_nobody_hears_of_it(two_rows: Database):
    tries: list[int] = []

    def work(tx: Tx) -> None:
        _add(tx, 1)
        tries.append(1)
        if len(tries) == 1:
            _cut_off(tx)
        _add(tx, 2)

    two_rows.call(work)
    assert len(tries) == 2
    assert two_rows.call(lambda tx: tx.raw("SELECT n FROM t ORDER BY id")) == [(1,), (1,)]


def test_what_was_cut_off_at_its_commit_is_not_done_twice(two_rows: Database):
    """Whether it was done nobody can say; a caller who may repeat it does so with a key."""
    tries: list[int] = []

    def work(tx: Tx) -> None:
        tries.append(1)
        _add(tx, 1)
        _cut_off(tx)

    with pytest.raises(StoreUnavailable):
        two_rows.call(work)
    assert len(tries) == 1


def _cut_off(tx: Tx) -> None:
    """The server ends this session, as it does when it stops."""
    _wait_for_end(tx, "SELECT pg_terminate_backend(%s)")


def _wait_for_end(tx: Tx, ending: str | None = None) -> None:
    """Wait until this session has ended."""
    [(pid,)] = tx.raw("SELECT pg_backend_pid()")
    with psycopg.connect(tx._connection.info.dsn, autocommit=True) as admin:  # type: ignore[attr-defined]
        if ending is not None:
            admin.execute(ending, [pid])
        while admin.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone():
            pass


def test_a_transaction_that_was_ended_for_being_idle_is_done_again(two_rows: Database):
    """As after a server was frozen in the middle of one: no fault of what it was doing."""
    tries: list[int] = []

    def work(tx: Tx) -> None:
        _add(tx, 1)
        tries.append(1)
        if len(tries) == 1:
            tx.script("SET LOCAL idle_in_transaction_session_timeout = 50")
            _wait_for_end(tx)
        _add(tx, 2)

    two_rows.call(work)
    assert len(tries) == 2
    assert two_rows.call(lambda tx: tx.raw("SELECT n FROM t ORDER BY id")) == [(1,), (1,)]


def test_a_database_that_takes_no_writes_is_away_until_it_does(two_rows: Database):
    """As a primary that became a standby: the connection is given up, as the next may lead to the new one."""
    tries: list[int] = []

    def work(tx: Tx, most: int) -> None:
        [(pid,)] = tx.raw("SELECT pg_backend_pid()")
        tries.append(pid)
        if len(tries) <= most:
            tx.script("SET LOCAL transaction_read_only = on")
        _add(tx, 1)

    two_rows.call(work, 1)
    assert len(tries) == 2
    assert tries[0] != tries[1], "on another connection"
    with pytest.raises(StoreUnavailable, match="read-only"):
        two_rows.call(work, 1000)
    assert two_rows.call(lambda tx: tx.raw("SELECT n FROM t WHERE id = 1")) == [(1,)]


def test_nobody_is_kept_waiting_longer_for_a_lock_than_a_frozen_server_may_hold_it(two_rows: Database):
    [(idle, lock)] = two_rows.call(
        lambda tx: tx.raw(
            "SELECT (SELECT CAST(setting AS INT) FROM pg_settings"
            "         WHERE name = 'idle_in_transaction_session_timeout'),"
            "       (SELECT CAST(setting AS INT) FROM pg_settings WHERE name = 'lock_timeout')"
        )
    )
    assert 0 < idle < lock


def test_who_waits_too_long_for_a_lock_hears_so(two_rows: Database):
    def wait(tx: Tx) -> None:
        tx.script("SET LOCAL lock_timeout = 50")
        _add(tx, 1)

    def hold(tx: Tx) -> None:
        _add(tx, 1)
        with pytest.raises(StoreUnavailable, match="somebody else"):
            two_rows.call(wait)

    two_rows.call(hold)


def test_a_server_that_does_not_know_of_waiting_unfolds_no_array_that_waits(fresh_postgres):
    """As those of the previous release: they would let its tasks start at once."""
    db = open_database(url := fresh_postgres())
    try:
        world = World(db)
        [parent] = world.submit()
        waits = world.job(array=ArraySpec(range="1-2000"), task=TaskSpec(command=["true"]), after=[parent])
        plain = world.job(
            array=ArraySpec(range="1-2000"), task=TaskSpec(command=["true"], env={"after": '["'})
        )
        unfolded = "UPDATE job SET array_done = array_done + 1, task_count = task_count + 1 WHERE id = %s"
        with psycopg.connect(url, autocommit=True) as older:
            with pytest.raises(
                psycopg.OperationalError, match="newer release"
            ):  # which they take for an outage
                older.execute(unfolded, [int(waits)])
            older.execute(unfolded, [int(plain)])
            older.execute("UPDATE job SET priority = 1, array_total = array_done WHERE id = %s", [int(waits)])
        assert db.call(arrays.unfold, int(waits), now_us=world.now_us) == 0
        again = world.job(array=ArraySpec(range="1-2000"), task=TaskSpec(command=["true"]), after=[parent])
        assert db.call(arrays.unfold, int(again), now_us=world.now_us) == 2000
        assert world.state(f"{again}.1") == "blocked"
    finally:
        db.close()


def test_a_migration_waits_for_no_dump_while_others_wait_behind_it(fresh_postgres):
    """ALTER TABLE stands in line behind whoever reads the table, and everybody else behind it."""
    url = fresh_postgres()
    db = open_database(url)
    try:
        db.call(migrate.migrate, now_us=0)
        later = Migration(len(migrate.migrations()) + 1, "colour", "ALTER TABLE pool ADD COLUMN colour TEXT;")
        with psycopg.connect(url) as dump:
            dump.execute("LOCK TABLE pool IN ACCESS SHARE MODE")
            with pytest.raises(Locked, match="lock timeout"):  # the dump is not over yet
                db.call(migrate.migrate, now_us=0, known=[*migrate.migrations(), later])
            assert db.call(lambda tx: tx.raw("SHOW lock_timeout")) == [("20s",)]
        assert db.call(migrate.migrate, now_us=0, known=[*migrate.migrations(), later]) == ["colour"]
    finally:
        db.close()


def test_a_server_migrates_once_the_dump_is_over(fresh_postgres, monkeypatch, caplog):
    url = fresh_postgres()
    known = migrate.migrations()
    monkeypatch.setattr(opening, "_LOCKED_PAUSE_SECONDS", 0.1)
    later = Migration(len(known) + 1, "colour", "ALTER TABLE pool ADD COLUMN colour TEXT;")
    with contextlib.closing(opening.open_store(url, now_us=0)), psycopg.connect(url) as dump:
        dump.execute("LOCK TABLE pool IN ACCESS SHARE MODE")
        monkeypatch.setattr(migrate, "migrations", lambda: [*known, later])
        opened: list[opening.Opened] = []
        thread = threading.Thread(target=lambda: opened.append(opening.open_store(url, now_us=0)))
        thread.start()
        while "is a dump being made" not in caplog.text:
            assert thread.is_alive()
            thread.join(0.05)
        dump.rollback()
        thread.join(60)
        assert len(opened) == 1
        opened[0].close()


def test_a_dump_that_goes_on_and_on_is_named(fresh_postgres, monkeypatch):
    """A dump that goes on and on: the server says so and gives up; whoever keeps it starts it again."""
    url = fresh_postgres()
    known = migrate.migrations()
    monkeypatch.setattr(opening, "_LOCKED_SECONDS", 0.0)
    later = Migration(len(known) + 1, "colour", "ALTER TABLE pool ADD COLUMN colour TEXT;")
    with contextlib.closing(opening.open_store(url, now_us=0)), psycopg.connect(url) as dump:
        dump.execute("LOCK TABLE pool IN ACCESS SHARE MODE")
        monkeypatch.setattr(migrate, "migrations", lambda: [*known, later])
        with pytest.raises(Locked, match="is a dump being made of it"):
            opening.open_store(url, now_us=0)


@pytest.mark.anyio
async def test_the_second_part_of_a_migration_is_not_tried_again_at_once(fresh_postgres, monkeypatch):
    url = fresh_postgres()
    known = migrate.migrations()
    after = "ALTER TABLE pool DROP COLUMN colour;"
    later = Migration(len(known) + 1, "colour", "ALTER TABLE pool ADD COLUMN colour TEXT;", after)
    monkeypatch.setattr(migrate, "migrations", lambda: [*known, later])
    with contextlib.closing(opening.open_store(url, now_us=0)) as opened:
        context = SimpleNamespace(db=opened.db, server_id=1, clock=lambda: 0)
        migrator = loops.Migrator(cast("Any", context))
        with psycopg.connect(url) as dump:
            dump.execute("LOCK TABLE pool IN ACCESS SHARE MODE")
            assert not await migrator.step()  # an error would have it tried again within two seconds
        await migrator.step()
        with psycopg.connect(url) as connection, pytest.raises(psycopg.errors.UndefinedColumn):
            connection.execute("SELECT colour FROM pool")
