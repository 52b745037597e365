"""Sets up a host for a server: looks at the store, makes the admin's token, writes geres.toml."""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from geres.config import NO_TLS, SELF_MADE, ServerConfig
from geres.errors import Conflict, Invalid, StoreUnavailable
from geres.files import write_private
from geres.mounts import network_file_system
from geres.server import opening, tls
from geres.store import setup
from geres.store.migrate import newest_version

_HEAD = """\
# A server of geres on this host, as `geres init` wrote it.
# `geres config show --origin` shows every setting and where it comes from; all of them are described in
# docs/reference/config.md.  After a change, restart the server: what runs on the nodes goes on.

[server]
"""
_TEXTS = {
    "host": "The address to listen on: 0.0.0.0 (and :: for IPv6) is every address of this host.",
    "port": "The port, for the command line, programs and agents alike.",
    "url": "The address by which other machines reach it; it stands in the commands by which they join.",
    "store": "Where the queue is: sqlite:PATH for one server, postgresql://USER@HOST/DATABASE for several.",
    "certificate": "PEM files: the certificate, and its key if another file holds it.\n"
    "# self-made: geres makes one, and clients pin its fingerprint.  none: no TLS.",
}


def check_store(url: str, home: Path) -> str:
    """What is there, in words.  Raises Invalid or Conflict for what no server could use, StoreUnavailable."""
    if url.startswith("sqlite:"):
        path = Path(url.removeprefix("sqlite:")).absolute()
        if kind := network_file_system(path):
            raise Invalid(
                f"store: {path} is on a network file system ({kind}), where databases and locks break: use a"
                " local disk, or PostgreSQL",
                field="store",
            )
        return (
            f"SQLite in {path}, {'which is there' if path.exists() else 'which is made at the first start'}"
        )
    place = opening.without_password(url)
    try:
        found = setup.look_at(url)
    except StoreUnavailable as error:
        raise StoreUnavailable(f"store: {place} cannot be used: {error}") from None
    release = f"PostgreSQL {found.release // 10000}.{found.release % 10000}"
    if found.release < setup.OLDEST_POSTGRES:
        raise Invalid(f"store: {place} is {release}; geres needs 14 or newer", field="store")
    if found.schema > newest_version():
        raise Conflict(
            f"store: {place} has schema {found.schema}, this program knows {newest_version()}: use the newer"
            " geres"
        )
    if not found.may_create:
        raise Invalid(
            f"store: its user may not make tables in {place}: GRANT CREATE ON SCHEMA public TO that user",
            field="store",
        )
    state = f"with schema {found.schema} of geres" if found.schema else "empty"
    return f"{release} at {place}, {state}"


def check_certificate(settings: ServerConfig) -> str:
    """How clients know the server, in words.  Raises Invalid for files that cannot be used."""
    if settings.certificate and not {SELF_MADE, NO_TLS} & set(settings.certificate):
        given = tls.given(settings)
        given.refuse_ended()
        if not given.pin:
            return "a certificate that an authority signed; clients need nothing more"
        return f"a certificate signed by itself, {given.pin}"
    if settings.certificate == (SELF_MADE,) or tls.needs_tls(settings):
        return "a certificate that geres makes at the first start; `geres status` shows its fingerprint"
    return "no TLS" if settings.insecure else "no TLS: only this machine reaches the address"


def text_of(settings: dict[str, Any]) -> str:
    """The text of geres.toml for these settings of the section `server`, with a line about each."""
    lines = []
    for name, about in _TEXTS.items():
        value = settings.get(name)
        if not value:
            if name in ("url", "certificate"):  # what most people change later
                lines.append(f"# {about}\n# {name} = {json.dumps('')}\n")
            continue
        lines.append(f"# {about}\n{name} = {json.dumps(value)}\n")
    return _HEAD + "\n".join(lines)


def write(path: Path, text: str, *, dry_run: bool = False) -> bool:
    """Write the file.  False where it says the same already.  Raises Conflict where it says otherwise."""
    try:
        there = path.read_text()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise Invalid(f"file: {path} cannot be read: {error.strerror}", field="file") from None
    else:
        if differing := _differing(there, text):
            raise Conflict(
                f"{path} is there and says otherwise ({', '.join(differing)}): edit it, or move it away",
                path=str(path),
            )
        return False
    if dry_run:
        return True
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, text)
        if not urlsplit(tomllib.loads(text)["server"].get("store", "")).password:
            path.chmod(0o644)  # nothing in it is secret, and every command on this host reads it
    except OSError as error:
        told = f"file: {path} cannot be written: {error.strerror}; name another --file"
        raise Invalid(told, field="file") from None
    return True


def _differing(there: str, wanted: str) -> list[str]:
    """The settings that two files have different; both have to be TOML."""
    try:
        old = tomllib.loads(there)
    except tomllib.TOMLDecodeError:
        return ["it is no TOML"]
    old_server, new_server = old.get("server", {}), tomllib.loads(wanted)["server"]
    names = sorted(set(old_server) | set(new_server))
    return [f"server.{name}" for name in names if old_server.get(name) != new_server.get(name)]


def make_token(home: Path) -> Path:
    """The admin's token in the home; it is made where there is none.  Returns its file."""
    path = home / "token"
    before = os.umask(0o077)
    try:
        opening.ensure_token_file(path)
    finally:
        os.umask(before)
    return path
