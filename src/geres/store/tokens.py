"""Tokens: who stands behind one, and making, replacing and revoking them.  Only hashes are stored."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

import msgspec

from geres.errors import Conflict, Denied, Invalid, NotFound, Unauthenticated
from geres.model.callers import RANK, Caller, Role, UserRole, lesser
from geres.model.identity import Identity
from geres.model.ids import parse_job
from geres.model.tenants import CreateToken, MadeToken, RotateToken, Token, TokenQuery
from geres.model.units import rfc3339
from geres.store import audit, known, sharing
from geres.store.database import Row, Tx
from geres.store.tenants import check_rank, check_user_name, no_user

#: Characters of a token that lists show, to know it by.
PREFIX = 12
LOCAL = "geres up"  #: the name of the tokens in a home
LOCAL_TENANT = "default"  #: of the accounts of the server's machine
_WORD = "geres_"  #: every token begins so: people and scanners know what it is
_SECOND_US = 1_000_000
_LONGEST_NAME = 100
_MOST = 1000  #: good tokens of one user
_LONGEST_SECONDS = 100 * 366 * 86400.0


def token_hash(token: str) -> str:
    """SHA-256 of a token.  Tokens are long and random, so no salt and no slow hash is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


def find_caller(tx: Tx, digest: str, *, now_us: int) -> Caller:
    """Whose token this is the hash of.  Raises Unauthenticated, saying what is wrong with it."""
    row = tx.one("find_token", hash=digest)
    if row is None:
        raise Unauthenticated("the token is not known here; log in again with `geres login`")
    caller = Caller(
        *(row["tenant_id"], row["tenant"], row["subject"], row["role"]),
        token_id=row["id"],
        node=row["node_name"] or "",
        pool=row["pool"] or "",
    )
    if why := _problem(row, now_us):
        error = Unauthenticated(why)
        error.whose = caller
        raise error
    return caller


def _problem(row: Row, now_us: int) -> str | None:
    """Why a token is no good any more; None where it is."""
    for at, what in (
        (row["revoked_at"], "the token was revoked"),
        (row["user_disabled_at"], f"the user {row['subject']} was disabled"),
        (row["tenant_disabled_at"], f"the tenant {row['tenant']} was disabled"),
    ):
        if at is not None:
            return f"{what}: ask your administrator"
    if row["expires_at"] is not None and row["expires_at"] <= now_us:
        until = rfc3339(row["expires_at"])
        return f"the token was good until {until}: make another with `geres token create`"
    return None


def find_account(tx: Tx, name: str, *, role: UserRole, now_us: int) -> Caller:
    """The user with the name of an account of the server's machine; one that is new gets this role.

    An admin by account stays one.  Raises Unauthenticated where the user was disabled, or their tenant.
    """
    tenant_id = sharing.ensure_tenant(tx, LOCAL_TENANT, now_us=now_us)
    row = tx.one("identity_here", tenant=LOCAL_TENANT, name=name)
    assert row is not None
    if row["tenant_disabled_at"] is not None and role != "admin":  # who may enable it again
        raise Unauthenticated(f"the tenant {LOCAL_TENANT} was disabled: ask your administrator")
    if row["role"] is None:
        tx.run("create_user", tenant_id=tenant_id, name=name, role=role, now_us=now_us)
    elif row["user_disabled_at"] is not None:
        raise Unauthenticated(f"the user {name} was disabled: ask your administrator")
    elif role != "admin":
        role = row["role"]
    return Caller(tenant_id, LOCAL_TENANT, name, role)


def find_identity(tx: Tx, identity: Identity, *, default_role: UserRole | None) -> Caller:
    """Who somebody of an identity provider is here: with the role of the claims, else of the user, else this.

    Raises Unauthenticated for one that was disabled, Denied where the tenant or the role is missing.
    """
    check_user_name(identity.user)
    row = tx.one("identity_here", tenant=identity.tenant, name=identity.user)
    if row is None:
        raise Denied(f"the token names the tenant {identity.tenant[:100]!r}, which is not here")
    if row["tenant_disabled_at"] is not None or row["user_disabled_at"] is not None:
        raise Unauthenticated(f"{identity.user} or the tenant was disabled: ask your administrator")
    role = identity.role or row["role"] or default_role
    if role is None:
        raise Denied(f"no role says what {identity.user} may do: ask your administrator")
    return Caller(row["tenant_id"], identity.tenant, identity.user, role)


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
    if role in RANK:
        tx.run("create_user", tenant_id=tenant_id, name=subject, role=role, now_us=now_us)


def create(tx: Tx, caller: Caller, spec: CreateToken, *, now_us: int) -> MadeToken:
    """Make a token: for oneself, or for a user below.  Its role is the user's, also later, or less.

    Raises NotFound, Invalid, or Denied for a user or role above the caller.
    """
    subject = caller.subject if spec.user is None else spec.user
    user = _lock_user(tx, caller, subject)
    _check_owner(caller, subject)
    check_rank(caller, user["role"] if subject != caller.subject else "viewer")
    role = lesser(spec.role or user["role"], user["role"])
    if spec.role is not None and role != spec.role:
        raise Invalid(f"role: {subject} is {user['role']}, so a token cannot be {spec.role}", field="role")
    # one that may less must not make one that may more, not for the same user either
    follows = spec.role is None and (subject != caller.subject or caller.role == user["role"])
    if subject == caller.subject:
        role = lesser(role, caller.role)  # type: ignore[arg-type]  # nodes and tasks make no tokens
    expires_at = _expiry(spec.expires_seconds, now_us)
    made = _insert(
        tx,
        caller,
        now_us=now_us,
        subject=subject,
        role=role,
        own_role=int(not follows),
        name=_checked_name(spec.name),
        expires_at=expires_at,
    )
    audit.write(
        tx,
        caller,
        "token.create",
        made.id,
        now_us=now_us,
        user=subject,
        role=role,
        expires_at=made.expires_at,
    )
    return made


def list_tokens(tx: Tx, caller: Caller, query: TokenQuery, *, now_us: int) -> list[Token]:
    """Tokens of the caller, and for an operator those of the tenant; oldest first.

    Raises NotFound, Denied.
    """
    subject = query.user
    if RANK.get(caller.role, 0) < RANK["operator"]:
        subject = caller.subject
        if query.user not in (None, subject):
            raise Denied("only operators and admins see the tokens of others")
    if subject is not None:
        known.check_user(tx, caller, subject)
    rows = tx.all(
        "list_tokens", tenant_id=caller.tenant_id, subject=subject, everything=int(query.all), now_us=now_us
    )
    return [_token(row, now_us) for row in rows]


def revoke(tx: Tx, caller: Caller, called: str, *, now_us: int) -> Token:
    """Refuse a token from now on; again is harmless.  `called` is an id, the first characters or a name.

    Raises NotFound, Denied.
    """
    row = _find(tx, caller, called, now_us)
    if tx.run("revoke_token", token_id=row["id"], now_us=now_us):
        audit.write(tx, caller, "token.revoke", str(row["id"]), now_us=now_us, user=row["subject"])
    return _by_id(tx, row["id"], now_us)


def rotate(tx: Tx, caller: Caller, called: str, spec: RotateToken, *, now_us: int) -> MadeToken:
    """Make a token like this one; the old one is good for a while longer.

    Raises NotFound, Denied, Invalid, or Conflict for one that is no good any more.
    """
    row = _find(tx, caller, called, now_us)
    if row["role"] not in RANK:
        raise Conflict(f"token {row['id']} is of a {row['role']}, which gets a new one by itself")
    _lock_user(tx, caller, row["subject"])
    row = _find(tx, caller, str(row["id"]), now_us)  # its role may have been another one a moment ago
    check_rank(caller, row["role"])  # of oneself too: one that may less gets none that may more
    if not _is_good(row, now_us):
        raise Conflict(f"token {row['id']} is no good any more: make a new one with `geres token create`")
    if not 0 <= spec.overlap_seconds <= _LONGEST_SECONDS:
        raise Invalid("overlap_seconds: is not between 0 and 100 years", field="overlap_seconds")
    expires_at = _expiry(spec.expires_seconds, now_us)
    if spec.expires_seconds is None and row["expires_at"] is not None:
        expires_at = now_us + row["expires_at"] - row["created_at"]
    made = _insert(
        tx,
        caller,
        now_us=now_us,
        subject=row["subject"],
        role=row["role"],
        own_role=row["own_role"],
        name=row["name"],
        expires_at=expires_at,
    )
    until = now_us + int(spec.overlap_seconds * _SECOND_US)
    tx.run("end_token", token_id=row["id"], expires_at=until)
    audit.write(
        tx,
        caller,
        "token.rotate",
        str(row["id"]),
        now_us=now_us,
        user=row["subject"],
        new=made.id,
        old_good_until=rfc3339(until),
    )
    return made


def mark_used(tx: Tx, used: dict[int, int]) -> None:
    """Note when tokens were used last."""
    for token_id, at in sorted(used.items()):
        tx.run("token_used", token_id=token_id, at=at)


def forget(tx: Tx, *, before_us: int, limit: int = 1000) -> int:
    """Forget tokens that have been no good since before a time.  Returns how many."""
    return tx.run("forget_tokens", before_us=before_us, limit=limit)


def _lock_user(tx: Tx, caller: Caller, name: str) -> Row:
    """Nobody gives the user another role before the new token is there to follow it.  Raises NotFound."""
    user = tx.one("lock_user", tenant_id=caller.tenant_id, name=name)
    if user is None:
        raise no_user(name)
    return user


def _insert(tx: Tx, caller: Caller, *, now_us: int, **fields: Any) -> MadeToken:
    user = fields["subject"]
    if tx.value("count_tokens", tenant_id=caller.tenant_id, subject=user, now_us=now_us) >= _MOST:
        raise Conflict(f"{user} has {_MOST} tokens that are good: revoke those that nobody uses")
    secret = _WORD + secrets.token_urlsafe(32)
    token_id = tx.value(
        "create_token",
        tenant_id=caller.tenant_id,
        hash=token_hash(secret),
        prefix=secret[:PREFIX],
        created_by=caller.subject,
        now_us=now_us,
        **fields,
    )
    made = _by_id(tx, int(token_id), now_us)
    return MadeToken(**msgspec.structs.asdict(made), token=secret)


def _find(tx: Tx, caller: Caller, called: str, now_us: int) -> Row:
    """The token that the caller may manage and calls so.  Raises NotFound, Denied."""
    is_operator = RANK.get(caller.role, 0) >= RANK["operator"]
    row = tx.one(
        "tokens_called",
        tenant_id=caller.tenant_id,
        token_id=parse_job(called) or 0,
        called=called,
        subject=None if is_operator else caller.subject,
        now_us=now_us,
    )
    if row is None:
        raise NotFound(f"there is no token {called!r}; see `geres token list`", id=called)
    if row["subject"] != caller.subject:
        check_rank(caller, row["role"] if row["role"] in RANK else "operator")
    return row


def _check_owner(caller: Caller, subject: str) -> None:
    if subject != caller.subject and RANK.get(caller.role, 0) < RANK["operator"]:
        raise Denied("only operators and admins make tokens for others", role=caller.role)


def _by_id(tx: Tx, token_id: int, now_us: int) -> Token:
    row = tx.one("token_by_id", token_id=token_id)
    assert row is not None, token_id
    return _token(row, now_us)


def _is_good(row: Row, now_us: int) -> bool:
    return row["revoked_at"] is None and (row["expires_at"] is None or row["expires_at"] > now_us)


def _token(row: Row, now_us: int) -> Token:
    return Token(
        id=str(row["id"]),
        name=row["name"],
        prefix=row["prefix"],
        user=row["subject"],
        role=row["role"],
        tenant=row["tenant"],
        created_at=rfc3339(row["created_at"]) or "",
        created_by=row["created_by"],
        expires_at=rfc3339(row["expires_at"]),
        last_used_at=rfc3339(row["last_used_at"]),
        revoked_at=rfc3339(row["revoked_at"]),
        good=_is_good(row, now_us),
    )


def _expiry(seconds: float | None, now_us: int) -> int | None:
    if seconds is None:
        return None
    if not 1 <= seconds <= _LONGEST_SECONDS:
        raise Invalid("expires_seconds: is not between a second and 100 years", field="expires_seconds")
    return now_us + int(seconds * _SECOND_US)


def _checked_name(name: str | None) -> str | None:
    if name is not None and not (0 < len(name) <= _LONGEST_NAME and name.isprintable()):
        raise Invalid(f"name: use 1 to {_LONGEST_NAME} printable characters", field="name")
    return name
