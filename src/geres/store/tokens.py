"""Tokens: who stands behind one.  Only hashes are stored."""

from __future__ import annotations

import hashlib

from geres.model.callers import Caller, Role
from geres.store.database import Tx


def token_hash(token: str) -> str:
    """SHA-256 of a token.  Tokens are long and random, so no salt and no slow hash is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


def find_caller(tx: Tx, digest: str, *, now_us: int) -> Caller | None:
    """Whose token this is the hash of; None for one that is unknown, revoked or over."""
    row = tx.one("find_caller", hash=digest, now_us=now_us)
    return Caller(row["tenant_id"], row["tenant"], row["subject"], row["role"]) if row else None


def ensure_token(tx: Tx, token: str, *, tenant_id: int, subject: str, role: Role, now_us: int) -> None:
    """Make a token known; twice is harmless, and brings back one that was revoked."""
    tx.run(
        "ensure_token",
        tenant_id=tenant_id,
        hash=token_hash(token),
        subject=subject,
        role=role,
        now_us=now_us,
    )
