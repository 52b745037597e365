"""The certificate of a server: given files, or one that geres makes and clients pin by its fingerprint.

All servers of a store show the same self-made certificate, so that one fingerprint is good for each of them,
behind any balancer: it lies in the store, and a copy in the home, readable by its owner alone.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from geres import config, trust
from geres.config import ServerConfig
from geres.errors import Invalid
from geres.files import write_private
from geres.store import secrets
from geres.store.database import Database

log = logging.getLogger("geres.server.tls")

FILE_NAME = "tls.pem"  #: in the home: the self-made certificate and its key
_DAY = timedelta(days=1)
_SOON = timedelta(days=14)
_LIFE = timedelta(days=3650)  # what is pinned is trusted whatever its dates


class Tls:
    """What a server shows to its clients."""

    def __init__(self, certificate: Path, key: Path | None, *, pinned: bool | None = None) -> None:
        """`pinned`: whether clients need the fingerprint; None: where nobody else signed the certificate.

        Raises Invalid for files that are missing, unreadable, or do not belong together.
        """
        self._certificate, self._key = certificate, key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._seen = self._stamp()
        found = self._load(lambda found: None)
        self.fingerprint, self._until = found.fingerprint, found.until
        #: What clients pin; empty where an authority vouches for the certificate, which so may be renewed.
        self.pin = self.fingerprint if (found.signed_by_itself if pinned is None else pinned) else ""
        #: Names and addresses that clients look for in it; none where they pin it.
        self.names = () if self.pin else found.names
        self._warned: datetime | None = None

    async def step(self) -> bool:
        """Load the files again where they were renewed; connections that are open keep the old one.

        Warns once a day of one that ends soon.
        """
        self._warn(datetime.now(UTC))
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            found = self._load(self._refuse_ended)
        except Invalid as error:
            log.error("the renewed certificate cannot be used; the old one stays: %s", error)
            return False
        self.fingerprint, self._until, self._warned = found.fingerprint, found.until, None
        log.info("the certificate was renewed: %s", self.fingerprint, extra={"event": "renewed"})
        if self.pin not in ("", self.fingerprint):
            log.warning("clients and nodes that have pinned %s refuse the new certificate", self.pin)
        return False

    def _warn(self, now: datetime) -> None:
        """What is pinned is trusted whatever its dates."""
        if self.pin or self._until - now > _SOON or (self._warned and now - self._warned < _DAY):
            return
        self._warned = now
        log.warning(
            "the certificate in %s ends at %s: clients refuse it from then on; renew it",
            self._certificate,
            self._until.isoformat(),
            extra={"event": "certificate_ends"},
        )

    def refuse_ended(self) -> None:
        """Raise Invalid where clients refuse the certificate because of its dates."""
        self._refuse_ended(_first_certificate(self._certificate))

    def _refuse_ended(self, found: _Found) -> None:
        if not self.pin and found.until <= datetime.now(UTC):
            raise Invalid(
                f"certificate: {self._certificate} ended at {found.until:%Y-%m-%d %H:%M} UTC, and clients"
                " refuse it; renew it",
                field="certificate",
            )

    def _load(self, check: Callable[[_Found], None]) -> _Found:
        """Take the files, where `check` does not raise, or leave all as it was.  Raises Invalid."""
        trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # a half renewed pair must not reach the one in use
        try:
            trial.load_cert_chain(self._certificate, self._key, password=lambda: "")
            found = _first_certificate(self._certificate)
            check(found)
            self.context.load_cert_chain(self._certificate, self._key, password=lambda: "")
        except OSError as error:
            what = error.strerror if not isinstance(error, ssl.SSLError) else error.reason
            raise Invalid(
                f"certificate: {self._certificate} cannot be used"
                f"{f' with {self._key}' if self._key else ''}: {what or error}; give PEM files that belong"
                " together, the key without a password",
                field="certificate",
            ) from None
        return found

    def _stamp(self) -> tuple[object, ...]:
        return tuple(_stat(path) for path in (self._certificate, self._key) if path is not None)


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def prepare(settings: ServerConfig, home: Path, db: Database, *, now_us: int) -> Tls | None:
    """The certificate that these settings ask for; None where clients are answered without TLS.

    Raises Invalid for files that cannot be used.
    """
    if settings.certificate == (config.SELF_MADE,) or (not settings.certificate and needs_tls(settings)):
        return Tls(_self_made(settings.host, home, db, now_us), None, pinned=True)
    return None if not settings.certificate or settings.insecure else given(settings)


def check(settings: ServerConfig) -> None:
    """Raise Invalid for files that cannot be used, without looking into the store."""
    if settings.certificate and not {config.SELF_MADE, config.NO_TLS} & set(settings.certificate):
        given(settings)


def given(settings: ServerConfig) -> Tls:
    """From the files that the settings name.  Raises Invalid for what cannot be used."""
    certificate, *key = (Path(one).expanduser().absolute() for one in settings.certificate)
    return Tls(certificate, key[0] if key else None)


def needs_tls(settings: ServerConfig) -> bool:
    """True where other machines reach the address and nobody said that they may without TLS."""
    return not settings.insecure and not config.is_loopback(settings.host)


def _self_made(host: str, home: Path, db: Database, now_us: int) -> Path:
    """The file with the certificate that all servers of this store share; it is made where there is none."""
    path = home / FILE_NAME
    try:
        mine: str | None = path.read_text()
    except FileNotFoundError:
        mine = None
    except OSError as error:
        raise Invalid(f"certificate: {path} cannot be read: {error.strerror}", field="certificate") from None
    text = db.call(secrets.shared_text, secrets.CERTIFICATE, lambda: mine or make(host), now_us=now_us)
    if text != mine:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, text)
    return path


def make(host: str) -> str:
    """A new certificate for this machine with its key, signed by itself, as PEM."""
    # Loaded only to make one: it takes longer than the rest of a start.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "geres")])
    now = datetime.now(UTC)
    names: list[x509.GeneralName] = []
    for one in dict.fromkeys((socket.gethostname(), socket.getfqdn(), "localhost", host, "127.0.0.1", "::1")):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(one)))
        except ValueError:
            if one.isascii() and "*" not in one:
                names.append(x509.DNSName(one))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks differ
        .not_valid_after(now + _LIFE)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return (certificate.public_bytes(serialization.Encoding.PEM) + private).decode()


class _Found(NamedTuple):
    fingerprint: str
    signed_by_itself: bool
    until: datetime
    names: tuple[str, ...]  #: host names first, then addresses


def _first_certificate(path: Path) -> _Found:
    """The first certificate of a PEM file.  Raises Invalid where there is none."""
    from cryptography import x509  # as in `make`
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Invalid(f"certificate: {path} holds no certificate: {error}", field="certificate") from None
    fingerprint = trust.fingerprint(found.public_bytes(Encoding.DER))
    try:
        said = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        names: tuple[str, ...] = ()
    else:
        addresses = map(str, said.get_values_for_type(x509.IPAddress))
        names = (*said.get_values_for_type(x509.DNSName), *addresses)
    return _Found(fingerprint, found.issuer == found.subject, found.not_valid_after_utc, names)
