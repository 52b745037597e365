"""Unix sockets of servers: their addresses, and where one may listen."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from geres import unix_socket
from geres.errors import Conflict, Invalid
from geres.sdk.discover import locate


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="geres-test-") as folder:
        yield Path(folder)


def test_an_address_is_the_path() -> None:
    assert unix_socket.url_of("/run/a.sock") == "unix:///run/a.sock"
    assert unix_socket.path_of("unix:///run/a.sock") == "/run/a.sock"
    assert unix_socket.path_of("http://unix") is None
    assert unix_socket.path_of("unix://relative") is None


def test_everybody_may_connect_and_nobody_else_may_listen_there(place: Path) -> None:
    path = str(place / "run" / "geres.sock")
    listener = unix_socket.listen(path)
    try:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o666
        assert stat.S_IMODE(os.stat(place / "run").st_mode) == 0o755
        with pytest.raises(Conflict, match="listens at"):
            unix_socket.listen(path)
    finally:
        unix_socket.close(listener)
    assert not os.path.exists(path)


def test_the_socket_of_a_server_that_died_is_replaced(place: Path) -> None:
    path = str(place / "geres.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    unix_socket.close(unix_socket.listen(path))


def test_what_is_no_socket_stays_and_a_folder_of_others_is_refused(place: Path) -> None:
    file = place / "file"
    file.write_text("mine\n")
    with pytest.raises(Invalid, match="no socket"):
        unix_socket.listen(str(file))
    assert file.read_text() == "mine\n"
    place.chmod(0o777)
    with pytest.raises(Invalid, match="others may write"):
        unix_socket.listen(str(place / "geres.sock"))
    place.chmod(0o700)
    with pytest.raises(Invalid, match="cannot be listened at"):
        unix_socket.listen(str(place / ("x" * 200)))


def test_the_shared_one_is_found_last(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(place / "geres.sock")
    for name in ("GERES_URL", "GERES_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place / "none"))
    monkeypatch.setenv("GERES_HOME", str(place / "home"))
    monkeypatch.setenv("GERES_SOCKET", path)
    listener = unix_socket.listen(path)
    try:
        found = locate()
        assert (found.url, found.token) == (unix_socket.url_of(path), "")
        monkeypatch.setenv("GERES_URL", "http://127.0.0.1:1")
        monkeypatch.setenv("GERES_TOKEN", "mine")
        assert locate().url == "http://127.0.0.1:1"
    finally:
        unix_socket.close(listener)
