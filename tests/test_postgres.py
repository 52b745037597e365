"""The PostgreSQL fixture itself: helpers are tested, or go."""

from __future__ import annotations

import os
import select
import subprocess
import sys

import psycopg
import pytest

from tests.postgres import PostgresServer


def names(url):
    with psycopg.connect(url) as connection:
        return {row[0] for row in connection.execute("SELECT datname FROM pg_database")}


def test_every_fresh_database_is_empty_and_its_own(fresh_postgres):
    first, second = fresh_postgres(), fresh_postgres()

    with psycopg.connect(first) as connection:
        connection.execute("CREATE TABLE t (n int)")

    with psycopg.connect(second) as connection, pytest.raises(psycopg.errors.UndefinedTable):
        connection.execute("SELECT n FROM t")


def test_a_fresh_database_is_dropped_even_where_a_connection_is_open(postgres_server):
    with postgres_server.fresh() as url:
        connection = psycopg.connect(url)
        made = connection.info.dbname
        assert made in names(postgres_server.url)

    assert made not in names(postgres_server.url)
    connection.close()


def test_it_listens_on_no_port_and_syncs_to_disk(postgres_url):
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)
        assert connection.execute("SHOW fsync").fetchone() == ("on",)
        assert connection.execute("SHOW full_page_writes").fetchone() == ("on",)


def test_a_crash_keeps_what_was_committed():
    server = PostgresServer()
    try:
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE t (n int)")
        server.crash()
        server.restart()
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
    finally:
        server.stop()
    assert not server.folder.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a child to its parent's life")
def test_it_ends_when_the_test_run_is_killed():
    program = (
        "import os, signal\n"
        "from tests.postgres import PostgresServer\n"
        "server = PostgresServer()\n"
        "print(server.pid, server.folder, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    child = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, timeout=60)
    pid, folder = child.stdout.split()

    wait_until_gone(int(pid))

    subprocess.run(["rm", "-rf", "--", folder], check=True)


def wait_until_gone(pid):
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ready, _, _ = select.select([handle], [], [], 20)
    os.close(handle)
    assert ready, f"process {pid} still runs"
