"""What is done with a store while no server, or beside a server: back up, restore, check, move."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import sqlite3
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from geres import config
from geres.blobs.folder import FolderBlobs
from geres.errors import Conflict, Invalid, NotFound, StoreUnavailable
from geres.files import sync_folder
from geres.server import opening
from geres.server.clock import wall_us
from geres.store import invariants, migrate, move
from geres.store.database import SqliteTx, Tx, open_database
from geres.store.move import Progress, Source

#: What of a home is backed up beside the database: secrets, and outputs.
_FILES = ("token", "agent.token", "tls.pem", "node.json")
_BLOBS = "blobs"
_DATABASE = "geres.db"
_BLOB_PIECE = 10_000


def sqlite_path(url: str, field: str) -> Path:
    """The file of `sqlite:PATH`.  Raises Invalid for another store, NotFound where there is none."""
    if not url.startswith("sqlite:"):
        raise Invalid(f"{field}: {url!r} is no sqlite:PATH", field=field)
    path = Path(url.removeprefix("sqlite:")).expanduser().absolute()
    if not path.is_file():
        raise NotFound(f"{path}: there is no such file", path=str(path))
    return path


def back_up(url: str, home: Path, file: Path) -> dict[str, int]:
    """Write a tar archive with a snapshot of the SQLite store, its blobs and the home's secrets.

    A server may be at work meanwhile.  The archive is there as a whole or not at all, readable by its owner
    alone.  Returns its `bytes`, and how many `blobs` it holds.
    """
    if not url.startswith("sqlite:"):
        raise Invalid(
            "this store is PostgreSQL: back it up with `pg_dump -Fc`, and the folder of blobs with your own"
            " means; docs/operations/backup.md has the commands",
            field="store",
        )
    path = sqlite_path(url, "store")
    if file.exists():
        raise Conflict(f"{file} exists already; name another file")
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with tempfile.TemporaryDirectory(dir=file.absolute().parent, prefix=".geres-backup-") as folder:
            snapshot = Path(folder) / _DATABASE
            _snapshot(path, snapshot)
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                with tarfile.open(fileobj=out, mode="w") as archive:
                    archive.add(snapshot, _DATABASE)
                    blobs = _add_files(archive, home)
                out.flush()
                os.fsync(out.fileno())
        part.replace(file)
        sync_folder(file.absolute().parent)
    except OSError as error:
        raise StoreUnavailable(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return {"bytes": file.stat().st_size, "blobs": blobs}


def _snapshot(path: Path, target: Path) -> None:
    try:
        with (
            contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(target)) as copy,
        ):
            source.backup(copy)  # in one step: in pieces it would begin again whenever a server writes
            copy.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        raise StoreUnavailable(f"{path} cannot be copied into {target.parent.parent}: {error}") from error
    target.chmod(0o600)


def _add_files(archive: tarfile.TarFile, home: Path) -> int:
    """Blobs after the database: what a row names was there before the row.  How many."""
    count = 0
    for name in _FILES:
        if (home / name).is_file():
            archive.add(home / name, name)
    folder = home / _BLOBS
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # forgotten meanwhile, and so not in the snapshot's care
            if path.is_file() and not path.is_symlink():
                content = path.read_bytes() if path.stat().st_size < 1 << 20 else None
                _add(archive, path, f"{_BLOBS}/{path.relative_to(folder)}", content)
                count += 1
    return count


def _add(archive: tarfile.TarFile, path: Path, name: str, content: bytes | None) -> None:
    if content is None:
        archive.add(path, name)
        return
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(content), 0o600, int(time.time())
    archive.addfile(info, io.BytesIO(content))


def restore(file: Path, home: Path) -> list[str]:
    """Unpack a backup into a home that has no database.  Returns the names at its top.

    Raises Conflict where there is one, Invalid for a file that is no backup, StoreUnavailable where the home
    cannot be written.  What was cut off can be repeated: the database comes last, and as a whole.
    """
    database = home / _DATABASE
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with opening.held(database):
            _check_no_database(database)
            with tarfile.open(file) as archive:
                return _unpack(archive, file, home)
    except FileNotFoundError:
        raise NotFound(f"{file}: there is no such file", path=str(file)) from None
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Invalid(f"{file} cannot be read as a tar archive: {error}") from None
    except OSError as error:
        raise StoreUnavailable(
            f"{file} could not be restored into {home}: {error.strerror or error}; mend that and try again"
        ) from error


def _check_no_database(database: Path) -> None:
    """Raise Conflict where there is one, or the log of one, which SQLite would add to the restored file."""
    for there in (database, *(database.with_name(f"{_DATABASE}{end}") for end in ("-wal", "-journal"))):
        if there.exists():
            raise Conflict(
                f"{there} exists already; `geres down`, move {_DATABASE}, {_DATABASE}-wal and {_DATABASE}-shm"
                " away together, or restore into another home"
            )


def _unpack(archive: tarfile.TarFile, file: Path, home: Path) -> list[str]:
    """All for this account alone, whatever the archive says, and the database last."""
    known = {_DATABASE, _BLOBS, *_FILES}
    members = archive.getmembers()
    if not any(one.name == _DATABASE for one in members):
        raise Invalid(f"{file} is no backup of `geres store backup`: it holds no {_DATABASE}")
    for one in members:
        if one.name.split("/")[0] not in known or not one.isfile():
            raise Invalid(f"{file} is no backup of `geres store backup`: it holds {one.name[:80]!r}")
    part = home / f"{_DATABASE}.part"
    umask = os.umask(0o077)
    try:
        for one in sorted(members, key=lambda one: one.name == _DATABASE):
            name = part.name if one.name == _DATABASE else one.name
            archive.extract(one.replace(name=name, mode=0o600, deep=False), home, filter="data")
        os.sync()  # all else is on the disk before the database is there
        opening.moved_note(home / _DATABASE).unlink(missing_ok=True)  # it was of another file
        part.replace(home / _DATABASE)
        sync_folder(home)
    finally:
        os.umask(umask)
        part.unlink(missing_ok=True)
    return sorted({one.name.split("/")[0] for one in members})


def check(url: str, home: Path) -> Iterator[tuple[str, str]]:
    """(kind, sentence) of all that is wrong with a store: damaged pages, facts that contradict each other,
    outputs that are gone.  A server may be at work meanwhile."""
    if url.startswith("sqlite:"):
        path = sqlite_path(url, "store")
        damage = list(_damage(path))
        yield from damage
        if damage:
            return
    with _reading(url) as tx:
        version, newest = migrate.known_version(tx), migrate.newest_version()
        if version != newest:
            yield "schema", f"the store has schema {version}, this program {newest}; a server migrates it"
            return
        for finding in invariants.check_invariants(tx):
            yield finding.kind, finding.text
        blobs, after = FolderBlobs(home / _BLOBS), ""
        while keys := [row[0] for row in tx.rows("blobs_named", after=after, limit=_BLOB_PIECE)]:
            for key in keys:
                if not blobs.path(key).is_file():
                    yield "blob", f"the output {key} is named in the store and not in {blobs.folder}"
            after = keys[-1]


@contextlib.contextmanager
def _reading(url: str) -> Iterator[Tx]:
    """A view of the store as it is at this moment, which keeps nobody from writing."""
    if not url.startswith("sqlite:"):
        from geres.store.postgres import reading  # an extra: only those who use it need the driver

        with reading(url) as tx:
            yield tx
        return
    path = sqlite_path(url, "store")
    opened = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    with contextlib.closing(opened) as connection:
        connection.execute("BEGIN")
        yield SqliteTx(connection)


def _damage(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            for (line,) in connection.execute("PRAGMA integrity_check(20)"):
                if line != "ok":
                    yield "damage", line
            for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
                yield "damage", f"row {row} of {table} refers to a row of {parent} that is not there"
    except sqlite3.Error as error:
        yield "damage", f"{path} cannot be read: {error}"


def move_store(source_url: str, target_url: str, progress: Progress) -> dict[str, int]:
    """Move a SQLite store to PostgreSQL; where a move was begun, go on with it.  Rows by table.

    The source is left as it is, but no server starts on it from then on.  Raises Conflict while one uses it,
    or where the target is in use.
    """
    path = sqlite_path(source_url, "from")
    _check_target_url(target_url)
    with opening.held(path), contextlib.closing(Source(path)) as source:
        move.check_source(source)
        target = open_database(target_url)
        try:
            target.call(move.check_target, source)
            target.call(move.begin, source, now_us=wall_us())
            move.copy(source, target, progress)
            rows = move.verify(source, target_url, progress)
            opening.note_moved(path, opening.without_password(target_url))
            target.call(move.end)
        finally:
            target.close()
    return rows


def plan_move(source_url: str, target_url: str) -> tuple[dict[str, int], bool]:
    """What a move would do: rows by table, and True where it would go on with one that was begun."""
    path = sqlite_path(source_url, "from")
    _check_target_url(target_url)
    with opening.held(path), contextlib.closing(Source(path)) as source:
        move.check_source(source)
        target = open_database(target_url)
        try:
            begun = target.call(move.check_target, source)
        finally:
            target.close()
        return {table.name: table.rows for table in source.tables()}, begun


def _check_target_url(url: str) -> None:
    if not url.startswith(("postgresql://", "postgres://")):
        raise Invalid(f"to: {url!r} is no postgresql://USER@HOST/DATABASE", field="to")


def default_url() -> str:
    """The store of this home, as the server's settings have it."""
    return opening.store_url(config.load().server.store, config.home())
