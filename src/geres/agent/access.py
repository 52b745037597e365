"""Where the agent's server is, whom it takes it for, and what it shows it."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import itertools
import logging
import random
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from geres import trust, unix_socket
from geres.errors import GeresError, Invalid, Unauthenticated, Unreachable, from_wire
from geres.files import write_private
from geres.model.joining import Invitation, Join, Joined, Renew

log = logging.getLogger("geres.agent.access")

FILE_NAME = "node.json"
LEARNT_NAME = "servers"  #: in the agent's folder
_MOST_LEARNT = 64
_REQUEST_SECONDS = 30.0
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
REMEDY = "join again with what `geres node join-token` prints there now"


class Credential(Struct, kw_only=True):
    """What a node that joined keeps in its home, readable by its account alone."""

    url: str
    fingerprint: str = ""
    token: str  #: made here; the server knows its hash
    node: str
    pool: str | None = None
    tenant: str = ""
    joined_with: str = ""  #: SHA-256 of the join token
    joined: bool = False  #: False until the server has said yes: then it is asked again, with the same token
    next_token: str = ""  #: is to replace `token`; the server may know it already


def split_urls(text: str) -> list[str]:
    """The addresses in a text, parted by commas."""
    return [url for part in text.split(",") if (url := part.strip().rstrip("/"))] or [""]


class Access:
    """The servers' addresses, their certificate's fingerprint, and the token of this node."""

    def __init__(
        self,
        url: str,
        token: str,
        fingerprint: str = "",
        path: Path | None = None,
        learnt: Path | None = None,
    ) -> None:
        """`url` is one address or several, parted by commas: of servers of one store, which are all alike.

        `path` is of the file with the credential of a node that joined; it may be renewed meanwhile. `learnt`
        is where the addresses that servers told of are kept.
        """
        self._given = split_urls(url)
        self._learnt_file, self._learnt = learnt, _read_learnt(learnt, self._given)
        self._order = self._turns()
        self.url = next(self._order)  #: the address to use now
        self._next = next(self._order)
        self.token, self.fingerprint, self._path = token, fingerprint, path
        self._stamp = self._written()

    @property
    def count(self) -> int:
        """How many turns it takes until each given address was tried."""
        return len(self._given) + bool(self._learnt)

    @property
    def credential(self) -> Path | None:
        """The file with the credential of a node that joined."""
        return self._path

    @property
    def is_given(self) -> bool:
        """True where the address is one that somebody gave us, not one that a server told of."""
        return self.url in self._given

    def turn(self) -> None:
        """Go on with the next address: this one does not answer."""
        self.url, self._next = self._next, next(self._order)

    def learn(self, urls: Sequence[str]) -> None:
        """Take note of all servers, as one of them says; kept for the next start too.

        Only with TLS: there it is certain that who answers at an address is one of them.
        """
        if not self.url.startswith("https://"):
            return
        found = _fit(urls, self._given)
        if set(found) == set(self._learnt):
            return
        random.shuffle(found)  # when a server goes, its nodes are not all to go to the same one
        self._learnt = found
        self._next = next(self._order)
        if self._learnt_file is not None:
            with contextlib.suppress(OSError):  # a full disk
                write_private(self._learnt_file, "".join(f"{url}\n" for url in found))

    def _turns(self) -> Iterator[str]:
        """The given addresses again and again, and after each round one of the others: these may lead
        nowhere from here."""
        for number in itertools.count():
            yield from self._given
            if self._learnt:
                yield self._learnt[number % len(self._learnt)]

    def is_next_ready(self, seconds: float) -> bool:
        """True where the server that would be tried next says that it is ready.  Blocking."""
        url = self._next
        parts = urlsplit(url)
        connection: http.client.HTTPConnection
        if (place := unix_socket.path_of(url)) is not None:
            connection = unix_socket.HTTPConnection(place, seconds)
        elif parts.scheme == "https":
            context = trust.context(self.fingerprint)
            connection = http.client.HTTPSConnection(
                parts.hostname or "", parts.port, timeout=seconds, context=context
            )
        else:
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)
        try:
            connection.request("GET", parts.path.rstrip("/") + "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    @property
    def headers(self) -> dict[str, str]:
        if (stamp := self._written()) != self._stamp:
            self._stamp = stamp
            assert self._path is not None
            with contextlib.suppress(Invalid):  # the server says what is wrong with the one that we have
                self.token = getattr(read(self._path.parent), "token", self.token)
        return {"Authorization": f"Bearer {self.token}"}

    def _written(self) -> int:
        try:
            return self._path.stat().st_mtime_ns if self._path is not None else 0
        except OSError:
            return 0


def _fit(urls: Sequence[str], given: Sequence[str]) -> list[str]:
    """Those that may be tried beside the given ones."""
    found = dict.fromkeys(url.rstrip("/") for url in urls if _is_https(url))
    return [url for url in found if url not in given][:_MOST_LEARNT]


def _is_https(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "https" and bool(parts.hostname) and parts.port != 0 and len(url) < 1000
    except ValueError:
        return False


def _read_learnt(path: Path | None, given: Sequence[str]) -> list[str]:
    if path is None or not given[0].startswith("https://"):
        return []
    try:
        return _fit(path.read_text().split(), given)
    except (OSError, UnicodeDecodeError):
        return []


def read(home: Path) -> Credential | None:
    """The credential of the node that joined with this home; None where none did.  Raises Invalid."""
    path = home / FILE_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Credential)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise Invalid(f"{path} cannot be read: {error}; join again, without it", field="home") from None


def _write(home: Path, credential: Credential) -> None:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(home / FILE_NAME, msgspec.json.format(msgspec.json.encode(credential)).decode() + "\n")


def join(
    home: Path,
    invitation: Invitation,
    node: str,
    *,
    say: Callable[[str], None],
    pause: Callable[[float], None] = time.sleep,
) -> Credential:
    """Make this machine the node of that name, and keep its credential in the home.  Blocking.

    A home that has joined with this invitation before is left as it is.  A server that does not answer is
    asked again, for ever; `say` is told of it.  Raises the error by which the server refuses.
    """
    digest = _digest(invitation.token)
    found = read(home)
    if found is not None and found.joined_with == digest:
        if found.joined:
            return found
        found.node = node
    elif found is not None and found.joined:
        raise Invalid(
            f"join: {home} is the home of node {found.node} of {found.url}: start it without --join, or give"
            f" the new one a --home of its own, or remove {home / FILE_NAME}",
            field="join",
        )
    else:
        found = Credential(
            url=invitation.url,
            fingerprint=invitation.fingerprint,
            token=secrets.token_urlsafe(32),
            node=node,
            joined_with=digest,
        )
    _write(home, found)  # before it is asked: the answer may be lost, and the join token used
    body = Join(token=invitation.token, node=node, credential=_digest(found.token))
    seconds, told = _FIRST_PAUSE_SECONDS, ""
    while True:
        try:
            answer = _ask(found, "/v1/agents/join", body, None)
            break
        except Unreachable as error:
            if str(error) != told:
                told = str(error)
                say(f"{told}; it is tried again")
            pause(seconds)
            seconds = min(seconds * 2, _LONGEST_PAUSE_SECONDS)
    found.joined, found.pool, found.tenant = True, answer.pool, answer.tenant
    _write(home, found)
    say(f"this machine is the node {node} of {found.url} now; its credential is {home / FILE_NAME}")
    return found


def renew(home: Path) -> Credential:
    """Put another token in the place of the node's.  Blocking; may be done again when it was interrupted.

    Raises Invalid where no node joined with this home, Unreachable, Unauthenticated.
    """
    found = read(home)
    if found is None or not found.joined:
        raise Invalid(f"{home} is of no node that joined with a join token", field="home")
    if not found.next_token:
        found.next_token = secrets.token_urlsafe(32)
        _write(home, found)
    body = Renew(credential=_digest(found.next_token))
    try:
        _ask(found, "/v1/agents/credential", body, found.token)
    except Unauthenticated:  # it was done, and the answer was lost
        _ask(found, "/v1/agents/credential", body, found.next_token)
    found.token, found.next_token = found.next_token, ""
    _write(home, found)
    return found


def _ask(credential: Credential, path: str, body: Struct, token: str | None) -> Joined:
    """One request.  Raises what the server says, Untrusted, or Unreachable where another try may help."""
    url = urlsplit(credential.url)
    host, port = url.hostname or "", url.port
    connection: http.client.HTTPConnection
    if url.scheme == "https":
        context = trust.context(credential.fingerprint)
        connection = http.client.HTTPSConnection(host, port, timeout=_REQUEST_SECONDS, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=_REQUEST_SECONDS)
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    try:
        connection.request("POST", url.path.rstrip("/") + path, msgspec.json.encode(body), headers)
        answer = connection.getresponse()
        status, content = answer.status, answer.read(1 << 20)
    except (OSError, http.client.HTTPException) as error:
        raise trust.refusal(error, credential.url, remedy=REMEDY) or Unreachable(
            f"no server answers at {credential.url}: {error or 'cut off'}", url=credential.url
        ) from None
    finally:
        connection.close()
    if status == 200:
        return msgspec.json.decode(content, type=Joined)
    try:
        told = msgspec.json.decode(content)["error"]
        refused: GeresError = from_wire(told["code"], told["message"], told.get("facts") or {})
    except (msgspec.DecodeError, KeyError, TypeError):
        refused = Invalid(f"{credential.url} answered {status}; is a geres server there?")
    if status in (429, 502, 503, 504):
        raise Unreachable(f"{credential.url}: {refused}")
    raise refused


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
