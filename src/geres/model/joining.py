"""How a machine becomes a node: join tokens, invitations, and what an agent asks for with them."""

from __future__ import annotations

import re
from typing import NamedTuple

from msgspec import Struct

from geres.errors import Invalid

TOKEN_PREFIX = "join_"
_TOKEN = re.compile(r"join_[A-Za-z0-9_-]{32}")
_PIN = re.compile(r"sha256:[0-9a-f]{64}")
_BETWEEN = "/join/"


class CreateJoinToken(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/join-tokens."""

    pool: str | None = None  #: the pool of its nodes; where left out, the one that the agent names
    uses: int = 1  #: how many nodes may join with it
    expires_seconds: float = 3600.0


class JoinToken(Struct, kw_only=True):
    """A join token.  What it is made of is told once, when it is made."""

    id: str
    state: str  #: good, used, expired or revoked
    pool: str | None = None
    uses: int
    used: int
    created_by: str
    created_at: str
    expires_at: str
    join: str | None = None  #: only in the answer to its creation: what `geres agent --join` takes


class Join(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/agents/join.  The agent makes its credential itself, so that it may ask again."""

    token: str
    node: str  #: its name
    credential: str  #: SHA-256 of the token that the agent will show from now on, hexadecimal


class Joined(Struct, kw_only=True):
    """Answer to it."""

    node: str
    tenant: str
    pool: str | None = None


class Renew(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /v1/agents/credential: the credential that replaces the one it is asked with."""

    credential: str


class Invitation(NamedTuple):
    """What `geres agent --join` takes: one word that no shell changes, with all that a machine needs."""

    url: str
    token: str
    fingerprint: str = ""

    def __str__(self) -> str:
        return f"{self.url}{_BETWEEN}{self.token}{f'/{self.fingerprint}' if self.fingerprint else ''}"


def parse_invitation(text: str) -> Invitation:
    """Raises Invalid for one that was cut or mistyped."""
    url, found, rest = text.strip().rpartition(_BETWEEN)
    token, _, pin = rest.partition("/")
    is_whole = found and url.startswith(("http://", "https://")) and _TOKEN.fullmatch(token)
    if not (is_whole and (not pin or _PIN.fullmatch(pin))):
        raise Invalid(
            "join: this is no invitation, or only a part of one; it reads https://HOST:PORT/join/TOKEN/sha256:..."
            " and `geres node join-token` prints it",
            field="join",
        )
    return Invitation(url, token, pin)


def is_credential_hash(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None
