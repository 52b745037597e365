"""Files that are whole or not there, for their owner alone; and what is no database."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from geres.errors import Invalid

_SQLITE_HEADER = b"SQLite format 3\0"


def write_private(path: Path, text: str) -> None:
    """Write a file for its owner alone: beside, to the disk, and then moved into place."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def sync_folder(path: Path) -> None:
    """Have what was moved into this folder be there after a power cut, too."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def check_database(path: Path) -> None:
    """Raise Invalid where the file is there and no database."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_SQLITE_HEADER))
    except FileNotFoundError:
        return
    except OSError as error:
        raise Invalid(f"store: {path} cannot be read: {error.strerror}", field="store") from None
    if head and head != _SQLITE_HEADER:
        raise Invalid(
            f"store: {path} is no database of geres; move it away, or name another --store", field="store"
        )
