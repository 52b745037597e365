"""The folder of a `geres up`: who may use it, who does, and what in it is ours."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from geres import config, trees
from geres.errors import Conflict, Invalid
from geres.mounts import network_file_system
from geres.sdk.discover import UpFile, is_alive, read_address


def prepare(home: Path) -> None:
    """Make the folder, for its owner alone.  Raises Invalid where it cannot hold a cluster."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = home / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Invalid(
            f"home: {home} cannot be written to ({error.strerror}); set GERES_HOME to a folder of yours",
            field="home",
        ) from None
    if kind := network_file_system(home):
        raise Invalid(
            f"home: {home} is on a network file system ({kind}), where databases and locks break: "
            f"set GERES_HOME to a local folder, like /var/tmp/geres-{os.getuid()}",
            field="home",
        )


def check_host(home: Path) -> None:
    """Raise Conflict where another host uses this home: two databases' worth of servers on one file."""
    found = read_address(home)
    if found is not None and found.host and found.host != socket.gethostname():
        raise Conflict(
            f"{home} is in use by host {found.host} since {found.started_at}: give each host a GERES_HOME "
            f"of its own, or remove {home / 'address.json'} if that one is gone for good",
            host=found.host,
        )


def lock(home: Path) -> IO[str]:
    """Take the home for one `geres up`, until the file is closed.  Raises Conflict where another has it."""
    file = open(home / "up.lock", "a+")  # noqa: SIM115 - open as long as the cluster is up
    os.fchmod(file.fileno(), 0o600)  # who may read it may also hold it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        up, address = read_up(home), read_address(home)
        who = f" (process {up.pid})" if up else ""
        where = f" at {address.url}" if address else ""
        raise Conflict(
            f"geres is up already in {home}{who}{where}; `geres status` tells, `geres down` stops it",
            home=str(home),
        ) from None
    return file


def is_locked(home: Path) -> bool:
    """True while a `geres up` has this home."""
    if not (home / "up.lock").exists():
        return False
    with open(home / "up.lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def read_up(home: Path) -> UpFile | None:
    """What the running `geres up` wrote; None where there is none."""
    import msgspec  # the SDK has loaded it already; nothing else here needs it

    try:
        return msgspec.json.decode((home / "up.json").read_bytes(), type=UpFile)
    except (OSError, msgspec.DecodeError):
        return None


def orphans(home: Path) -> list[tuple[str, int]]:
    """Parts of an earlier `geres up` that still run though their keeper is gone."""
    up, found = read_up(home), []
    if up is not None and up.host_id == config.host_id():
        found = [(name, pid) for name, pid in up.parts.items() if is_alive(pid) and _is_ours(pid)]
    return found


def ours(home: Path) -> Iterator[Path]:
    """What in the folder is ours, as far as it is there."""
    for pattern in config.OURS:
        yield from sorted(home.glob(pattern))


def remove(home: Path) -> list[Path]:
    """Remove what is ours, and the folder if nothing else is in it; what was left."""
    for path in ours(home):
        if path.is_dir() and not path.is_symlink():
            trees.remove(path, _make_writable)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        home.rmdir()
    return sorted(home.iterdir()) if home.exists() else []


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(found.st_size for found in trees.files_below(path))


def _make_writable(function: object, path: str, error: object) -> None:
    """A task may have taken the right to write from its own folder."""
    parent = os.path.dirname(path)
    os.chmod(parent, 0o700)
    if os.path.isdir(path) and not os.path.islink(path):
        os.chmod(path, 0o700)
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _is_ours(pid: int) -> bool:
    """True where the process is a part of geres: its number may belong to another by now."""
    try:
        return b"geres" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return not Path("/proc/self").exists()
