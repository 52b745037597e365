"""Connections and transactions, for SQLite (one server) and PostgreSQL (any number).

A store function is blocking, takes an open transaction first, and does one thing that is true or not true as
a whole.  Async code calls `await db.run(function, ...)`: one hop to a thread, one transaction, committed or
rolled back; the call is never cancelled half-way.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import queue
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from geres.errors import GeresError, Invalid, StoreFull, StoreUnavailable
from geres.store.sql import Dialect, statements

P = ParamSpec("P")
T = TypeVar("T")
Row = dict[str, Any]

_READ_SECONDS = 2.0
_BUSY_MS = 5000
_READERS = 3
_WRITE_CACHE_KIB = 32_000
_READ_CACHE_KIB = 4_000
_QUEUE_MOST = 10_000


class Order(IntEnum):
    """Who goes first when work waits for SQLite's one writer."""

    TURN = 0
    HEARTBEAT = 1
    WRITE = 2
    LOOP = 3


class Locked(StoreUnavailable):
    """Somebody else holds what this needs for longer than it may wait."""


class Tx(ABC):
    """An open transaction.  Statements are called by the name they have in `sql/*.sql`."""

    dialect: Dialect

    @abstractmethod
    def rows(self, name: str, /, **parameters: Any) -> list[tuple[Any, ...]]:
        """All rows as tuples, in the order of the statement's columns."""

    @abstractmethod
    def all(self, name: str, /, **parameters: Any) -> list[Row]:
        """All rows as dicts."""

    @abstractmethod
    def run(self, name: str, /, **parameters: Any) -> int:
        """Execute, and return the number of rows changed."""

    @abstractmethod
    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Insert many rows, the fastest way that the database has."""

    @abstractmethod
    def text(self, sql: str, parameters: dict[str, Any]) -> list[Row]:
        """Run a SELECT built from a fixed table of columns (list filters), with `:name` parameters."""

    @abstractmethod
    def raw(self, sql: str) -> list[tuple[Any, ...]]: ...

    @abstractmethod
    def raw_run(self, sql: str, parameters: Sequence[Any]) -> None: ...

    @abstractmethod
    def script(self, sql: str) -> None:
        """Execute several statements (migrations)."""

    @abstractmethod
    def lock_schema(self) -> None:
        """Keep other servers from migrating until the transaction ends.

        From then on it waits for no lock for long, and raises Locked: whoever asks for a table would stand
        in line behind it, so that a dump that is being made would stop all servers.
        """

    def one(self, name: str, /, **parameters: Any) -> Row | None:
        """The only row, or None."""
        found = self.all(name, **parameters)
        return found[0] if found else None

    def value(self, name: str, /, **parameters: Any) -> Any:
        """The first column of the only row, or None."""
        found = self.rows(name, **parameters)
        return found[0][0] if found else None


class Database(ABC):
    """A store.  `call` blocks; `run` and `read` are for async code."""

    dialect: Dialect

    @abstractmethod
    def call(self, function: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run one store function in a transaction of its own, in this thread."""

    @abstractmethod
    async def run(self, function: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """One thread hop, one transaction.  Raises StoreUnavailable where nothing was committed for sure
        or the outcome is unknown; store functions are written so that trying again is harmless."""

    @abstractmethod
    async def run_as(
        self, order: Order, function: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Like `run`, in another place of the queue."""

    @abstractmethod
    async def read(
        self, function: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a function that only reads, beside the writers; interrupted after some seconds."""

    async def glance(
        self, function: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Like `read`, for a few rows by key.  On SQLite it costs less than the way to a thread and back, and
        is done at once."""
        return await self.read(function, *args, **kwargs)

    def inside(self) -> dict[str, Any]:
        """What waits for connections at this moment, for people."""
        return {"dialect": self.dialect}

    @abstractmethod
    def close(self) -> None: ...


def open_database(url: str) -> Database:
    """Open `sqlite:PATH` or `postgresql://...`.  Raises Invalid for another form or file."""
    if url.startswith("sqlite:"):
        return SqliteDatabase(Path(url.removeprefix("sqlite:")))
    if url.startswith(("postgresql://", "postgres://")):
        try:
            from geres.store.postgres import PostgresDatabase  # an extra: only who uses it needs the driver
        except ModuleNotFoundError as error:
            raise Invalid(
                f"store: PostgreSQL needs {error.name}: pip install 'geres[postgres]'", field="store"
            ) from None

        return PostgresDatabase(url)
    raise Invalid(f"store: {url!r} is neither sqlite:PATH nor postgresql://...", field="store")


# SQLite


def _as_text(value: Any) -> Any:
    """Lists go in as JSON; statements unfold them with json_each."""
    return json.dumps(value, separators=(",", ":")) if isinstance(value, list) else value


class SqliteTx(Tx):
    dialect: Dialect = "sqlite"

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._sql = statements("sqlite")

    def _execute(self, sql: str, parameters: dict[str, Any]) -> sqlite3.Cursor:
        return self._connection.execute(sql, {key: _as_text(value) for key, value in parameters.items()})

    def rows(self, name: str, /, **parameters: Any) -> list[tuple[Any, ...]]:
        return self._execute(self._sql[name], parameters).fetchall()

    def all(self, name: str, /, **parameters: Any) -> list[Row]:
        return _dicts(self._execute(self._sql[name], parameters))

    def run(self, name: str, /, **parameters: Any) -> int:
        return self._execute(self._sql[name], parameters).rowcount

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        marks = ",".join("?" * len(columns))
        self._connection.executemany(f"INSERT INTO {table} ({','.join(columns)}) VALUES ({marks})", rows)

    def text(self, sql: str, parameters: dict[str, Any]) -> list[Row]:
        return _dicts(self._execute(sql, parameters))

    def raw(self, sql: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql).fetchall()

    def raw_run(self, sql: str, parameters: Sequence[Any]) -> None:
        self._connection.execute(sql, parameters)

    def script(self, sql: str) -> None:
        # not executescript(): that commits first
        statement = ""
        for line in sql.splitlines():
            statement += line + "\n"
            if sqlite3.complete_statement(statement):
                self._connection.execute(statement)
                statement = ""
        if statement.strip():
            self._connection.execute(statement)

    def lock_schema(self) -> None:
        pass  # BEGIN IMMEDIATE has done it


def _dicts(cursor: sqlite3.Cursor) -> list[Row]:
    rows = cursor.fetchall()
    if not rows:
        return []
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in rows]


class SqliteDatabase(Database):
    """One writer thread that takes work in the order of Order; reads on connections of their own."""

    dialect: Dialect = "sqlite"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._write = self._connect()
        self._write_lock = threading.Lock()
        self._queue: queue.PriorityQueue[tuple[int, int, Callable[[], None] | None]] = queue.PriorityQueue()
        self._count = itertools.count()
        self._writer: threading.Thread | None = None
        self._readers: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        self._reader_slots = asyncio.Semaphore(_READERS)
        self._starting = threading.Lock()
        self._closed = False

    def _connect(self, read_only: bool = False) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(
                self.path,
                isolation_level=None,
                check_same_thread=False,
                timeout=_BUSY_MS / 1000,
                cached_statements=512,
            )
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute(f"PRAGMA cache_size = -{_READ_CACHE_KIB if read_only else _WRITE_CACHE_KIB}")
            connection.execute("PRAGMA journal_size_limit = 67108864")
            connection.execute("PRAGMA wal_autocheckpoint = 4000")
            if read_only:
                connection.execute("PRAGMA query_only = ON")
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise StoreUnavailable(f"the database {self.path} cannot be opened: {error}") from error
            raise Invalid(f"store: {self.path} is no SQLite database: {error}", field="store") from error
        return connection

    @contextmanager
    def _transaction(self) -> Iterator[SqliteTx]:
        with self._write_lock:
            try:
                self._write.execute("BEGIN IMMEDIATE")
                try:
                    yield SqliteTx(self._write)
                except BaseException:
                    if self._write.in_transaction:
                        self._write.execute("ROLLBACK")
                    raise
                self._write.execute("COMMIT")
            except (sqlite3.OperationalError, sqlite3.DatabaseError) as error:
                if self._write.in_transaction:
                    self._write.execute("ROLLBACK")
                if _is_full(error):
                    raise StoreFull(
                        f"nothing was stored, the disk takes no more: make room for {self.path} ({error})"
                    ) from error
                if _is_outage(error):
                    raise StoreUnavailable(f"the database {self.path} did not take it: {error}") from error
                raise

    def call(self, function: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._transaction() as tx:
            return function(tx, *args, **kwargs)

    async def run(self, function: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.run_as(Order.WRITE, function, *args, **kwargs)

    async def run_as(
        self, order: Order, function: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        if self._closed:  # nobody would ever do the work
            raise StoreUnavailable(f"the database {self.path} is closed; ask again once a server runs")
        if self._queue.qsize() >= _QUEUE_MOST:
            raise StoreUnavailable("too much waits for the database; try again in a moment")
        if self._writer is None:
            with self._starting:
                if self._writer is None:
                    self._writer = threading.Thread(target=self._work, name="store-writer", daemon=True)
                    self._writer.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            try:
                result = self.call(function, *args, **kwargs)
            except BaseException as error:
                _tell(loop, future, None, error)
            else:
                _tell(loop, future, result, None)

        self._queue.put((order, next(self._count), work))
        return await _uncancelled(future)

    def _work(self) -> None:
        while (work := self._queue.get()[2]) is not None:
            work()

    async def read(
        self, function: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        async with self._reader_slots:
            return await asyncio.to_thread(self._read, function, *args, **kwargs)

    async def glance(
        self, function: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return self._read(function, *args, **kwargs)

    def _read(self, function: Callable[Concatenate[Tx, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            connection = self._readers.get_nowait()
        except queue.Empty:
            connection = self._connect(read_only=True)
        until = time.monotonic() + _READ_SECONDS
        connection.set_progress_handler(lambda: time.monotonic() > until, 100_000)
        try:
            connection.execute("BEGIN")
            try:
                return function(SqliteTx(connection), *args, **kwargs)
            finally:
                connection.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            if "interrupted" in str(error):
                raise StoreUnavailable(
                    f"the question took over {_READ_SECONDS:.0f} s; ask for less: a job, a state, a limit"
                ) from error
            if _is_outage(error):
                raise StoreUnavailable(f"the database {self.path} could not be read: {error}") from error
            raise
        finally:
            connection.set_progress_handler(None, 0)
            self._readers.put(connection)

    def inside(self) -> dict[str, Any]:
        return {
            "dialect": self.dialect,
            "waiting_writes": self._queue.qsize(),
            "idle_readers": self._readers.qsize(),
            "most_readers": _READERS,
        }

    def close(self) -> None:
        self._closed = True
        if self._writer is not None:
            self._queue.put((Order.LOOP + 1, next(self._count), None))
            self._writer.join(timeout=10)
        with self._write_lock:
            self._write.close()
        while True:
            try:
                self._readers.get_nowait().close()
            except queue.Empty:
                return


_OUTAGES = ("locked", "busy", "full", "disk i/o", "readonly", "unable to open")


def _is_outage(error: sqlite3.Error) -> bool:
    text = str(error).lower()
    return isinstance(error, sqlite3.OperationalError) and any(word in text for word in _OUTAGES)


def _is_full(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE)


def _tell(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[T], result: Any, error: BaseException | None
) -> None:
    def deliver() -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    try:
        loop.call_soon_threadsafe(deliver)
    except RuntimeError:
        pass  # the loop has ended; nobody waits any more


async def _uncancelled(future: asyncio.Future[T]) -> T:
    """Wait for work that goes on in a thread, even while the waiter is being cancelled."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody else asks
        if not future.done():
            await asyncio.wait([future])
        raise


def batch(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as the JSON list of lists that `json_each(:p)` takes in SQL."""
    return json.dumps(list(rows), separators=(",", ":"), ensure_ascii=False)


def fault(error: BaseException) -> bool:
    """True where `error` is no deliberate one: data that a store function could not digest, or a bug."""
    return isinstance(error, Exception) and not isinstance(error, GeresError)


__all__ = ["Database", "Order", "Row", "SqliteDatabase", "Tx", "batch", "fault", "open_database"]
