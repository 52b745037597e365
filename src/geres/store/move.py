"""Moves a store from SQLite to PostgreSQL: every row as it is, in pieces, so that a move can be resumed.

Each piece is one transaction with a note of how far it came, in a table that is dropped at the end.  The
source is only read.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from geres.errors import Conflict, GeresError, Invalid
from geres.store import migrate
from geres.store.database import Database, Tx

_PIECE = 5_000
_VERIFY_PIECE = 20_000
_PROGRESS = "store_move"
_OURS_ALONE = ("schema_version", "schema_after")  #: the target's own migrations fill them
_FIRST_USED = ("tenant", "job", "server")  #: a server that starts writes to them
_BEFORE_ALL = -(1 << 62)  #: smaller than any row id
_MASK = (1 << 64) - 1
_pack = msgspec.msgpack.Encoder().encode

#: What is done (`copy` or `verify`), rows so far, rows in all.
Progress = Callable[[str, int, int], None]


class Table(NamedTuple):
    name: str
    columns: tuple[str, ...]
    rows: int
    last_id: int | None  #: the highest number that it ever gave, where it gives numbers


class Source:
    """The SQLite file, read only.  Whoever opens it keeps servers off it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        self._connection.execute("PRAGMA query_only = ON")

    def close(self) -> None:
        self._connection.close()

    def schema_version(self) -> int:
        return int(self._one("SELECT COALESCE(MAX(version), 0) FROM schema_version"))

    def identity(self) -> str:
        """Names this file in this state: another one where a server has written to it since."""
        parts = []
        for path in (self.path, self.path.with_name(f"{self.path.name}-wal")):
            if path.exists() and (found := path.stat()).st_size:
                parts.append(f"{path}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}")
        return " ".join(parts)

    def tables(self) -> list[Table]:
        """All that are moved; those that others refer to come first."""
        names = [
            row[0]
            for row in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            if not row[0].startswith("sqlite_") and row[0] not in _OURS_ALONE
        ]
        last = dict(self._connection.execute("SELECT name, seq FROM sqlite_sequence"))
        return [self._table(name, last.get(name)) for name in self._in_order(sorted(names))]

    def _in_order(self, names: list[str]) -> list[str]:
        ordered: list[str] = []
        needs = {
            name: {row[2] for row in self._connection.execute(f'PRAGMA foreign_key_list("{name}")')} - {name}
            for name in names
        }
        while len(ordered) < len(names):
            ordered += [name for name in names if name not in ordered and needs[name] <= set(ordered)]
        return ordered

    def _table(self, name: str, last_id: int | None) -> Table:
        columns = tuple(row[1] for row in self._connection.execute(f'PRAGMA table_info("{name}")'))
        numbered = "AUTOINCREMENT" in self._one("SELECT sql FROM sqlite_master WHERE name = ?", name)
        rows = int(self._one(f'SELECT count(*) FROM "{name}"'))
        return Table(name, columns, rows, (last_id or 0) if numbered else None)

    def pieces(self, table: Table, after: int, size: int) -> Iterator[tuple[int, list[tuple[Any, ...]]]]:
        """(row id of the last, rows) of each piece after a row id."""
        names = ", ".join(map(_quoted, table.columns))
        sql = f'SELECT rowid, {names} FROM "{table.name}" WHERE rowid > ? ORDER BY rowid LIMIT {size:d}'
        while found := self._connection.execute(sql, (after,)).fetchall():
            after = found[-1][0]
            yield after, [row[1:] for row in found]

    def _one(self, sql: str, *parameters: Any) -> Any:
        return self._connection.execute(sql, parameters).fetchone()[0]


def check_source(source: Source) -> None:
    """Raise Conflict for a source of another schema than this program's."""
    try:
        found = source.schema_version()
    except sqlite3.DatabaseError as error:
        raise Invalid(f"{source.path} is no store of geres: {error}", field="from") from error
    newest = migrate.newest_version()
    if found != newest:
        raise Conflict(
            f"{source.path} has schema {found}, this program {newest}: start and stop a server of this geres"
            " on it once",
            database=found,
            program=newest,
        )


def state_of(tx: Tx) -> str | None:
    """What the target is: `empty`, `begun:IDENTITY` of an unfinished move, or None where it is in use."""
    sql = "SELECT tablename FROM pg_tables WHERE schemaname = ANY (current_schemas(false))"
    there = {row[0] for row in tx.raw(sql)}
    if _PROGRESS in there:
        return f"begun:{tx.raw(f'SELECT source FROM {_PROGRESS} LIMIT 1')[0][0]}"
    if not there:
        return "empty"
    if "schema_version" not in there:
        return None
    return None if any(tx.raw(f"SELECT 1 FROM {name} LIMIT 1") for name in _FIRST_USED) else "empty"


def refuse_unfinished(tx: Tx) -> None:
    """Raise Conflict for a database that holds a part of a move: no server may work on it."""
    if tx.dialect == "postgres" and (state := state_of(tx)) is not None and state.startswith("begun:"):
        raise Conflict(
            "a move into this database is not complete: type `geres store move` again, which takes it up"
        )


def check_target(tx: Tx, source: Source) -> bool:
    """True where a move from this source was begun there.  Raises Conflict where it is no place for one."""
    state = state_of(tx)
    if state is None:
        raise Conflict("the target holds data already; give a new, empty database")
    if state == "empty":
        return False
    if state != f"begun:{source.identity()}":
        raise Conflict(
            "the target holds part of a move from another file, or a server has written to this one since:"
            " begin with a new, empty database"
        )
    return True


def begin(tx: Tx, source: Source, *, now_us: int) -> None:
    """Make the schema and the note of how far the move came; twice is harmless."""
    migrate.migrate(tx, now_us=now_us)
    migrate.finish(tx, None, now_us=now_us)
    tx.script(
        f"CREATE TABLE IF NOT EXISTS {_PROGRESS} (name TEXT PRIMARY KEY, source TEXT NOT NULL,"
        " last_row BIGINT NOT NULL, moved BIGINT NOT NULL)"
    )
    for table in ("", *(table.name for table in source.tables())):
        tx.raw_run(
            f"INSERT INTO {_PROGRESS} VALUES (?, ?, ?, 0) ON CONFLICT DO NOTHING",
            (table, source.identity(), _BEFORE_ALL),
        )


def copy(source: Source, target: Database, progress: Progress) -> None:
    """Copy what the target does not have yet."""
    tables = source.tables()
    total = sum(table.rows for table in tables)
    far = {row[0]: (row[1], row[2]) for row in target.call(_read_progress)}
    done = sum(moved for _, moved in far.values())
    progress("copy", done, total)
    for table in tables:
        for last, rows in source.pieces(table, far[table.name][0], _PIECE):
            target.call(_write_piece, table, rows, last)
            done += len(rows)
            progress("copy", done, total)
    target.call(_set_numbers, tables)


def _read_progress(tx: Tx) -> list[tuple[Any, ...]]:
    return tx.raw(f"SELECT name, last_row, moved FROM {_PROGRESS}")


def _write_piece(tx: Tx, table: Table, rows: Sequence[Sequence[Any]], last: int) -> None:
    tx.insert(_quoted(table.name), [_quoted(column) for column in table.columns], rows)
    sql = f"UPDATE {_PROGRESS} SET last_row = ?, moved = moved + ? WHERE name = ?"
    tx.raw_run(sql, (last, len(rows), table.name))


def _set_numbers(tx: Tx, tables: Sequence[Table]) -> None:
    """Numbers that were given once are never given again, as on the source."""
    for table in tables:
        if table.last_id:
            sequence = tx.raw(f"SELECT pg_get_serial_sequence('{_quoted(table.name)}', 'id')")[0][0]
            tx.raw(f"SELECT setval('{sequence}', {table.last_id:d})")


def verify(source: Source, url: str, progress: Progress) -> dict[str, int]:
    """Compare number and checksum of the rows of each table; rows by table.  Raises GeresError where they
    differ."""
    import psycopg  # an extra: only those who use PostgreSQL have the driver

    tables = source.tables()
    total, done = sum(table.rows for table in tables), 0
    progress("verify", 0, total)
    with closing(psycopg.connect(url)) as connection:
        for table in tables:
            here = there = count = 0
            for _, rows in source.pieces(table, _BEFORE_ALL, _VERIFY_PIECE):
                here = (here + _checksum(rows)) & _MASK
            with connection.cursor(name="verify") as cursor:
                cursor.itersize = _VERIFY_PIECE
                cursor.execute(f"SELECT {', '.join(map(_quoted, table.columns))} FROM {_quoted(table.name)}")
                while rows := cursor.fetchmany(_VERIFY_PIECE):
                    there = (there + _checksum(rows)) & _MASK
                    count += len(rows)
            if (count, there) != (table.rows, here):
                raise GeresError(
                    f"the table {table.name} differs: {table.rows} rows there, {count} here, or not the same;"
                    " the source is as it was, begin again with an empty database"
                )
            done += count
            progress("verify", done, total)
    return {table.name: table.rows for table in tables}


def _checksum(rows: Sequence[Sequence[Any]]) -> int:
    """Of a set of rows, whatever their order."""
    return sum(int.from_bytes(blake2b(_pack(row), digest_size=8).digest(), "big") for row in rows) & _MASK


def end(tx: Tx) -> None:
    """The move is complete: servers may use the target."""
    tx.script(f"DROP TABLE {_PROGRESS}")


def _quoted(name: str) -> str:
    return f'"{name}"'
