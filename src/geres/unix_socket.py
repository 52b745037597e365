"""Servers of this machine that are reached over a Unix socket, at addresses like `unix:///run/geres/geres.sock`.

Such a server knows the account of whoever connects, so that nobody needs a token there.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import stat
from typing import Any

from geres.errors import Conflict, GeresError, Invalid

_SCHEME = "unix://"
_BACKLOG = 4096
#: Where the one geres that all users of a machine share is found.
SHARED = "/run/geres/geres.sock"


def shared_path() -> str:
    """The socket of this machine's shared geres: `GERES_SOCKET`, else the usual one."""
    return os.environ.get("GERES_SOCKET") or SHARED


def url_of(path: str) -> str:
    return _SCHEME + path


def path_of(url: str) -> str | None:
    """The socket's path, of an address that is one."""
    return url.removeprefix(_SCHEME) if url.startswith(_SCHEME + "/") else None


def connect(path: str, timeout: float | None) -> socket.socket:
    """A connection to the socket.  Raises OSError."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout)
    try:
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def listen(path: str) -> socket.socket:
    """A listening socket at the path, that every account of the machine may connect to.

    Raises Conflict where another server listens there, Invalid for a path that cannot be.
    """
    folder = os.path.dirname(path)
    listener = socket.socket(socket.AF_UNIX)
    try:
        if not os.path.isdir(folder):
            os.makedirs(folder)
            os.chmod(folder, 0o755)
        rights = os.stat(folder)
        if rights.st_uid not in (0, os.geteuid()) or rights.st_mode & 0o022:
            raise Invalid(
                f"socket: others may write to {folder}, and so put a server of theirs there; take another",
                field="socket",
            )
        if os.path.exists(path):
            _remove_dead(path)
        listener.bind(path)
        os.chmod(path, 0o666)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise Invalid(
            f"socket: {path} cannot be listened at: {error.strerror or error}", field="socket"
        ) from None
    except GeresError:
        listener.close()
        raise
    return listener


def close(listener: socket.socket) -> None:
    """Close a listening socket, and take its path away where it has one."""
    path = listener.getsockname() if listener.family == socket.AF_UNIX else ""
    listener.close()
    if path:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _remove_dead(path: str) -> None:
    """Remove the socket of a server that is gone."""
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise Invalid(f"socket: {path} is there and no socket; take another path", field="socket")
    try:
        connect(path, 1.0).close()
    except ConnectionRefusedError:
        os.unlink(path)
        return
    except TimeoutError:
        pass  # it is there, and busy
    raise Conflict(f"a geres listens at {path} already; `geres --url {url_of(path)} status` shows it")


class HTTPConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = connect(self._path, self.timeout)


def websocket(url: str, path: str) -> tuple[str, dict[str, Any]]:
    """(URI, more keywords) for `websockets.connect` to reach `path` of the server at `url`.

    For asyncio; for threads see `connect` and the keyword `sock`.
    """
    if (place := path_of(url)) is not None:
        return f"ws://localhost{path}", {"unix": True, "path": place, "proxy": None}
    scheme, _, rest = url.rstrip("/").partition("://")
    return f"{'wss' if scheme in ('https', 'wss') else 'ws'}://{rest}{path}", {}
