"""The settings of an identity provider: who issues tokens, for whom, and what their claims mean here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from geres.errors import Denied, Invalid
from geres.model.callers import RANK, UserRole

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_KNOWN = ("issuer", "audience", "user", "tenant", "role", "default_role")
_ROLE = "role."


class Identity(Struct, frozen=True):
    """Who a token is of, by its claims."""

    tenant: str
    user: str
    role: UserRole | None  #: None: the one that the user has here


class IdentityProvider(Struct, frozen=True):
    issuer: str
    audience: str
    #: The claim that names the user.  People must not be able to choose it.
    user: str = "sub"
    #: The claim that names the tenant; `=NAME` for one tenant for all.
    tenant: str = "=default"
    #: The claim with the user's groups: a text or a list.
    role: str = ""
    #: Group to role; of several the one that may most.
    roles: dict[str, UserRole] = {}
    default_role: UserRole | None = None

    def identify(self, claims: Mapping[str, Any]) -> Identity:
        """What the claims of a good token mean.  Raises Denied where they say too little."""
        user = _text(claims, self.user)
        verified = claims.get("email_verified")
        if self.user == "email" and verified is not True and verified != "true":
            raise Denied("nobody has verified the email of this token, so it does not say who you are")
        tenant = self.tenant[1:] if self.tenant.startswith("=") else _text(claims, self.tenant)
        return Identity(tenant, user, self._role(claims))

    def _role(self, claims: Mapping[str, Any]) -> UserRole | None:
        found = claims.get(self.role) if self.role else None
        groups = found if isinstance(found, list) else [found]
        named = [self.roles[group] for group in groups if isinstance(group, str) and group in self.roles]
        return max(named, key=RANK.__getitem__, default=None)


def _text(claims: Mapping[str, Any], claim: str) -> str:
    value = claims.get(claim)
    if not isinstance(value, str) or not value:
        raise Denied(f"the token has no claim {claim!r} that is a text; server.oidc says that it should")
    return value


def provider_of(settings: Mapping[str, str]) -> IdentityProvider | None:
    """The provider that the settings describe; None for empty ones.  Raises Invalid."""
    if not settings:
        return None
    roles: dict[str, UserRole] = {}
    for name, value in settings.items():
        if name.startswith(_ROLE):
            roles[name.removeprefix(_ROLE)] = _role_of(name, value)
        elif name not in _KNOWN:
            raise Invalid(f"{name}: there is no such field; there are {', '.join(_KNOWN)} and role.GROUP")
    for name in ("issuer", "audience"):
        if not settings.get(name):
            raise Invalid(f"{name}: is missing")
    check_url(settings["issuer"], "issuer")
    default = settings.get("default_role")
    return IdentityProvider(
        issuer=settings["issuer"],
        audience=settings["audience"],
        user=settings.get("user") or "sub",
        tenant=settings.get("tenant") or "=default",
        role=settings.get("role", ""),
        roles=roles,
        default_role=_role_of("default_role", default) if default else None,
    )


def _role_of(name: str, value: str) -> UserRole:
    if value not in RANK:
        raise Invalid(f"{name}: {value!r} is none of {', '.join(RANK)}")
    return value  # type: ignore[return-value]  # RANK has just these


def check_url(url: str, name: str) -> None:
    """Raise Invalid for what would be asked without TLS over a network."""
    try:
        parts = urlsplit(url)
        good = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
        good = good and bool(parts.hostname) and not parts.username
    except ValueError:
        good = False
    if not good:
        raise Invalid(f"{name}: {url!r} is no address; write one that begins with https://")
