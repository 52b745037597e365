"""A disk that is full: what goes first, what is said, and that no end is lost."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from geres.agent import upkeep
from geres.agent.journal import Journal, read
from geres.agent.upkeep import Upkeep
from geres.cli import home as homes
from tests.agent.world import Agent, Server, until
from tests.conftest import missing

TASK = 1 << 32
MIB = 1 << 20
END = (TASK + 1, 1, "exited", 0, None, None, None, 1, 2, None, (3, b"out", None), None, None, None, [])


def test_an_end_finds_room_in_the_reserve_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    reserve = tmp_path / "journal.reserve"
    journal = Journal(str(path), "boot")
    journal.rewrite([], [(TASK + 1, 1, 7, 1)], [])
    journal.hold_reserve()
    assert reserve.stat().st_blocks * 512 >= 8 * MIB
    write = os.write

    def write_where_there_is_room(fd: int, data: bytes) -> int:
        if reserve.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr(os, "write", write_where_there_is_room)
    journal.ended.append(END)
    journal.flush()
    assert journal.broken
    journal.rewrite([], [], [END])

    assert not journal.broken
    assert not reserve.exists()
    assert read(str(path)).ended == {(TASK + 1, 1): END}
    journal.hold_reserve()
    assert reserve.exists(), "it is held again where there is room"


def nest(folder: Path, levels: int = 1500) -> None:
    """A file below very many folders, one in the other."""
    place = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=place)
        inner = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    file = os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=place)
    os.write(file, b"x" * MIB)
    os.close(file)
    os.close(place)


def test_folders_nested_deeper_than_python_looks_are_measured_and_removed(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: subprocess.run(["rm", "-rf", str(tmp_path)]))  # pytest cannot either
    tasks, home = tmp_path / "tasks", tmp_path / "home"
    for name in ("1/1", "1/2", "2/1", ".lost-1"):
        (tasks / name / "wd").mkdir(parents=True)
        (tasks / name / ".retain").write_text("0\n")
        if name != "1/2":
            nest(tasks / name / "wd")
    (home / "agent").mkdir(parents=True)
    nest(home / "agent")

    assert upkeep._disk_usage(str(tasks / "1" / "1"), 100 * MIB) >= MIB
    upkeep._sweep(tasks, 1.0)
    assert list(tasks.iterdir()) == []
    assert homes.size_of(home / "agent") == MIB
    assert homes.remove(home) == []
    assert not home.exists()


def test_a_journal_that_cannot_be_replaced_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    journal = Journal(str(path), "boot")
    journal.rewrite([], [], [END])

    def refuse(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", refuse)
        journal.rewrite([], [], [])

    assert journal.broken
    assert read(str(path)).ended == {(TASK + 1, 1): END}
    assert [one.name for one in tmp_path.iterdir()] == ["journal"]
    journal.rewrite([], [], [])
    assert not journal.broken


class Disk:
    """A disk of 1 GiB for what lies in a folder, of which others use as much as the test says."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.others = 0
        self._folder = folder
        monkeypatch.setattr(os, "statvfs", self._look)

    def _look(self, path: object) -> SimpleNamespace:
        used = sum(one.stat().st_blocks * 512 for one in self._folder.rglob("*") if one.is_file())
        return SimpleNamespace(f_frsize=1, f_blocks=1 << 30, f_bavail=(1 << 30) - used - self.others)


async def test_kept_folders_go_first_then_large_outputs_and_never_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upkeep = Upkeep(tmp_path, str(tmp_path / "no.sock"))
    disk = Disk(tmp_path, monkeypatch)
    dropped: list[tuple[tuple[int, int], str]] = []
    full: list[bool] = []
    tasks = tmp_path / "tasks" / "1"

    def left(number: int, age_seconds: float) -> Path:
        (tasks / str(number) / "wd").mkdir(parents=True)
        (tasks / str(number) / "wd" / "file").write_bytes(b"x" * 4 * MIB)
        mark = tasks / str(number) / ".retain"
        mark.write_text(f"{time.time() + 1000}\n")
        os.utime(mark, (time.time() - age_seconds,) * 2)
        return tasks / str(number)

    def waiting(number: int, size: int) -> Path:
        (tasks / str(number) / "out").mkdir(parents=True)
        path = tasks / str(number) / "out" / "stdout"
        path.write_bytes(b"x" * size)
        upkeep.keep((number, 1), str(path.parent.parent), 60.0, {"stdout": str(path)}, 1 << 30)
        return path

    async def look() -> None:
        upkeep.make_room(lambda key, stream: dropped.append((key, stream)), full.append)
        assert upkeep._looking is not None
        upkeep._looking.result(20)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    older, newer = left(1, 500), left(2, 100)
    large, small = waiting(3, 8 * MIB), waiting(4, 2 * MIB)
    low, little = (1 << 30) // 10, (1 << 30) // 20

    await look()
    assert (older.exists(), dropped, full) == (True, [], [False])

    disk.others = (1 << 30) - 18 * MIB - low + 2 * MIB  # 2 MiB too few: one folder is enough
    await look()
    assert (older.exists(), newer.exists(), large.exists()) == (False, True, True)

    disk.others = (1 << 30) - little - 8 * MIB  # without both folders there are still 2 MiB too few
    await look()
    assert (newer.exists(), large.exists(), small.exists()) == (False, False, True)
    assert dropped == [((3, 1), "stdout")]

    disk.others = 1 << 30  # nothing of ours is left to help
    await look()
    assert dropped[1:] == [((4, 1), "stdout")]
    assert full[-1] is True
    disk.others = 0
    await look()
    assert full[-1] is False
    upkeep.close()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 96 MiB."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", folder], capture_output=True
        )
        if done.returncode:
            missing("a file system of its own can be mounted by root alone")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


async def test_a_node_with_a_full_disk_takes_nothing_new_and_tells_every_end(
    server: Server, small_disk: Path, tmp_path: Path
) -> None:
    go = tmp_path / "go"

    def fill() -> None:
        with contextlib.suppress(OSError), (small_disk / "filler").open("ab", buffering=0) as filler:
            while True:
                filler.write(b"x" * MIB)

    agent = Agent(small_disk / "home", server.url)
    try:
        await server.connected()
        server.acknowledges = False
        server.refuses_uploads = True
        await server.assign(server.spec("seq", "1000000"), 1)
        await server.until(lambda: agent.supervisor()["ended"])
        await server.assign(server.spec(shell=f"until [ -e {go} ]; do sleep 0.02; done; exit 5", cpus=0.1), 2)
        await server.start_of(2)

        await server.until(lambda: fill() or server.heartbeats[-1].full)  # what is freed is filled again
        await server.assign(server.spec("true"), 3)
        assert (await server.end_of(3)).outcome == "given_back"
        go.touch()
        assert (await server.end_of(2)).exit_code == 5
        agent.kill()
        pid = agent.supervisor()["pid"]
        os.kill(pid, 9)
        until(lambda: not agent.supervisor())
        fill()
        server.ended.clear()
        server.refuses_uploads = False
        agent.start()

        assert (await server.end_of(2)).exit_code == 5
        large = await server.end_of(1)
        assert (large.outcome, large.stdout[-8:]) == ("succeeded", b"1000000\n")
        assert "only the last of its stdout is kept" in (large.message or "")
        (small_disk / "filler").unlink()
        await server.until(lambda: not server.heartbeats[-1].full)
        assert (await server.run(4, "true")).outcome == "succeeded"
    finally:
        agent.end()
    assert "Traceback" not in agent.log + agent.supervisor_log
