"""The listening socket: made here, handed over by systemd or `geres up`, or beside the server that goes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path
from urllib.parse import urlsplit

from geres import config, unix_socket
from geres.errors import Conflict, GeresError, Invalid
from geres.sdk.discover import has_keeper, is_alive, read_address

BACKLOG = 4096
_FIRST_DESCRIPTOR = 3  #: where systemd puts the sockets that it hands over


def inherited(descriptor: int | None = None) -> socket.socket | None:
    """The listening socket that our parent holds: `descriptor`, else the first stream of `LISTEN_FDS`.

    None where there is none.  Raises Invalid for what is no listening socket.
    """
    if descriptor is not None:
        return _listening(descriptor)
    count, pid = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if not count.isdigit() or pid != str(os.getpid()):
        return None
    for number in range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + int(count)):
        found = _listening(number)
        if found.family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
            return found
        found.detach()
    return None


def _listening(descriptor: int) -> socket.socket:
    try:
        found = socket.socket(fileno=descriptor)
        found.set_inheritable(False)
        if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError("it does not listen")
    except OSError as error:
        raise Invalid(f"descriptor {descriptor} is no listening socket: {error}", field="listen-fd") from None
    return found


def listen(host: str, port: int, *, beside: bool = False) -> socket.socket:
    """A bound socket; with `beside`, one that shares the port with the server that we replace.

    Raises Conflict for a port that is taken, Invalid for an address that is not ours.
    """
    if (path := unix_socket.path_of(host)) is not None:
        return unix_socket.listen(path)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        if not beside and port:  # SO_REUSEPORT would let any two of our account share it
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if isinstance(error, PermissionError):
            raise Invalid(f"port: {port} is not for you; take one above 1023", field="port") from None
        if error.errno == 98 or "in use" in str(error):
            raise Conflict(f"port {port} on {host} is taken; choose another --port", port=port) from None
        raise Invalid(f"host: {host} is no address of this machine: {error.strerror}", field="host") from None
    return listener


def predecessor(home: Path, host: str, port: int) -> int | None:
    """The process of the server of this home that answers at this address; None where there is none.

    Raises Conflict where a `geres up` keeps that one: it would start it again.
    """
    try:
        found = read_address(home)
    except GeresError:
        return None
    if found is None or found.host_id != config.host_id() or not _is_server(found.pid):
        return None
    parts = urlsplit(found.listens or found.url)
    if (parts.hostname, parts.port) != ({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port):
        return None
    if has_keeper(home):
        raise Conflict(
            f"`geres up` keeps the server at {found.url} (process {found.pid}); `geres restart` replaces it",
            pid=found.pid,
        )
    return found.pid


def _is_server(pid: int) -> bool:
    if pid in (0, os.getpid()) or not is_alive(pid):
        return False
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return not Path("/proc/self").exists()
    return b"geres" in words and b"server" in words


def tell_to_stop(pid: int) -> None:
    """Have the server that we replace stop: it accepts nothing more, ends its requests, and goes."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def notify(state: str) -> None:
    """Tell systemd, where it asked for it: `READY=1`, `STOPPING=1`."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = f"\0{path[1:]}" if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto(state.encode(), address)
