"""Tokens: who stands behind one.  Only hashes are stored."""

from __future__ import annotations

import hashlib

from geres.errors import Unauthenticated
from geres.model.callers import Caller, Role
from geres.model.units import rfc3339
from geres.store.database import Tx

#: Characters of a token that lists show, to know it by.
PREFIX = 12
LOCAL = "geres up"  #: the name of the tokens in a home


def token_hash(token: str) -> str:
    """SHA-256 of a token.  Tokens are long and random, so no salt and no slow hash is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


def find_caller(tx: Tx, digest: str, *, now_us: int) -> Caller:
    """Whose token this is the hash of.  Raises Unauthenticated, saying what is wrong with it."""
    row = tx.one("find_token", hash=digest)
    if row is None:
        raise Unauthenticated("the token is not known here; log in again with `geres login`")
    for at, what in (
        (row["revoked_at"], "the token was revoked"),
        (row["user_disabled_at"], f"the user {row['subject']} was disabled"),
        (row["tenant_disabled_at"], f"the tenant {row['tenant']} was disabled"),
    ):
        if at is not None:
            raise Unauthenticated(f"{what}: ask your administrator")
    if row["expires_at"] is not None and row["expires_at"] <= now_us:
        at = rfc3339(row["expires_at"])
        raise Unauthenticated(f"the token was good until {at}: make another with `geres token create`")
    return Caller(row["tenant_id"], row["tenant"], row["subject"], row["role"], token_id=row["id"])


def tenant_id_of(tx: Tx, name: str) -> int | None:
    """The tenant of this name."""
    found = tx.value("find_tenant", name=name)
    return None if found is None else int(found)


def ensure_token(tx: Tx, token: str, *, tenant_id: int, subject: str, role: Role, now_us: int) -> None:
    """Make a token known; twice is harmless, and brings back one that was revoked."""
    tx.run(
        "ensure_token",
        tenant_id=tenant_id,
        hash=token_hash(token),
        subject=subject,
        role=role,
        name=LOCAL,
        prefix=token[: PREFIX // 2],
        now_us=now_us,
    )
