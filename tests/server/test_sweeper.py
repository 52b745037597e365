"""Outputs that nothing names are removed from the disk, and no others."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, cast

from geres.api.context import Context
from geres.blobs.folder import FolderBlobs, output_key
from geres.server.loops import Sweeper
from geres.store.database import SqliteDatabase
from tests.store.world import World, ended, key


async def test_what_an_attempt_left_that_was_given_away_is_swept_after_a_safe_time(tmp_path: Path) -> None:
    db = SqliteDatabase(tmp_path / "geres.db")
    world, blobs = World(db), FolderBlobs(tmp_path / "blobs")
    [task] = world.submit()
    node = world.connect()
    world.assign(node)
    kept, stale = (output_key(key(task), number, "stdout") for number in (1, 2))
    world.turn(node, 0, ended=[ended(task, 1, stdout_blob=kept)])
    cut_off = f"{stale}.00ff00ff.part"
    fresh = output_key(key(task), 3, "stdout")
    foreign = "outputs/notes.txt"

    def write(name: str, age_seconds: float) -> None:
        path = blobs.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        os.utime(path, (time.time() - age_seconds,) * 2)

    for name in (kept, stale, cut_off, foreign):
        write(name, 7200)
    write(fresh, 60)
    empty = blobs.folder / "outputs" / "77" / "0"
    empty.mkdir(parents=True)
    for folder in (empty, empty.parent):
        os.utime(folder, (time.time() - 7200,) * 2)
    write(older_than_the_store := output_key(key(task), 4, "stdout"), time.time() - world.now_us / 1e6 + 1)

    nothing = cast(Any, None)
    sweeper = Sweeper(Context(db, lambda: world.now_us, nothing, nothing, blobs))
    for _ in range(3):
        await sweeper.step()

    left = {path.relative_to(blobs.folder).as_posix() for path in blobs.folder.rglob("*") if path.is_file()}
    assert left == {kept, fresh, foreign, older_than_the_store}
    assert not empty.exists()
    db.close()
