"""The databases that schedules run on, one after the other, each emptied before."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from geres.store.database import Database, open_database
from geres.store.migrate import migrate
from tests.postgres import PostgresServer


@contextlib.contextmanager
def databases(store: str, server: PostgresServer | None = None) -> Iterator[tuple[Database, Path]]:
    """A migrated database of this kind, and a folder for the journals; in memory where there is a place."""
    with contextlib.ExitStack() as stack:
        place = "/dev/shm" if Path("/dev/shm").is_dir() else None
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="geres-simulation-", dir=place)))
        if store == "sqlite":
            url = f"sqlite:{folder / 'geres.db'}"
        else:
            if server is None:
                server = PostgresServer()
                stack.callback(server.stop)
            url = stack.enter_context(server.fresh())
            name = url.partition("@/")[2].partition("?")[0]
            server.run(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
        db = open_database(url)
        stack.callback(db.close)
        db.call(migrate, now_us=1)
        yield db, folder
