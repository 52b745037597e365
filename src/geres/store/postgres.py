"""The store on PostgreSQL: one pool of connections that write and one that read, a thread for each in use.

The way to the database and back is most of what a statement costs.  So reads go without a transaction around
them, as their snapshots are per statement anyway; plans are made once, as every statement goes by a key or an
index that is meant for it; and a connection is asked whether it lives only where its socket says something.
"""

from __future__ import annotations

import logging
import random
import select
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, Concatenate, ParamSpec, TypeVar

import anyio
import anyio.to_thread
import psycopg
from psycopg.rows import dict_row, tuple_row
from psycopg.types.numeric import Int8Dumper
from psycopg_pool import ConnectionPool, PoolTimeout

from geres.errors import StoreUnavailable
from geres.store.database import Database, Locked, Order, Row, Tx
from geres.store.sql import Dialect, for_postgres, statements

#: It tells of each of its tries; what an outage means is told by those who need the store.
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)

P = ParamSpec("P")
T = TypeVar("T")

_WRITERS = 8
_READERS = 4
_READ_MS = 5000
_LOAN_SECONDS = 4.0  #: as many ask for a connection as there are: to wait for one is to wait for the server
_RECONNECT_SECONDS = 1.0  #: the pool would wait twice as long each time; who needs a connection asks again
_TRIES = 4
_AWAY_SECONDS = 4.0  #: what had not come to its commit is done again when the database is back so soon
_AGAIN_SECONDS = 0.1
_SCHEMA_LOCK = 4470_4470
_FEW = 4  #: up to so many rows an INSERT for each is quicker than COPY
#: Each plan is made once, perhaps while tables are empty, and has to do for a million rows: by indexes only.
_ALL = "-c plan_cache_mode=force_generic_plan -c jit=off " + " ".join(
    f"-c enable_{way}=off" for way in ("seqscan", "hashjoin", "mergejoin")
)
_KNOWS = "-c geres.waits=yes"  #: what only servers of this release may do; see migration 11
#: Who is frozen or gone in the middle of a transaction holds its locks for less than others wait for them.
_WRITE = f"{_ALL} {_KNOWS} -c idle_in_transaction_session_timeout=10000 -c lock_timeout=20000"
_READ = f"{_ALL} -c default_transaction_read_only=on -c statement_timeout={_READ_MS}"
#: Seconds until a host that no longer answers is given up; without effect on a Unix socket.
_NETWORK: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
#: The database has ended the session; these two are no errors of operation to the driver.
_ENDED = (psycopg.errors.IdleInTransactionSessionTimeout, psycopg.errors.TransactionTimeout)
#: Another transaction was in the way; nothing was done, and doing it again is what helps.
_IN_THE_WAY = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)


class PostgresTx(Tx):
    dialect: Dialect = "postgres"

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._sql = statements("postgres")

    def rows(self, name: str, /, **parameters: Any) -> list[tuple[Any, ...]]:
        with self._connection.cursor(row_factory=tuple_row) as cursor:
            return cursor.execute(self._sql[name], parameters).fetchall()

    def all(self, name: str, /, **parameters: Any) -> list[Row]:
        with self._connection.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(self._sql[name], parameters).fetchall()

    def run(self, name: str, /, **parameters: Any) -> int:
        return self._connection.execute(self._sql[name], parameters).rowcount

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        left = iter(rows)
        first = list(islice(left, _FEW + 1))
        names = ",".join(columns)
        with self._connection.cursor() as cursor:
            if len(first) <= _FEW:
                marks = ",".join(["%s"] * len(columns))
                for row in first:
                    cursor.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", row)
                return
            with cursor.copy(f"COPY {table} ({names}) FROM STDIN") as copy:
                for row in chain(first, left):
                    copy.write_row(row)

    def text(self, sql: str, parameters: dict[str, Any]) -> list[Row]:
        # Every filter is another question: the planner is to see its values.
        with psycopg.ClientCursor(self._connection, row_factory=dict_row) as cursor:
            return cursor.execute(for_postgres(sql), parameters).fetchall()

    def raw(self, sql: str) -> list[tuple[Any, ...]]:
        with self._connection.cursor(row_factory=tuple_row) as cursor:
            return cursor.execute(sql).fetchall()

    def raw_run(self, sql: str, parameters: Sequence[Any]) -> None:
        self._connection.execute(sql.replace("?", "%s"), parameters)

    def script(self, sql: str) -> None:
        self._connection.execute(sql)

    def lock_schema(self) -> None:
        self._connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SCHEMA_LOCK,))
        self._connection.execute("SET LOCAL lock_timeout = 1000")


class PostgresDatabase(Database):
    dialect: Dialect = "postgres"

    def __init__(self, url: str) -> None:
        self._writers, self._write_slots = (
            _pool(url, _WRITERS, options=_WRITE),
            anyio.CapacityLimiter(_WRITERS),
        )
        self._readers, self._read_slots = (
            _pool(url, _READERS, options=_READ, autocommit=True),
            anyio.CapacityLimiter(_READERS),
        )

    def call(self, function: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        def once() -> T:
            committing = False
            try:
                with (
                    _outages(),
                    self._writers.connection() as connection,
                    _useful_plans(connection),
                    _writable(connection),
                    connection.transaction(),
                ):
                    result = function(PostgresTx(connection), *args, **kwargs)
                    committing = True
                return result
            except _Away as error:
                if committing:  # it may have been done, and not everything may be done twice
                    raise StoreUnavailable(str(error)) from error
                raise

        return _tried(once)

    def _read(self, function: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        def once() -> T:
            with _outages(), self._readers.connection() as connection, _useful_plans(connection):
                return function(PostgresTx(connection), *args, **kwargs)

        return _tried(once)

    async def run(self, function: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        with anyio.CancelScope(shield=True):
            result = await anyio.to_thread.run_sync(
                lambda: self.call(function, *args, **kwargs), limiter=self._write_slots
            )
        return result

    async def run_as(
        self, order: Order, function: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return await self.run(function, *args, **kwargs)

    async def read(
        self, function: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        with anyio.CancelScope(shield=True):
            result = await anyio.to_thread.run_sync(
                lambda: self._read(function, *args, **kwargs), limiter=self._read_slots
            )
        return result

    def inside(self) -> dict[str, Any]:
        return {
            "dialect": self.dialect,
            "writers": self._writers.get_stats(),
            "readers": self._readers.get_stats(),
            "waiting_writes": self._write_slots.statistics().tasks_waiting,
            "waiting_reads": self._read_slots.statistics().tasks_waiting,
        }

    def close(self) -> None:
        self._writers.close()
        self._readers.close()


@contextmanager
def reading(url: str) -> Iterator[Tx]:
    """A snapshot of a store, on a connection of its own, with all the time that it takes."""
    with (
        _outages(),
        psycopg.connect(url, options=_ALL, application_name="geres store", **_NETWORK) as connection,
    ):
        _configure(connection)
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        yield PostgresTx(connection)


class _InTheWay(StoreUnavailable):
    pass


class _Away(StoreUnavailable):
    """The database went away in the middle."""


class _UselessPlan(StoreUnavailable):
    pass


def _tried(once: Callable[[], T]) -> T:
    left, until = _TRIES, time.monotonic() + _AWAY_SECONDS
    while True:
        try:
            return once()
        except _Away:
            if time.monotonic() > until:
                raise
            time.sleep(_AGAIN_SECONDS)
        except _UselessPlan:
            continue  # its connection is closed; there are not many that are older than the migration
        except _InTheWay:
            left -= 1
            if not left:
                raise
            time.sleep(random.uniform(0, _AGAIN_SECONDS))  # else the two meet again


@contextmanager
def _useful_plans(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Give a connection up whose prepared statements the migration of a newer server has made useless."""
    try:
        yield
    except psycopg.errors.FeatureNotSupported as error:
        if "cached plan" not in str(error):
            raise
        connection.close()
        raise _UselessPlan("the schema was changed meanwhile") from error


@contextmanager
def _writable(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """Give a connection up to a database that has become a standby: the next one may lead to the primary."""
    try:
        yield
    except psycopg.errors.ReadOnlySqlTransaction as error:
        connection.close()
        raise _Away(f"the database is read-only at this moment: {str(error).strip()}") from error


def _pool(url: str, connections: int, **settings: Any) -> ConnectionPool:
    return ConnectionPool(
        url,
        min_size=1,
        max_size=connections,
        open=True,
        timeout=_LOAN_SECONDS,
        reconnect_timeout=_RECONNECT_SECONDS,
        configure=_configure,
        check=_check,
        kwargs={**_NETWORK, **settings},
    )


def _configure(connection: psycopg.Connection[Any]) -> None:
    # By default the type of a number goes by its size, and each mixture of sizes is a statement of its own.
    connection.adapters.register_dumper(int, Int8Dumper)


def _check(connection: psycopg.Connection[Any]) -> None:
    """Ask a connection whether it lives, where there is something to read: a server that ends says so."""
    poll = select.poll()
    poll.register(connection.pgconn.socket, select.POLLIN | select.POLLHUP | select.POLLERR)
    if poll.poll(0):
        ConnectionPool.check_connection(connection)


@contextmanager
def _outages() -> Iterator[None]:
    try:
        yield
    except _IN_THE_WAY as error:
        raise _InTheWay(f"another transaction was in the way: {str(error).strip()}") from error
    except psycopg.errors.QueryCanceled as error:
        raise StoreUnavailable(
            f"the question took longer than {_READ_MS // 1000} s; ask for less: a job, a state, a limit"
        ) from error
    except psycopg.errors.LockNotAvailable as error:
        raise Locked(f"somebody else holds what this needs: {str(error).strip()}") from error
    except PoolTimeout as error:
        raise StoreUnavailable(f"the database does not answer: {str(error).strip()}") from error
    except (psycopg.OperationalError, psycopg.InterfaceError, *_ENDED) as error:
        raise _Away(f"the database does not answer: {str(error).strip()}") from error
