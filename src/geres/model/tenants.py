"""Tenants, users, tokens and the audit log, as the API shows and takes them."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from geres.model.callers import Role, UserRole


class Tenant(Struct, kw_only=True):
    """Who owns, pays and sees: no tenant sees anything of another."""

    name: str
    created_at: str
    disabled_at: str | None = None  #: its tokens are refused since
    user_count: int = 0
    node_count: int = 0
    job_count: int = 0  #: jobs that have not ended


class CreateTenant(Struct, kw_only=True, forbid_unknown_fields=True):
    name: str


class User(Struct, kw_only=True):
    """Somebody who has tokens, or comes with one of an identity provider."""

    name: str
    tenant: str
    role: UserRole
    created_at: str
    disabled_at: str | None = None  #: the user's tokens are refused since
    token_count: int = 0  #: good ones


class CreateUser(Struct, kw_only=True, forbid_unknown_fields=True):
    name: str
    role: UserRole = "user"


class EditUser(Struct, kw_only=True, forbid_unknown_fields=True):
    role: UserRole | None = None
    disabled: bool | None = None


class Token(Struct, kw_only=True):
    """A token without its secret, which nobody knows but its holder."""

    id: str
    name: str | None
    prefix: str | None  #: the first characters of the secret
    user: str
    role: Role
    tenant: str
    created_at: str
    created_by: str | None = None
    expires_at: str | None = None  #: never where there is none
    last_used_at: str | None = None  #: to the minute
    revoked_at: str | None = None
    good: bool = True  #: neither revoked nor over


class MadeToken(Token, kw_only=True):
    """A new token with its secret: shown this once."""

    token: str


class CreateToken(Struct, kw_only=True, forbid_unknown_fields=True):
    user: str | None = None  #: whose; the caller's where left out
    role: UserRole | None = None  #: less than the user's; the user's own, also later, where left out
    name: str | None = None  #: to know it by
    expires_seconds: float | None = None  #: never where left out


class RotateToken(Struct, kw_only=True, forbid_unknown_fields=True):
    overlap_seconds: float = 3600.0  #: the old one is good for so long
    expires_seconds: float | None = None  #: of the new one; as long as the old one's where left out


class AuditEntry(Struct, kw_only=True):
    """One thing that somebody did, or was refused."""

    id: str
    at: str
    tenant: str | None  #: none for those nobody knows
    user: str
    role: str | None
    action: str  #: like `job.cancel`
    target: str | None  #: ids
    address: str | None
    result: str  #: ok, or the code of the refusal
    facts: dict[str, Any] = {}


class AuditPage(Struct, kw_only=True):
    """Newest first."""

    items: list[AuditEntry]
    next_cursor: str | None = None


class AuditQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """Query of GET /v1/audit."""

    user: str | None = None
    action: str | None = None  #: like `job.cancel`, or `job.` for all that is done to jobs
    result: str | None = None  #: `ok`, or a code like `denied`
    since: str | None = None
    until: str | None = None
    limit: int = 100  #: at most 10,000
    cursor: str | None = None  #: of the page before


class TokenQuery(Struct, kw_only=True, forbid_unknown_fields=True):
    """Query of GET /v1/tokens."""

    user: str | None = None
    all: bool = False  #: those that were revoked or are over too
