"""Join tokens and the credentials of nodes.  Only hashes are stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geres.errors import Conflict, Invalid, NameTaken, NotFound, Unauthenticated
from geres.model.callers import Caller
from geres.model.ids import is_name, may_name_node
from geres.model.joining import CreateJoinToken, Join, Joined, JoinToken, is_credential_hash
from geres.model.units import rfc3339
from geres.store import audit
from geres.store.database import Tx
from geres.store.tokens import token_hash

_MOST_USES = 100_000
_LONGEST_SECONDS = 366 * 86400.0
_MOST_LISTED = 1000
_MORE = "`geres node join-token` makes another"


def create(tx: Tx, caller: Caller, wanted: CreateJoinToken, token: str, *, now_us: int) -> JoinToken:
    """Make a join token known.  Raises Invalid for numbers and names that cannot be."""
    if not 1 <= wanted.uses <= _MOST_USES:
        raise Invalid(f"uses: {wanted.uses} is not between 1 and {_MOST_USES:,}", field="uses")
    if not 1 <= wanted.expires_seconds <= _LONGEST_SECONDS:
        raise Invalid(
            f"expires_seconds: {wanted.expires_seconds:g} is not between a second and a year",
            field="expires_seconds",
        )
    if wanted.pool is not None and not is_name(wanted.pool):
        raise Invalid(f"pool: {wanted.pool[:80]!r} cannot name a pool", field="pool")
    expires_at = now_us + int(wanted.expires_seconds * 1e6)
    number = tx.value(
        "create_join_token",
        tenant_id=caller.tenant_id,
        hash=token_hash(token),
        pool=wanted.pool,
        uses=wanted.uses,
        created_by=caller.subject,
        now_us=now_us,
        expires_at=expires_at,
    )
    audit.write(
        tx,
        caller,
        "join_token.create",
        str(number),
        now_us=now_us,
        pool=wanted.pool,
        uses=wanted.uses,
        expires_at=rfc3339(expires_at),
    )
    return JoinToken(
        id=str(number),
        state="good",
        pool=wanted.pool,
        uses=wanted.uses,
        used=0,
        created_by=caller.subject,
        created_at=rfc3339(now_us) or "",
        expires_at=rfc3339(expires_at) or "",
    )


def list_tokens(tx: Tx, caller: Caller, *, now_us: int) -> list[JoinToken]:
    """The join tokens of the caller's tenant, the newest first."""
    rows = tx.all("list_join_tokens", tenant_id=caller.tenant_id, limit=_MOST_LISTED)
    return [_shown(row, now_us) for row in rows]


def revoke(tx: Tx, caller: Caller, number: str, *, now_us: int) -> JoinToken:
    """Let nobody join with it any more; twice is harmless.  Raises NotFound."""
    row = None
    if number.isascii() and number.isdigit() and len(number) < 19:
        row = tx.one("revoke_join_token", id=int(number), tenant_id=caller.tenant_id, now_us=now_us)
    if row is None:
        raise NotFound(f"there is no join token {number[:40]!r}; see `geres node join-tokens`", id=number)
    audit.write(tx, caller, "join_token.revoke", number, now_us=now_us)
    return _shown(row, now_us)


def _shown(row: Mapping[str, Any], now_us: int) -> JoinToken:
    return JoinToken(
        id=str(row["id"]),
        state=_state(row, now_us),
        pool=row["pool"],
        uses=row["uses"],
        used=row["used"],
        created_by=row["created_by"],
        created_at=rfc3339(row["created_at"]) or "",
        expires_at=rfc3339(row["expires_at"]) or "",
    )


def _state(row: Mapping[str, Any], now_us: int) -> str:
    if row["revoked_at"] is not None:
        return "revoked"
    if row["used"] >= row["uses"]:
        return "used"
    return "expired" if row["expires_at"] <= now_us else "good"


def join(tx: Tx, wanted: Join, *, address: str, now_us: int) -> Joined:
    """Take a machine in: its credential is good for this one node from now on.

    The same machine may ask again: its answer may have been lost.  A name that another machine joined with
    is free again when that one has stopped or is lost; the old credential is revoked then.
    Raises Unauthenticated for a join token that is not good, NameTaken, Invalid.
    """
    if not may_name_node(wanted.node):
        raise Invalid(f"node: {wanted.node[:80]!r} cannot name a node", field="node")
    if not is_credential_hash(wanted.credential):
        raise Invalid("credential: is no SHA-256 in hexadecimal digits", field="credential")
    token = tx.one("find_join_token", hash=token_hash(wanted.token))
    if token is None:
        raise Unauthenticated(f"the join token is not known here: {_MORE}")
    tenant_id = token["tenant_id"]
    subject = _subject(wanted.node)
    caller = Caller(tenant_id, token["tenant"], subject, "node", address=address, node=wanted.node)
    joined = Joined(node=wanted.node, tenant=token["tenant"], pool=token["pool"])
    good = tx.all("credentials_of_node", tenant_id=tenant_id, node=wanted.node)
    if any(one["hash"] == wanted.credential and one["join_token_id"] == token["id"] for one in good):
        return joined
    if token["tenant_disabled_at"] is not None:
        raise _refused(caller, f"the tenant {token['tenant']} was disabled: ask your administrator")
    if (state := _state(token, now_us)) != "good":
        told = {
            "used": f"was used already ({token['used']} of {token['uses']} times)",
            "expired": f"was good until {rfc3339(token['expires_at'])}",
            "revoked": f"was revoked at {rfc3339(token['revoked_at'])}",
        }
        raise _refused(caller, f"the join token {told[state]}: {_MORE}", state=state)
    if tx.value("use_join_token", id=token["id"]) is None:
        raise _refused(caller, f"the join token was used already: {_MORE}", state="used")
    if tx.all("credentials_of_node", tenant_id=tenant_id, node=wanted.node):
        _check_free(tx, tenant_id, wanted.node, now_us)
    keys = {"tenant_id": tenant_id, "node": wanted.node, "now_us": now_us}
    tx.run("revoke_credentials", keep=wanted.credential, **keys)
    added = tx.value(
        "add_credential",
        hash=wanted.credential,
        subject=_subject(wanted.node),
        created_by=token["created_by"],
        pool=token["pool"],
        join_token_id=token["id"],
        **keys,
    )
    if added is None:
        raise Conflict("credential: is known already; remove node.json from the agent's home, and join again")
    tx.run("take_removed_back", tenant_id=tenant_id, node=wanted.node)
    audit.write(tx, caller, "node.join", wanted.node, now_us=now_us, join_token=str(token["id"]))
    return joined


def _refused(caller: Caller, message: str, **facts: str) -> Unauthenticated:
    """With whose the join token is, for the audit log of that tenant."""
    error = Unauthenticated(message, **facts)
    error.whose = caller
    return error


def _subject(node: str) -> str:
    return f"node:{node}"  # no user has such a name


def _check_free(tx: Tx, tenant_id: int, node: str, now_us: int) -> None:
    """Raise NameTaken where the machine that has joined with this name is there."""
    row = tx.one("node_to_join", tenant_id=tenant_id, node=node)
    if row is not None and row["lease_until"] is not None and row["lease_until"] > now_us:
        raise NameTaken(
            f"node: another machine has joined as {node} and is there: give this one another --name, or stop"
            f" that one or remove it with `geres node remove {node}`",
            node=node,
        )


def renew(tx: Tx, caller: Caller, credential: str, *, now_us: int) -> None:
    """Put another credential in the place of the one that the node asks with; twice is harmless."""
    if not caller.node:
        raise Invalid("this agent did not join with a join token: its token is its server's to change")
    if not is_credential_hash(credential):
        raise Invalid("credential: is no SHA-256 in hexadecimal digits", field="credential")
    good = tx.all("credentials_of_node", tenant_id=caller.tenant_id, node=caller.node)
    mine = next((one for one in good if one["id"] == caller.token_id), None)
    if mine is None:
        raise Unauthenticated("the node's credential was revoked")
    keys = {"tenant_id": caller.tenant_id, "node": caller.node, "now_us": now_us}
    tx.run("revoke_credentials", keep=credential, **keys)
    if all(one["hash"] != credential for one in good):
        added = tx.value(
            "add_credential",
            hash=credential,
            subject=caller.subject,
            created_by=caller.node,
            pool=mine["pool"],
            join_token_id=mine["join_token_id"],
            **keys,
        )
        if added is None:
            raise Conflict("credential: is known already; ask again with another")
    audit.write(tx, caller, "node.renew", caller.node, now_us=now_us)


def revoke_node(tx: Tx, tenant_id: int, node: str, *, now_us: int) -> int:
    """Let the machine that joined as this node in no more.  Returns how many credentials that took."""
    return tx.run("revoke_credentials", tenant_id=tenant_id, node=node, keep="", now_us=now_us)


def forget(tx: Tx, *, before_us: int, limit: int) -> int:
    """Remove join tokens that were good until `before_us` at the latest."""
    return tx.run("forget_join_tokens", before_us=before_us, limit=limit)
