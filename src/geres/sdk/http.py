"""The wire to a server: JSON over kept-alive connections, one a thread, with safe retries."""

from __future__ import annotations

import contextlib
import http.client
import os
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from geres import trust, unix_socket
from geres.errors import (
    GeresError,
    Invalid,
    RateLimited,
    StoreFull,
    StoreUnavailable,
    Unauthenticated,
    Unreachable,
    from_wire,
)

T = TypeVar("T")

#: How long a server that has answered before is tried again, and one that never has.
PATIENCE_SECONDS = 60.0
FIRST_PATIENCE_SECONDS = 5.0
_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 2.0
_OTHERS_SECONDS = 5.0  #: a server that does not even accept is left for another one after so long
_CHUNK_BYTES = 64 << 10
_LOST = (OSError, http.client.HTTPException)

encode = msgspec.json.Encoder().encode
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


class Address(msgspec.Struct, frozen=True):
    """Where a cluster is, and who found it."""

    url: str  #: of the server to ask
    token: str
    origin: str = "the argument"  #: for messages: where the address was found
    fingerprint: str = ""  #: of the one certificate that is good; empty: the machine's authorities decide
    others: tuple[str, ...] = ()  #: further servers of the same cluster, for when that one does not answer


class _Wire:
    """One connection; it closes when its thread's memory of it goes."""

    def __init__(self, connection: http.client.HTTPConnection, url: str) -> None:
        self.connection, self.url = connection, url
        self.pid = os.getpid()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.connection.close()


class Transport:
    """Requests to one server.  Safe to share between threads and to use after a fork."""

    def __init__(
        self,
        address: Address,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        locate: Callable[[], Address] | None = None,
    ) -> None:
        """`locate` finds the address again after a loss: a restarted server may have another port."""
        for url in (address.url, *address.others):
            check_address(url)
        if not (address.token.isascii() and address.token.isprintable()):
            raise Unauthenticated(f"the token for {address.url} is cut or spoilt; give it as it was made")
        self.address = address
        self._patience = patience_seconds
        self._locate = locate
        self._tenant = os.environ.get("GERES_TENANT", "")
        if not (self._tenant.isascii() and self._tenant.isprintable()):
            raise Invalid(f"GERES_TENANT: {self._tenant!r} is no name of a tenant", field="tenant")
        self._answered = False
        self._mine = threading.local()
        self._wires: weakref.WeakSet[_Wire] = weakref.WeakSet()

    def get(self, path: str, kind: type[T], *, timeout: float = 30.0, **query: Any) -> T:
        """The answer of a GET as `kind`.  What is None in `query` is left out."""
        return decoder(kind).decode(self.call("GET", path, query=query, timeout=timeout))

    def post(
        self,
        path: str,
        kind: type[T],
        body: Any,
        *,
        key: str | None = None,
        timeout: float = 60.0,
        **query: Any,
    ) -> T:
        """The answer of a POST as `kind`.  `body` is a struct, or bytes of JSON.

        It goes with an Idempotency-Key, so that a repeat after a lost connection changes nothing.
        """
        try:
            content = body if isinstance(body, bytes) else encode(body)
        except UnicodeEncodeError as error:
            raise no_text(error) from None
        answer = self.call("POST", path, content, query=query, key=key or new_key(), timeout=timeout)
        return decoder(kind).decode(answer)

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        query: Mapping[str, Any] | None = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> bytes:
        """The body of the answer.  Raises the error that the server names, or Unreachable.

        A lost connection, a 503 and a 429 (too often) are tried again, with pauses, while patience lasts.
        """
        target = path + _query(query)
        fields = dict(headers or {})
        if key is not None:
            fields["Idempotency-Key"] = key
        if body is not None:
            fields["Content-Type"] = "application/json"
        return self._patiently(lambda: self._exchange(method, target, body, fields, timeout))

    def stream(self, path: str, *, timeout: float = 60.0, **query: Any) -> Iterator[bytes]:
        """The body of a GET in pieces as they come; a break in the middle raises Unreachable."""
        target = path + _query(query)
        answer = self._patiently(lambda: self._send("GET", target, None, {}, timeout))
        try:
            if answer.status >= 400:
                raise self._refusal(answer.status, answer.read())
            while piece := answer.read1(_CHUNK_BYTES):
                yield piece
            if answer.length == 0:
                answer.close()  # read to its end, which http.client only notices when it reads further
        except _LOST as error:
            raise Unreachable(f"the connection to {self.address.url} broke: {error}") from error
        finally:
            if not answer.isclosed():
                self._drop()

    def credentials(self) -> dict[str, str]:
        """The headers that say who asks; GERES_TENANT names the tenant in which an admin works."""
        token = self.address.token
        found = {"Authorization": f"Bearer {token}"} if token else {}  # a Unix socket needs none
        return {**found, "Geres-Tenant": self._tenant} if self._tenant else found

    def close(self) -> None:
        """Close all connections; the next request opens a new one."""
        for wire in list(self._wires):
            if wire.pid == os.getpid():
                wire.connection.close()

    def elsewhere(self, url: str) -> None:
        """Find another address than this one, or go on with the next server of those that were named."""
        if not self.find_again():
            self._next(url)

    def _next(self, url: str) -> bool:
        """Leave a server that does not answer, if no other thread has.  False: there is no other."""
        known = self.address
        if known.others and known.url == url:
            first, *rest = known.others
            self.address = msgspec.structs.replace(known, url=first, others=(*rest, known.url))
        return bool(known.others)

    def _patiently(self, attempt: Callable[[], T]) -> T:
        started = time.monotonic()
        pause = _FIRST_PAUSE_SECONDS
        left = len(self.address.others)  #: servers that were not asked yet
        while True:
            failure: GeresError
            url = self.address.url
            try:
                result = attempt()
                self._answered = True
                return result
            except StoreFull:
                raise  # no pause makes room
            except StoreUnavailable as error:
                self._answered = True
                failure = error
                if self._next(url) and left:
                    left -= 1
                    continue
            except RateLimited as error:
                self._answered = True
                failure = error
                pause = max(pause, float(error.facts.get("retry_after_seconds", 1.0)))
            except Unauthenticated as error:
                # A restarted cluster on the same port has another token beside its address.
                if not self.find_again():
                    raise
                failure = error
            except _LOST as error:
                if refused := trust.refusal(error, self.address.url, self.address.origin):
                    if self.find_again():  # started again, with another certificate beside its address
                        continue
                    raise refused from None
                failure = Unreachable(
                    f"no server answers at {self.address.url} (from {self.address.origin}): "
                    f"{error or 'cut off'}",
                    url=self.address.url,
                )
                failure.__cause__ = error
                if self.find_again():
                    continue
                if self._next(url) and left:
                    left -= 1
                    continue
            patience = self._patience if self._answered else min(FIRST_PATIENCE_SECONDS, self._patience)
            if time.monotonic() - started + pause > patience:
                if isinstance(failure, Unreachable) and not self._answered and self._wants_tls():
                    rest = self.address.url.removeprefix("http:")
                    raise Unreachable(f"the server at {self.address.url} wants TLS; write https:{rest}")
                raise failure
            time.sleep(pause)
            pause, left = min(pause * 2, _LONGEST_PAUSE_SECONDS), len(self.address.others)

    def _wants_tls(self) -> bool:
        return self.address.url.startswith("http:") and trust.speaks_tls(self.address.url)

    def find_again(self) -> bool:
        """Look the address up again, as a restarted server may have another.  True where it has."""
        if self._locate is None:
            return False
        try:
            found = self._locate()
        except GeresError:
            return False
        known = self.address
        same_servers = {found.url, *found.others} == {known.url, *known.others}
        if same_servers and (found.token, found.fingerprint) == (known.token, known.fingerprint):
            return False
        self.address = found
        self.close()
        return True

    def _exchange(
        self, method: str, target: str, body: bytes | None, headers: dict[str, str], timeout: float
    ) -> bytes:
        answer = self._send(method, target, body, headers, timeout)
        try:
            content = answer.read()
        except BaseException:
            self._drop()
            raise
        if answer.status >= 400:
            raise self._refusal(answer.status, content)
        return content

    def _send(
        self, method: str, target: str, body: bytes | None, headers: dict[str, str], timeout: float
    ) -> http.client.HTTPResponse:
        fields = {**self.credentials(), **headers}
        if unix_socket.path_of(self.address.url) is None:  # a proxy may have put the server below a path
            target = urlsplit(self.address.url).path.rstrip("/") + target
        connection, fresh = self._connection(timeout)
        try:
            try:
                connection.request(method, target, body, fields)
                return connection.getresponse()
            except (ConnectionError, http.client.BadStatusLine):
                if fresh:
                    raise
                # The server closed a kept connection just as we wrote to it: its right, so once more.
                self._drop()
                connection, _ = self._connection(timeout)
                connection.request(method, target, body, fields)
                return connection.getresponse()
        except BaseException:
            # Also when interrupted: half an answer must not be read as the next one.
            self._drop()
            raise

    def _connection(self, timeout: float) -> tuple[http.client.HTTPConnection, bool]:
        """This thread's connection, and whether it is fresh."""
        wire: _Wire | None = getattr(self._mine, "wire", None)
        url = self.address.url
        if wire is not None and wire.pid == os.getpid() and (sock := wire.connection.sock) is not None:
            # between requests only the end of the stream can be read
            if wire.url == url and not _is_readable(sock):
                sock.settimeout(timeout)
                return wire.connection, False
            wire.connection.close()
        parts = urlsplit(url)
        connection: http.client.HTTPConnection
        host, port = parts.hostname or "", parts.port
        patience = min(timeout, _OTHERS_SECONDS) if self.address.others else timeout
        if (place := unix_socket.path_of(url)) is not None:
            connection = unix_socket.HTTPConnection(place, patience)
        elif parts.scheme == "https":
            context = trust.context(self.address.fingerprint)
            connection = http.client.HTTPSConnection(host, port, timeout=patience, context=context)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=patience)
        connection.connect()
        connection.sock.settimeout(timeout)
        self._mine.wire = wire = _Wire(connection, url)
        self._wires.add(wire)
        return connection, True

    def _drop(self) -> None:
        wire: _Wire | None = getattr(self._mine, "wire", None)
        if wire is not None:
            wire.connection.close()
            del self._mine.wire

    def _refusal(self, status: int, content: bytes) -> GeresError:
        try:
            error = msgspec.json.decode(content)["error"]
            rebuilt = from_wire(error["code"], error["message"], error.get("facts") or {})
            rebuilt.code = error["code"]
        except (msgspec.DecodeError, KeyError, TypeError):
            text = content[:200].decode("utf-8", "replace").strip()
            kind = StoreUnavailable if status == 503 else GeresError
            return kind(f"{self.address.url} answered {status}: {text or 'nothing more'}", status=status)
        return rebuilt


def _is_readable(sock: socket.socket) -> bool:
    if not hasattr(select, "poll"):
        return bool(select.select([sock], [], [], 0)[0])
    watcher = select.poll()
    watcher.register(sock, select.POLLIN)
    return bool(watcher.poll(0))


def decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    """The decoder of a type, made once."""
    found = _decoders.get(kind)
    if found is None:
        found = _decoders[kind] = msgspec.json.Decoder(kind)
    return found


def check_address(url: str) -> None:
    """Raises Invalid for what is no http, https or unix address."""
    if unix_socket.path_of(url) is not None:
        return
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for what is none
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not (good and url.isascii() and url.isprintable()):
        raise Invalid(f"url: {url!r} is no address; write one like http://127.0.0.1:4470", field="url")


def new_key() -> str:
    """A fresh Idempotency-Key."""
    return os.urandom(16).hex()


def _query(values: Mapping[str, Any] | None) -> str:
    if not values:
        return ""
    given = {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in values.items()
        if value is not None
    }
    try:
        return "?" + urlencode(given) if given else ""
    except UnicodeEncodeError as error:
        raise no_text(error) from None


def no_text(error: UnicodeEncodeError) -> Invalid:
    """For bytes of a command line that are no text."""
    return Invalid(f"{error.object[:80]!r} is no valid Unicode text; ids, names and filters are texts")
