"""Find the cluster: an address that was given, the environment, or the one of this user's `geres up`."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import platformdirs

from geres import config, trust, unix_socket
from geres.errors import Denied, NotFound, Unauthenticated, Unreachable
from geres.sdk.http import Address, check_address

NO_CLUSTER = "no geres here: start one with `geres up`, or `geres login URL`"


class Profile(msgspec.Struct, kw_only=True):
    """A cluster that `geres login` remembers."""

    url: str
    token: str
    fingerprint: str = ""  #: of the one certificate that is good


class UpFile(msgspec.Struct, kw_only=True):
    """What `geres up` writes into its home: the process that keeps the parts running."""

    pid: int
    host_id: str = ""
    started_at: str = ""
    parts: dict[str, int] = {}  #: name to process number: server, agent


class AddressFile(msgspec.Struct, kw_only=True):
    """What a server writes into its home once it accepts requests."""

    url: str
    host_id: str
    host: str = ""
    pid: int = 0
    version: str = ""
    started_at: str = ""
    fingerprint: str = ""  #: of the certificate, where clients have to pin it
    listens: str = ""  #: the URL with the address that it listens at


def locate(
    url: str | None = None,
    token: str | None = None,
    home: str | Path | None = None,
    fingerprint: str | None = None,
) -> Address:
    """The address and token to use: the arguments, GERES_URL and GERES_TOKEN, the login, the home's, or the
    machine's shared one.

    An address may be several, parted by commas: of servers of one cluster, asked in turn where one does not
    answer.  The fingerprint of their certificate comes with it: the argument, GERES_FINGERPRINT, or what is
    remembered of that address.  Raises Unreachable, with the next step, where there is no address.
    """
    if home is not None and url is None:
        return _of_home(Path(home).expanduser().absolute(), token)
    origin = "the argument"
    if url is None and (url := os.environ.get("GERES_URL") or None):
        origin = "GERES_URL"
    if url is None and (profile := _read_profile()) is not None:
        token = token or os.environ.get("GERES_TOKEN") or profile.token
        return Address(profile.url, token, "geres login", fingerprint or profile.fingerprint)
    if url is None:
        return _of_this_machine(token)
    url, *others = split_urls(url)
    for one in (url, *others):
        check_address(one)
    token = token or os.environ.get("GERES_TOKEN") or None
    if unix_socket.path_of(url) is not None:
        return Address(url, token or "", origin)
    folder = Path(home).expanduser() if home is not None else config.home()
    if token is None:
        token = next((found for one in (url, *others) if (found := _token_beside(folder, one))), None)
    if token is None:
        raise Unauthenticated(f"{url} needs a token: set GERES_TOKEN, or use `geres login {url}`")
    return Address(url, token, origin, fingerprint or _known_fingerprint(url, folder), tuple(others))


def split_urls(text: str) -> list[str]:
    """The addresses in a text, parted by commas; the text itself where there is none."""
    return [url for part in text.split(",") if (url := part.strip().rstrip("/"))] or [text]


def _of_this_machine(token: str | None) -> Address:
    """The user's own `geres up`; where none is, the one that all users of this machine share."""
    home, path = config.home(), unix_socket.shared_path()
    if not os.path.exists(home / "address.json") and os.path.exists(path):
        token = token or os.environ.get("GERES_TOKEN") or ""
        return Address(unix_socket.url_of(path), token, "this machine's shared geres")
    return _of_home(home, token)


def read_address(home: Path) -> AddressFile | None:
    """The address that the server of this home wrote; None where none runs."""
    try:
        return msgspec.json.decode((home / "address.json").read_bytes(), type=AddressFile)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise Denied(f"{error.filename} belongs to another account; use your own GERES_HOME") from None
    except (OSError, msgspec.DecodeError) as error:
        raise Unreachable(
            f"{home / 'address.json'} cannot be read: {error}; start again with `geres up`"
        ) from None


def has_keeper(home: Path) -> bool:
    """True while a `geres up` of this host keeps the parts of this home running."""
    try:
        up = msgspec.json.decode((home / "up.json").read_bytes(), type=UpFile)
    except (OSError, msgspec.DecodeError):
        return False
    return up.host_id in ("", config.host_id()) and is_alive(up.pid)


def is_alive(pid: int) -> bool:
    """True where a process of that number runs; one that ended and was not reaped does not."""
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except ProcessLookupError:
        return False
    except OSError:  # of another account, or no /proc here
        return True
    return stat.rpartition(b")")[2].split()[0] != b"Z"


def write_profile(profile: Profile) -> None:
    """Remember a cluster elsewhere, readable by its owner alone."""
    path = _profile_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.touch(mode=0o600)
    temporary.write_bytes(msgspec.json.encode(profile))
    temporary.replace(path)


def forget_profile() -> bool:
    """Forget it.  False where there was none."""
    try:
        _profile_path().unlink()
    except FileNotFoundError:
        return False
    return True


def _read_profile() -> Profile | None:
    try:
        return msgspec.json.decode(_profile_path().read_bytes(), type=Profile)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise Unauthenticated(f"{_profile_path()} cannot be read ({error}); `geres login` again") from None


def _profile_path() -> Path:
    return platformdirs.user_config_path("geres") / "login.json"


def _of_home(home: Path, token: str | None) -> Address:
    found = read_address(home)
    if found is None:
        raise Unreachable(NO_CLUSTER, home=str(home))
    here = found.host_id == config.host_id()
    if here and found.pid and not is_alive(found.pid) and not has_keeper(home):
        raise Unreachable(
            f"the geres of {home} does not run any more (its server was process {found.pid}): "
            "start it with `geres up`",
            home=str(home),
        )
    if not here and config.is_loopback(urlsplit(found.url).hostname or ""):
        raise Unreachable(
            f"{home / 'address.json'} is of host {found.host or 'another'}, which only that host reaches: "
            "run this there, or set GERES_HOME to a folder of this host",
            host=found.host,
        )
    token = token or os.environ.get("GERES_TOKEN") or _read_token(home / "token")
    if token is None:
        raise NotFound(f"{home / 'token'} is missing; start the cluster again with `geres up`")
    return Address(found.url.rstrip("/"), token, str(home / "address.json"), found.fingerprint)


def _known_fingerprint(url: str, home: Path) -> str:
    """What is remembered of the certificate at this address; empty where nothing is."""
    if not url.startswith("https:"):
        return ""
    if text := os.environ.get("GERES_FINGERPRINT"):
        return trust.parse_fingerprint(text, "GERES_FINGERPRINT")
    if (profile := _read_profile()) is not None and profile.url == url:
        return profile.fingerprint
    found = read_address(home)
    return found.fingerprint if found is not None and found.url.rstrip("/") == url else ""


def _token_beside(home: Path, url: str) -> str | None:
    """The home's token, where the URL is that of the home's own server."""
    found = read_address(home)
    if found is None or found.url.rstrip("/") != url.rstrip("/"):
        return None
    return _read_token(home / "token")


def _read_token(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except FileNotFoundError:
        return None
    except PermissionError:
        raise Denied(
            f"{path} belongs to another account; use your own GERES_HOME, or set GERES_TOKEN"
        ) from None
