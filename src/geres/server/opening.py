"""Opens the store of a server: checks the place, takes the lock, copies, migrates, makes the local tokens."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pwd
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from geres.errors import Conflict, Invalid, StoreUnavailable
from geres.files import check_database, sync_folder, write_private
from geres.mounts import network_file_system
from geres.store import migrate, move, servers, sharing, tokens, unreadable
from geres.store.database import Database, Locked, Tx, open_database
from geres.store.servers import Introduction
from geres.store.sql import Dialect

log = logging.getLogger("geres.server.opening")

TENANT = "default"
_LOCK_LOOK_SECONDS = 0.01
_LOCKED_SECONDS = 40.0  #: less than whoever started us waits
_LOCKED_PAUSE_SECONDS = 3.0  #: for others, who waited behind us


class Opened:
    """An open store, and the lock that keeps other servers off its file.  Close it last."""

    def __init__(self, db: Database, dialect: Dialect, lock: IO[str] | None) -> None:
        self.db, self.dialect, self._lock = db, dialect, lock

    def close(self) -> None:
        self.db.close()
        if self._lock is not None:
            self._lock.close()


def store_url(asked: str, home: Path) -> str:
    """The URL of the store: as asked for, else geres.db in the home."""
    return asked or f"sqlite:{home / 'geres.db'}"


def without_password(url: str) -> str:
    """The URL of a store as it may be shown."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return url.replace(f":{parts.password}@", ":...@", 1)


def open_store(url: str, *, now_us: int, patience_seconds: float = 0.0) -> Opened:
    """Open and migrate; a server that has the file gets `patience_seconds` to let go of it.

    Raises Invalid for a bad place or file, Conflict where another server has it.
    """
    if not url.startswith("sqlite:"):
        return _migrated(Opened(open_database(url), "postgres", None), now_us)
    path = Path(url.removeprefix("sqlite:")).absolute()
    _check_place(path)
    _refuse_moved(path)
    lock = _lock(path, patience_seconds)
    try:
        check_database(path)
        keep_copy(path)
        return _migrated(Opened(open_database(f"sqlite:{path}"), "sqlite", lock), now_us)
    except BaseException:
        lock.close()
        raise


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep servers off a SQLite file for a while.  Raises Conflict where one has it."""
    check_database(path)
    with contextlib.closing(_lock(path)):
        yield


def check_file(url: str) -> None:
    """Raise what `open_store` would say of the place and the schema of a SQLite file that is in use."""
    path = Path(url.removeprefix("sqlite:")).absolute()
    _check_place(path)
    _refuse_moved(path)
    check_database(path)
    with contextlib.closing(_connect_read_only(path)) as source:
        current = _version_of(source, path)
        _check_version(current, path)
    if current < migrate.newest_version() and shutil.disk_usage(path.parent).free < path.stat().st_size:
        raise _no_copy(path, "the disk has no room for it")


def _migrated(opened: Opened, now_us: int) -> Opened:
    try:
        opened.db.call(move.refuse_unfinished)
        applied = _migrate(opened.db, now_us)
        if applied and applied[0] != migrate.migrations()[0].name:  # not where it was empty
            opened.db.call(migrate.end_older_connections)
        for sentence in opened.db.call(unreadable.set_aside, now_us=now_us):
            log.error("%s", sentence)
    except BaseException:
        opened.close()
        raise
    return opened


def _migrate(db: Database, now_us: int) -> list[str]:
    """Migrate between what others do, for a while; other servers go on meanwhile.  Raises Locked."""
    until, told = time.monotonic() + _LOCKED_SECONDS, False
    while True:
        try:
            return db.call(migrate.migrate, now_us=now_us)
        except Locked as error:
            if time.monotonic() > until:
                raise Locked(f"the store cannot be migrated: {error}; is a dump being made of it?") from error
            if not told:
                log.warning("the migration waits: %s; is a dump being made of the store?", error)
            told = True
            time.sleep(_LOCKED_PAUSE_SECONDS)


def _check_place(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Invalid(f"store: {path.parent} cannot be made: {error.strerror}", field="store") from None
    if kind := network_file_system(path):
        raise Invalid(
            f"store: {path} is on a network file system ({kind}), where databases and locks break: put it"
            f" on a local disk, like /var/tmp/geres-{os.getuid()}, or use PostgreSQL",
            field="store",
        )


def note_moved(path: Path, place: str) -> None:
    """Keep servers off a file whose store was moved to `place`, now and after the next reboot."""
    write_private(moved_note(path), f"{place}\n")


def _refuse_moved(path: Path) -> None:
    """Raise Conflict for a store that was moved: two that go on from the same tasks would run them twice."""
    note = moved_note(path)
    try:
        place = note.read_text().strip()
    except FileNotFoundError:
        return
    except OSError as error:
        place = f"another place ({note} cannot be read: {error.strerror})"
    raise Conflict(
        f"{path} was moved to {place}: start with that --store, or set server.store in geres.toml; to go back"
        f" to this file and lose what was done there, remove {note}",
        path=str(path),
    )


def moved_note(path: Path) -> Path:
    """The file beside a database that says where its store was moved to."""
    return path.with_name(f"{path.name}.moved")


def _lock(path: Path, patience_seconds: float = 0.0) -> IO[str]:
    """A lock beside the file: a lock on the file itself would meddle with SQLite's own."""
    until = time.monotonic() + patience_seconds
    try:
        file = open(f"{path}.lock", "a+")  # noqa: SIM115 - open as long as the server runs
    except OSError as error:
        raise Invalid(f"store: {path} cannot be written: {error.strerror}", field="store") from None
    with contextlib.suppress(OSError):
        os.fchmod(file.fileno(), 0o600)  # who may read it may also hold it
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            if time.monotonic() < until:
                time.sleep(_LOCK_LOOK_SECONDS)
                continue
        file.close()
        raise Conflict(
            f"another server uses {path}; a SQLite file serves one server: stop that one, or use PostgreSQL",
            path=str(path),
        )


def keep_copy(path: Path) -> Path | None:
    """Copy a database that is about to be migrated to `PATH.schema-N`.  None where there is nothing to keep.

    Raises Conflict, naming the copies there are, for a database of a newer program.
    """
    if not path.exists() or path.stat().st_size == 0:
        return None
    with contextlib.closing(_connect_read_only(path)) as source:
        current = _version_of(source, path)
        _check_version(current, path)
        if current in (0, migrate.newest_version()):
            return None
        copy = path.with_name(f"{path.name}.schema-{current}")
        part = copy.with_name(f"{copy.name}.part")
        try:
            part.unlink(missing_ok=True)
            with contextlib.closing(sqlite3.connect(part)) as target:
                source.backup(target)
            part.chmod(0o600)
            part.replace(copy)
            sync_folder(copy.parent)
        except (sqlite3.Error, OSError) as error:
            part.unlink(missing_ok=True)
            raise _no_copy(path, str(error)) from error
        return copy


def _no_copy(path: Path, why: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"no copy of {path} can be kept before its migration ({why}): make as much room again on that disk;"
        " nothing was changed"
    )


def _connect_read_only(path: Path) -> sqlite3.Connection:
    try:
        return sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    except sqlite3.Error as error:
        raise StoreUnavailable(f"the database {path} cannot be opened: {error}") from error


def _check_version(current: int, path: Path) -> None:
    newest = migrate.newest_version()
    if current > newest:
        copies = sorted(str(copy) for copy in path.parent.glob(f"{path.name}.schema-*"))
        kept = f"; copies of older ones: {', '.join(copies)}" if copies else ""
        raise Conflict(
            f"{path} has schema {current}, this program knows {newest}: use the newer geres{kept}",
            database=current,
            program=newest,
        )


def _version_of(connection: sqlite3.Connection, path: Path) -> int:
    """The version of its schema; 0 for an empty database.  Raises Invalid for one that is not of geres."""
    try:
        tables = {
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        if "schema_version" in tables:
            found = connection.execute("SELECT COALESCE(MAX(version), 0) FROM schema_version").fetchone()
            return int(found[0])
    except sqlite3.DatabaseError as error:
        raise Invalid(
            f"store: {path} cannot be read as a database ({error}); move it away, or name another --store",
            field="store",
        ) from error
    if tables:
        raise Invalid(
            f"store: {path} is the database of another program; name another --store", field="store"
        )
    return 0


def ensure_token_file(path: Path) -> str:
    """The token in the file; it is made, readable by its owner alone, where there is none."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        try:
            token = path.read_text().strip()
        except FileNotFoundError:
            pass
        else:
            if token:
                return token
            path.unlink(missing_ok=True)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        part.touch(0o600)
        part.write_text(secrets.token_urlsafe(32) + "\n")
        try:
            os.link(part, path)  # never replaces one that another process has just made
        except FileExistsError:
            pass
        finally:
            part.unlink()


def introduce(tx: Tx, *, admin: str, node: str, me: Introduction, lease_us: int) -> tuple[int, Introduction]:
    """Make the tenant and the local tokens known, and register the server.

    Returns (tenant id, the introduction with the id that the server got).
    """
    now_us = me.started_us
    tenant_id = sharing.ensure_tenant(tx, TENANT, now_us=now_us)
    tokens.ensure_token(tx, admin, tenant_id=tenant_id, subject=account(), role="admin", now_us=now_us)
    tokens.ensure_token(tx, node, tenant_id=tenant_id, subject="node", role="node", now_us=now_us)
    return tenant_id, servers.register(tx, me, lease_us=lease_us)


def account() -> str:
    """The name of the account that this process runs as, whatever the environment says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # an account without a name, in a container
        return str(os.getuid())
