"""Whom a client trusts: certificates by their fingerprint, or by the authorities that this machine knows.

A context made here checks the certificate within the handshake, so nothing is ever sent, no token and no
request line, to a server that shows another one.  It goes wherever an `ssl.SSLContext` goes.
"""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from geres.errors import Invalid, Unreachable, Untrusted

_HEXADECIMAL = re.compile(r"[0-9a-f]{64}")
_PEEK_SECONDS = 5.0
_ENDED = 10  #: X509_V_ERR_CERT_HAS_EXPIRED
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST")


class WrongCertificate(ssl.SSLCertVerificationError):
    """The server shows another certificate than the pinned one."""

    def __init__(self, shown: str, pinned: str) -> None:
        super().__init__(f"it shows the certificate {shown}, not {pinned}")
        self.shown, self.pinned = shown, pinned


def fingerprint(certificate: bytes) -> str:
    """`sha256:` and the hexadecimal digest of a certificate in DER form."""
    return f"sha256:{hashlib.sha256(certificate).hexdigest()}"


def parse_fingerprint(text: str, field: str = "fingerprint") -> str:
    """As `fingerprint` writes it; also as openssl does, with colons and capitals.  Raises Invalid."""
    digits = text.strip().lower().removeprefix("sha256").lstrip(":=- ").removeprefix("fingerprint=")
    digits = digits.replace(":", "")
    if not _HEXADECIMAL.fullmatch(digits):
        raise Invalid(
            f"{field}: {text[:100]!r} is no fingerprint; write sha256: and its 64 hexadecimal digits, as"
            " `geres up` prints them on the server",
            field=field,
        )
    return f"sha256:{digits}"


@lru_cache(maxsize=16)
def context(pin: str = "") -> ssl.SSLContext:
    """A context for connections to servers: with a fingerprint, only that one certificate counts, whatever
    its name and dates; without, one that an authority of this machine has signed for the name."""
    if not pin:
        return ssl.create_default_context()
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE  # `_check` below is stricter

    class PinnedObject(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            _check(self, pin)

    class PinnedSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            _check(self, pin)

    made.sslobject_class = PinnedObject
    made.sslsocket_class = PinnedSocket
    return made


def _check(connection: ssl.SSLObject | ssl.SSLSocket, pin: str) -> None:
    shown = fingerprint(connection.getpeercert(binary_form=True) or b"")
    if shown != pin:
        raise WrongCertificate(shown, pin)


def websocket_tls(url: str, pin: str) -> dict[str, Any]:
    """What `websockets.connect` takes for this URL."""
    return {"ssl": context(pin)} if url.startswith(("https:", "wss:")) else {}


def check(url: str, pin: str = "") -> None:
    """Shake hands with the server and send nothing.  Raises Untrusted or Unreachable."""
    _shake_hands(url, context(pin))


def peek(url: str) -> str:
    """The fingerprint of the certificate that the server shows now, trusted or not; nothing is sent to it.

    Raises Unreachable where there is no TLS server.
    """
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.verify_mode = ssl.CERT_NONE
    return _shake_hands(url, bare)


def speaks_tls(url: str) -> bool:
    """True where a server that was asked without TLS wants it."""
    try:
        peek(url)
    except (Unreachable, Untrusted):
        return False
    return True


def _shake_hands(url: str, context: ssl.SSLContext) -> str:
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or 443)
    try:
        with (
            socket.create_connection(address, _PEEK_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=parts.hostname) as connection,
        ):
            return fingerprint(connection.getpeercert(binary_form=True) or b"")
    except OSError as error:
        raise refusal(error, url) or Unreachable(f"no server answers at {url}: {error}", url=url) from None


def refusal(
    error: BaseException, url: str, origin: str = "", *, remedy: str = ""
) -> Untrusted | Unreachable | None:
    """What a failed handshake means, in words; None for an error that has nothing to do with trust.

    `remedy` is what to do once the new certificate is known to be good; by default for people.
    """
    if isinstance(error, WrongCertificate):
        return Untrusted(
            f"the server at {url} shows the certificate {error.shown}, but {error.pinned} is pinned"
            f"{f' ({origin})' if origin else ''}: someone may be listening in between, or its certificate was"
            f" made anew; ask who runs it, and only then {remedy or _pin(url, error.shown)}",
            url=url,
            shown=error.shown,
            pinned=error.pinned,
        )
    if isinstance(error, ssl.SSLCertVerificationError) and error.verify_code == _ENDED:
        return Untrusted(f"the certificate of {url} has ended: who runs the server has to renew it", url=url)
    if isinstance(error, ssl.SSLCertVerificationError):
        return Untrusted(
            f"no authority that this machine trusts vouches for the certificate of {url}"
            f" ({error.verify_message or error.reason}); where its operator gave you its fingerprint,"
            f" {remedy or _pin(url, 'sha256:...') + ', or set GERES_FINGERPRINT'}",
            url=url,
        )
    if isinstance(error, ssl.SSLError) and error.reason in _NO_TLS:
        return Unreachable(
            f"the server at {url} does not speak TLS; write http://{urlsplit(url).netloc}", url=url
        )
    return None


def _pin(url: str, shown: str) -> str:
    return f"pin it with `geres login {url} --fingerprint {shown}`"
