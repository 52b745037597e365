"""address.json in the home: where clients on this machine find the server."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from geres import __version__, config, unix_socket

_NAME = "address.json"


def local_url(listener: socket.socket, *, with_tls: bool) -> str:
    """Where clients on this machine find the server that listens there."""
    if listener.family == socket.AF_UNIX:
        return unix_socket.url_of(listener.getsockname())
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # where all addresses are, any of them is
    return f"{'https' if with_tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def named_url(local: str, configured: str, names: Sequence[str]) -> str:
    """The local address by a name that stands in the certificate, for those who check it; `names` are all of
    them, none where nobody does.  `configured` is how other machines reach this server, where that is known.
    """
    parts = urlsplit(local)
    if not names or parts.hostname in names:
        return local
    name = next((one for one in names if "*" not in one), "")
    return configured.rstrip("/") or (f"https://{name}:{parts.port}" if name else local)


def write_address(home: Path, url: str, fingerprint: str = "", listens: str = "") -> None:
    """Say that this process answers at `url`, or will in a moment: written beside and moved into place.

    `fingerprint` is of its certificate, where clients have to pin it; `listens` is `url` with the address
    that it listens at, where that is another one.
    """
    content = {
        "url": url,
        "fingerprint": fingerprint,
        "listens": listens or url,
        "host_id": config.host_id(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "version": __version__,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
    part = home / f"{_NAME}.{os.getpid()}"
    part.touch(0o600)
    part.write_bytes(msgspec.json.encode(content))
    part.replace(home / _NAME)


def remove_address(home: Path) -> None:
    """Take it back.  Only our own: another server may have started on this home meanwhile."""
    path = home / _NAME
    with contextlib.suppress(OSError, msgspec.DecodeError):
        if msgspec.json.decode(path.read_bytes()).get("pid") == os.getpid():
            path.unlink()
