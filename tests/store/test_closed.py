"""A store that is closed, or whose disk is full, says so at once."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from geres.blobs.folder import FolderBlobs
from geres.errors import StoreFull, StoreUnavailable
from geres.store import doctor
from geres.store.database import open_database


async def test_work_for_a_closed_store_is_refused_and_does_not_wait(tmp_path: Path) -> None:
    """An agent's good-bye may come when the server has closed its store already."""
    db = open_database(f"sqlite:{tmp_path / 'geres.db'}")
    await db.run(doctor.ping)
    db.close()
    with anyio.fail_after(10), pytest.raises(StoreUnavailable, match="is closed"):
        await db.run(doctor.ping)


async def test_a_full_database_is_told_from_one_that_is_busy(tmp_path: Path) -> None:
    db = open_database(f"sqlite:{tmp_path / 'geres.db'}")
    try:
        db.call(lambda tx: tx.raw("PRAGMA max_page_count = 2"))
        with pytest.raises(StoreFull, match="make room for"):
            db.call(lambda tx: tx.script("CREATE TABLE a (x);\nCREATE TABLE b (x);\nCREATE TABLE c (x);\n"))
    finally:
        db.close()


async def test_a_blob_that_finds_no_room_leaves_nothing(tmp_path: Path) -> None:
    async def pieces():
        yield b"x"
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreFull, match="No space left on device: make room for"):
        await FolderBlobs(tmp_path / "blobs").write("outputs/1/0/1.1.stdout", pieces(), 100)
    assert not [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
