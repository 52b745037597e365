"""The store on PostgreSQL: a pool of connections, one thread for each transaction under way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

import anyio
import anyio.to_thread
import psycopg
from psycopg.rows import dict_row, tuple_row
from psycopg_pool import ConnectionPool, PoolTimeout

from geres.errors import StoreUnavailable
from geres.store.database import Database, Order, Row, Tx
from geres.store.sql import Dialect, for_postgres, statements

P = ParamSpec("P")
T = TypeVar("T")

_CONNECTIONS = 8
_READ_MS = 5000
_SCHEMA_LOCK = 4470_4470


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
        statement = f"COPY {table} ({','.join(columns)}) FROM STDIN"
        with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)

    def text(self, sql: str, parameters: dict[str, Any]) -> list[Row]:
        with self._connection.cursor(row_factory=dict_row) as cursor:
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


class PostgresDatabase(Database):
    dialect: Dialect = "postgres"

    def __init__(self, url: str, connections: int = _CONNECTIONS) -> None:
        self._pool = ConnectionPool(
            url,
            min_size=1,
            max_size=connections,
            open=True,
            timeout=10.0,
            check=ConnectionPool.check_connection,
            kwargs={"options": "-c idle_in_transaction_session_timeout=60000 -c lock_timeout=20000"},
        )
        self._limiter = anyio.CapacityLimiter(connections)

    @contextmanager
    def _transaction(self, read_only: bool = False) -> Iterator[PostgresTx]:
        try:
            with self._pool.connection() as connection, connection.transaction():
                if read_only:
                    connection.execute("SET TRANSACTION READ ONLY")
                    connection.execute(f"SET LOCAL statement_timeout = {_READ_MS}")
                yield PostgresTx(connection)
        except psycopg.errors.QueryCanceled as error:
            raise StoreUnavailable(
                f"the question took longer than {_READ_MS // 1000} s; ask for less: a job, a state, a limit"
            ) from error
        except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as error:
            raise StoreUnavailable(f"the database does not answer: {str(error).strip()}") from error

    def call(self, function: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._transaction() as tx:
            return function(tx, *args, **kwargs)

    def _read(self, function: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._transaction(read_only=True) as tx:
            return function(tx, *args, **kwargs)

    async def run(self, function: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        with anyio.CancelScope(shield=True):
            result = await anyio.to_thread.run_sync(
                lambda: self.call(function, *args, **kwargs), limiter=self._limiter
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
                lambda: self._read(function, *args, **kwargs), limiter=self._limiter
            )
        return result

    def close(self) -> None:
        self._pool.close()
