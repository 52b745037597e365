"""Brings a database to the newest schema: numbered files, forward only, each applied once.

A migration is one text for both databases (types are translated), or two.  `NNNN.name.sql` is applied at
once, while servers with older code may be at work: it only adds, with defaults; `NNNN.name.postgres.sql` is
what follows it on PostgreSQL alone.  `NNNN.name.after.sql` is for what older code would stumble over
(dropping, tightening) and is applied when no server with older code is there.  An applied file that was
edited since is refused, and so is a database that a newer program has migrated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

from geres.errors import Conflict
from geres.store.database import Tx
from geres.store.sql import for_postgres_schema

_COLUMNS = "version INTEGER PRIMARY KEY, name TEXT NOT NULL, sha256 TEXT NOT NULL, applied_at BIGINT NOT NULL"
_VERSIONS, _AFTER = "schema_version", "schema_after"  #: the tables of what was applied, at once and after


class Migration(NamedTuple):
    number: int
    name: str
    text: str
    after: str = ""  #: for when no older code is at work; empty for most
    postgres: str = ""  #: in addition to `text`, on PostgreSQL


def migrations() -> list[Migration]:
    """All that this program has, in order."""
    texts: dict[tuple[int, str], dict[str, str]] = {}
    for path in (resources.files("geres.store") / "migrations").iterdir():
        if path.name.endswith(".sql"):
            number, name, *part = path.name.removesuffix(".sql").split(".")
            texts.setdefault((int(number), name), {})[".".join(part)] = path.read_text(encoding="utf-8")
    return [
        Migration(*key, parts[""], parts.get("after", ""), parts.get("postgres", ""))
        for key, parts in sorted(texts.items())
    ]


def newest_version() -> int:
    """The number of the newest migration that this program has."""
    return migrations()[-1].number


def schema_version(tx: Tx) -> int:
    """The number of the newest migration that the database has; 0 for an empty one."""
    return max(_applied(tx, _VERSIONS), default=0)


def known_version(tx: Tx) -> int:
    """`schema_version` of a database that was migrated before; it only reads."""
    return int(tx.raw(f"SELECT COALESCE(MAX(version), 0) FROM {_VERSIONS}")[0][0])


def migrate(tx: Tx, *, now_us: int, known: Sequence[Migration] | None = None) -> list[str]:
    """Apply what is missing and may be applied at once, in one transaction.

    Returns the names applied; none means up to date.  Raises Conflict for a database of a newer program or an
    applied file that was edited.  `known` is for tests.
    """
    tx.lock_schema()
    known = migrations() if known is None else known
    applied = _applied(tx, _VERSIONS)
    current, newest = max(applied, default=0), known[-1].number
    if current > newest:
        raise Conflict(
            f"the database has schema {current}, this program knows {newest}: use the newer geres,"
            " or go back to the copy that was kept beside it",
            database=current,
            program=newest,
        )
    names = []
    for one in known:
        text = one.text + (one.postgres if tx.dialect == "postgres" else "")
        if _apply(tx, _VERSIONS, one.number, one.name, text, applied, now_us):
            names.append(one.name)
    return names


def finish(
    tx: Tx, server_id: int | None, *, now_us: int, known: Sequence[Migration] | None = None
) -> tuple[list[str], bool]:
    """Apply the second parts that no server with older code stands against.

    `server_id` is the server that calls, None where it is the only one that there can be.  Returns the names
    applied, and True where others have to wait.
    """
    known = migrations() if known is None else known
    if not any(one.after for one in known):
        return [], False
    tx.lock_schema()
    oldest = known[-1].number
    if server_id is not None:
        tx.raw_run("UPDATE server SET schema_version = ? WHERE id = ?", (oldest, server_id))
        [(least,)] = tx.raw(f"SELECT MIN(schema_version) FROM server WHERE lease_until > {now_us:d}")
        oldest = min(oldest, least if least is not None else oldest)
    applied = _applied(tx, _AFTER)
    names, waits = [], False
    for one in known:
        if one.after and one.number <= oldest:
            if _apply(tx, _AFTER, one.number, one.name, one.after, applied, now_us):
                names.append(one.name)
        elif one.after and one.number not in applied:
            waits = True
    return names, waits


def end_older_connections(tx: Tx) -> int:
    """Have other servers connect again after a migration; their number of connections.

    On PostgreSQL a statement that selects all columns and was prepared before one was added fails for ever
    (`cached plan must not change result type`).  What is being done at this moment is done again.
    """
    if tx.dialect != "postgres":
        return 0
    ended = tx.raw(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        " AND usename = current_user AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        " AND application_name IN ('', 'geres')"  # not what dumps it, and not a person's psql
    )
    return len(ended)


def _applied(tx: Tx, table: str) -> dict[int, str]:
    """Number and digest of what was applied."""
    tx.script(f"CREATE TABLE IF NOT EXISTS {table} ({_COLUMNS})")
    return {row[0]: row[1] for row in tx.raw(f"SELECT version, sha256 FROM {table}")}


def _apply(
    tx: Tx, table: str, number: int, name: str, text: str, applied: dict[int, str], now_us: int
) -> bool:
    """Apply one text and note it; False where that was done before."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    if number in applied:
        if applied[number] != digest:
            raise Conflict(f"migration {number} ({name}) was edited after it was applied", migration=number)
        return False
    tx.script(for_postgres_schema(text) if tx.dialect == "postgres" else text)
    tx.raw_run(
        f"INSERT INTO {table} (version, name, sha256, applied_at) VALUES (?, ?, ?, ?)",
        (number, name, digest, now_us),
    )
    return True
