"""The folder of a `geres up`: locks, ports, other hosts, what is ours in it."""

from __future__ import annotations

import io
import json
import socket
import sys
from pathlib import Path

import pytest

from geres.cli import home as homes
from geres.cli.up import open_listener
from geres.errors import Conflict, Invalid
from geres.files import check_database

MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:40 / /home rw shared:5 - nfs4 server:/home rw
31 22 0:41 / /home/local rw - xfs /dev/sdb rw
32 22 0:42 / /mnt/with\\040space rw - cifs //server/x rw
33 22 0:43 / /twice rw - ext4 /dev/sdc rw
34 22 0:44 / /twice rw - fuse.sshfs host: rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/x/geres", "nfs4"),
        ("/home", "nfs4"),
        ("/homes/x", None),
        ("/home/local/geres", None),
        ("/mnt/with space/geres", "cifs"),
        ("/twice/geres", "fuse.sshfs"),
        ("/var/lib/geres", None),
    ],
)
def test_network_file_systems_are_known_by_their_mounts(path, kind):
    assert homes.network_file_system(Path(path), MOUNTS) == kind


def test_a_home_on_a_network_file_system_is_refused_with_the_folder_to_use(tmp_path, monkeypatch):
    monkeypatch.setattr(homes, "network_file_system", lambda path: "nfs4")
    with pytest.raises(Invalid, match=r"is on a network file system \(nfs4\).*GERES_HOME.*/var/tmp/geres-"):
        homes.prepare(tmp_path / "home")


def test_the_home_is_made_for_its_owner_alone(tmp_path):
    homes.prepare(tmp_path / "a" / "home")
    assert (tmp_path / "a" / "home").stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "a" / "home").iterdir()) == []


def test_a_home_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(Invalid, match="cannot be written to"):
        homes.prepare(tmp_path / "file" / "home")


def test_a_second_one_in_the_same_home_is_refused_as_long_as_the_first_lives(tmp_path):
    with homes.lock(tmp_path):
        assert homes.is_locked(tmp_path)
        with pytest.raises(Conflict, match="geres is up already in"):
            homes.lock(tmp_path)
    assert not homes.is_locked(tmp_path)
    homes.lock(tmp_path).close()


@pytest.mark.parametrize(
    ("host", "refused"), [("another-host", True), (socket.gethostname(), False), ("", False)]
)
def test_a_home_that_another_host_uses_is_refused(tmp_path, host, refused):
    address = {"url": "http://127.0.0.1:1", "host_id": "before the reboot", "host": host, "started_at": "t"}
    (tmp_path / "address.json").write_text(json.dumps(address))
    if refused:
        with pytest.raises(Conflict, match="is in use by host another-host since t"):
            homes.check_host(tmp_path)
    else:
        homes.check_host(tmp_path)


@pytest.mark.parametrize(
    ("content", "fine"),
    [(None, True), (b"", True), (b"SQLite format 3\0more", True), (b"hello, I am a text", False)],
)
def test_a_database_that_is_none_is_one_clear_sentence(tmp_path, content, fine):
    path = tmp_path / "geres.db"
    if content is not None:
        path.write_bytes(content)
    if fine:
        check_database(path)
    else:
        with pytest.raises(Invalid, match="is no database of geres"):
            check_database(path)


@pytest.fixture
def busy_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_busy_port_that_was_asked_for_is_refused(busy_port):
    with pytest.raises(Conflict, match=f"port {busy_port} on 127.0.0.1 is taken"):
        open_listener("127.0.0.1", busy_port, asked=True)


def test_the_next_free_port_is_taken_where_none_was_asked_for(busy_port):
    with open_listener("127.0.0.1", busy_port, asked=False) as listener:
        assert busy_port < listener.getsockname()[1] < busy_port + 200


def test_an_address_that_is_not_ours_is_refused():
    with pytest.raises(Invalid, match="is no address of this machine"):
        open_listener("203.0.113.7", 4470, asked=True)


def test_purge_removes_what_is_ours_and_nothing_else(tmp_path):
    home, outside = tmp_path / "home", tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (home / "agent" / "tasks").mkdir(parents=True)
    (home / "agent" / "tasks" / "link").symlink_to(outside)
    (home / "blobs").symlink_to(outside)
    for name in ("geres.db", "geres.db-wal", "token", "up.json", "my notes.txt"):
        (home / name).touch()
    (home / "agent" / "tasks").chmod(0o500)
    assert [path.name for path in homes.remove(home)] == ["my notes.txt"]
    assert [path.name for path in home.iterdir()] == ["my notes.txt"]
    assert (outside / "precious").exists()


def test_purge_of_a_home_that_is_all_ours_removes_it(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "geres.db").write_bytes(b"x" * 10)
    assert homes.size_of(home) == 10
    assert homes.remove(home) == []
    assert not home.exists()


def test_down_says_that_nothing_runs_and_purge_asks_first(geres, home, monkeypatch):
    assert geres("down").status == 4
    home.mkdir()
    (home / "token").write_text("x")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    done = geres("down", "--purge")
    assert done.status == 1
    assert "token" in done.err
    assert "nothing was stopped or removed; --yes" in done.err
    assert (home / "token").exists()
    assert geres("down", "--purge", "--yes").status == 0
    assert not home.exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--cpus", "-1"], "cpus"),
        (["--cpus", "0"], "cpus: a node needs more than 0"),
        (["--memory", "lots"], "memory: 'lots' is no size"),
        (["--insecure", "--certificate", "c.pem"], "contradicts --certificate"),
        (["--store", "mysql://x"], "is no store"),
        (["--port", "99999"], "99999"),
    ],
)
def test_bad_words_of_up_start_nothing(geres, home, words, problem):
    done = geres("up", *words)
    assert done.status == 2
    assert problem in done.err
    assert not home.exists()
