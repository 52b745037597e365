"""Brings a database to the newest schema: numbered files, forward only, each applied once.

`NNNN.name.sql` is one text for both databases (types are translated).  An applied file that was edited
since is refused, and so is a database that a newer program has migrated.
"""

from __future__ import annotations

import hashlib
from importlib import resources

from geres.errors import Conflict
from geres.store.database import Tx
from geres.store.sql import for_postgres_schema

_VERSIONS = """CREATE TABLE IF NOT EXISTS schema_version (
    version INTEGER PRIMARY KEY, name TEXT NOT NULL, sha256 TEXT NOT NULL, applied_at BIGINT NOT NULL)"""


def migrations() -> list[tuple[int, str, str]]:
    """(number, name, text) of each migration, in order."""
    folder = resources.files("geres.store") / "migrations"
    found = []
    for path in folder.iterdir():
        if path.name.endswith(".sql"):
            number, name, _ = path.name.split(".", 2)
            found.append((int(number), name, path.read_text(encoding="utf-8")))
    return sorted(found)


def newest_version() -> int:
    """The number of the newest migration that this program has."""
    return migrations()[-1][0]


def schema_version(tx: Tx) -> int:
    """The number of the newest migration that the database has; 0 for an empty one."""
    tx.script(_VERSIONS)
    rows = tx.raw("SELECT COALESCE(MAX(version), 0) FROM schema_version")
    return int(rows[0][0])


def migrate(tx: Tx, *, now_us: int) -> list[str]:
    """Apply what is missing, in one transaction.  Returns the names applied; none means up to date.

    Raises Conflict for a database of a newer program or an applied file that was edited.
    """
    tx.lock_schema()
    current = schema_version(tx)
    known = migrations()
    if current > known[-1][0]:
        raise Conflict(
            f"the database has schema {current}, this program knows {known[-1][0]}: use the newer geres,"
            " or go back to the copy that was kept beside it",
            database=current,
            program=known[-1][0],
        )
    applied = {row[0]: row[1] for row in tx.raw("SELECT version, sha256 FROM schema_version")}
    names = []
    for number, name, text in known:
        digest = hashlib.sha256(text.encode()).hexdigest()
        if number in applied:
            if applied[number] != digest:
                raise Conflict(
                    f"migration {number} ({name}) was edited after it was applied", migration=number
                )
            continue
        tx.script(for_postgres_schema(text) if tx.dialect == "postgres" else text)
        tx.raw_run(
            "INSERT INTO schema_version (version, name, sha256, applied_at) VALUES (?, ?, ?, ?)",
            (number, name, digest, now_us),
        )
        names.append(name)
    return names
