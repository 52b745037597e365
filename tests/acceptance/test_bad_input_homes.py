"""Homes that are taken, spoilt, elsewhere or oddly named: `geres up` says so and leaves all as it was."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from geres.mounts import network_file_system
from tests.acceptance.harm import unharmed
from tests.cluster import GERES, Cluster, clean_environment

MOUNTS = r"""21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:26 / /proc rw - proc proc rw
40 21 0:40 / /net rw - nfs4 server:/export rw
41 40 8:2 / /net/local rw - xfs /dev/sdb1 rw
42 21 0:42 / /media/with\040blank rw - cifs //server/share rw
43 21 0:43 / /media/ünï rw - fuse.sshfs host: rw
44 21 0:44 / /twice rw - nfs server:/old rw
45 21 0:45 / /twice rw - tmpfs tmpfs rw
46 21 0:46 / /nets rw - btrfs /dev/sdc rw
"""


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="geres-bad-") as folder:
        yield Path(folder) / "home"


def geres(home: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(GERES), *words],
        env=clean_environment(home, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def assert_not_up(home: Path, done: subprocess.CompletedProcess[str], status: int, *told: str) -> None:
    """Refused in one sentence, and nothing is left running."""
    lines = [line for line in done.stderr.splitlines() if "you are root" not in line]
    assert done.returncode == status, done.stderr
    assert len(lines) == 1, done.stderr
    for word in told:
        assert word in lines[0]
    assert geres(home, "status").returncode == 7


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me", None),
        ("/net", "nfs4"),
        ("/net/home/me/.local/share/geres", "nfs4"),
        ("/net/local/geres", None),
        ("/nets/me", None),
        ("/media/with blank/geres", "cifs"),
        ("/media/ünï/geres", "fuse.sshfs"),
        ("/twice/geres", None),
    ],
)
def test_network_file_systems_are_known_by_their_mounts(path: str, kind: str | None) -> None:
    assert network_file_system(Path(path), MOUNTS) == kind


def test_the_mounts_of_this_machine_can_be_read(tmp_path: Path) -> None:
    """Nothing here is on a network; a path that does not exist yet is asked about too."""
    assert network_file_system(tmp_path / "not" / "there") is None
    assert network_file_system(Path("/proc/self")) is None


def test_a_second_up_on_the_same_home_names_the_first(cluster: Cluster) -> None:
    with unharmed(cluster, stores_nothing=True):
        for words in (["up"], ["up", "--detach"], ["up", "--port", "0"]):
            done = cluster.run(*words)
            assert done.returncode == 5
            assert "geres is up already" in done.stderr
            assert cluster.url in done.stderr
            assert "geres down" in done.stderr
        server = cluster.run("server", "--port", "0")
        assert server.returncode == 5
        assert "another server uses" in server.stderr


def test_a_port_in_use_is_named_and_nothing_is_left(cluster: Cluster, home: Path) -> None:
    with unharmed(cluster, stores_nothing=True):
        told = (f"port {cluster.port}", "choose another --port")
        assert_not_up(home, geres(home, "up", "--detach", "--port", str(cluster.port)), 5, *told)
        done = geres(home, "server", "--port", str(cluster.port))
        assert done.returncode == 5
        assert told[0] in done.stderr
    assert not (home / "geres.db").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--port", "99999"], "--port"),
        (["--cpus", "-1"], "cpus"),
        (["--cpus", "0"], "cpus"),
        (["--memory", "much"], "memory"),
        (["--slots", "-1"], "slots"),
        (["-r", "a"], "resources"),
        (["--label", "a"], "labels"),
        (["--name", "a b\n"], r"'a b\n' cannot name a node"),
        (["--pool", "1.2"], "'1.2' cannot name a pool"),
        (["--key", "k.pem"], "name its file with --certificate"),
        (["--host", "192.0.2.1", "--insecure"], "192.0.2.1 is no address of this machine"),
        (["--store", "mysql:x"], "'mysql:x' is no store"),
        (["--store", "sqlite:/tmp"], "/tmp cannot be read"),
        (["--bogus"], "--bogus"),
    ],
    ids=" ".join,
)
def test_a_bad_option_of_up_is_named(home: Path, words: list[str], told: str) -> None:
    assert_not_up(home, geres(home, "up", "--detach", *words), 2, told)
    assert not (home / "geres.db").exists()


def test_a_store_that_cannot_be_had_is_named(home: Path) -> None:
    done = geres(home, "up", "--detach", "--store", "sqlite:/proc/no/such/file")
    assert_not_up(home, done, 7, "the server did not start", "/proc/no/such")


SPOILT = {
    "text": (b"this is no database, but what somebody wrote\n" * 200, 2),
    "half a database": (b"SQLite format 3\0" + bytes(range(256)) * 80, 7),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_file_that_is_no_database_is_left_as_it_is(home: Path, kind: str) -> None:
    content, status = SPOILT[kind]
    home.mkdir()
    path = home / "geres.db"
    path.write_bytes(content)
    assert_not_up(home, geres(home, "up", "--detach"), status, str(path), "name another --store")
    done = geres(home, "server", "--port", "0")
    assert done.returncode == 2
    assert str(path) in done.stderr
    assert done.stderr.count("\n") == 1
    assert path.read_bytes() == content


def test_the_database_of_another_program_is_left_as_it_is(home: Path) -> None:
    home.mkdir()
    path = home / "geres.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE task (name TEXT)")
    connection.commit()
    connection.close()
    content = path.read_bytes()
    assert_not_up(home, geres(home, "up", "--detach"), 7, "another program", str(path))
    assert path.read_bytes() == content


@pytest.mark.parametrize("place", ["/etc/passwd", "/proc/nowhere", "/dev/null/home"])
def test_a_home_that_cannot_be_written_is_named(home: Path, place: str) -> None:
    done = geres(Path(place), "up", "--detach")
    assert done.returncode == 2
    assert place in done.stderr
    assert "GERES_HOME" in done.stderr


def test_a_home_in_use_by_another_host_is_refused(home: Path) -> None:
    home.mkdir()
    other = {"url": "http://127.0.0.1:4470", "host_id": "another", "host": "another-host", "pid": 1}
    (home / "address.json").write_text(json.dumps(other | {"started_at": "2026-01-01T00:00:00Z"}))
    done = geres(home, "up", "--detach")
    assert done.returncode == 5
    assert "in use by host another-host since 2026-01-01" in done.stderr
    assert str(home / "address.json") in done.stderr
    assert not (home / "geres.db").exists()
    for words in (["tasks"], ["submit", "--", "true"]):
        done = geres(home, *words)
        assert done.returncode == 7
        assert "another-host" in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"url": 5}', "\0"], ids=repr)
def test_a_spoilt_address_is_named(home: Path, content: str) -> None:
    home.mkdir()
    (home / "address.json").write_text(content)
    done = geres(home, "tasks")
    assert done.returncode == 7
    assert str(home / "address.json") in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_home_with_a_path_too_long_for_a_socket_works(home: Path) -> None:
    long = home / ("x" * 100) / ("ü " + "y" * 98)
    assert len(os.fsencode(long)) > 200
    try:
        assert geres(long, "up", "--detach", "--port", "0").returncode == 0
        done = geres(long, "run", "--", "sh", "-c", "echo $((40 + 2))")
        assert (done.returncode, done.stdout) == (0, "42\n")
    finally:
        assert geres(long, "down", "--now").returncode == 0
