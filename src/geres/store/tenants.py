"""Tenants and their users.  An admin manages all, an operator those of their tenant below them."""

from __future__ import annotations

from geres.errors import Conflict, Denied, Invalid, NameTaken, NotFound
from geres.model.callers import RANK, Caller, UserRole, lesser
from geres.model.ids import check_name
from geres.model.tenants import CreateUser, EditUser, Tenant, User
from geres.model.units import rfc3339
from geres.store import audit
from geres.store.database import Row, Tx
from geres.store.sharing import ensure_tenant

_LONGEST_NAME = 100


def list_tenants(tx: Tx, caller: Caller) -> list[Tenant]:
    """By name: all for an admin, else the caller's own."""
    name = None if caller.role == "admin" and not caller.home else caller.tenant
    return [_tenant(row) for row in tx.all("list_tenants", name=name)]


def get_tenant(tx: Tx, caller: Caller, name: str) -> Tenant:
    """Raises NotFound, for those of others too."""
    rows = tx.all("list_tenants", name=name) if name == caller.tenant or caller.role == "admin" else []
    if not rows:
        raise no_tenant(name)
    return _tenant(rows[0])


def create_tenant(tx: Tx, caller: Caller, name: str, *, now_us: int) -> Tenant:
    """Raises Invalid or NameTaken."""
    check_name(name)
    if len(name) > _LONGEST_NAME or name != name.strip() or not name.isascii():
        raise Invalid(f"name: use at most {_LONGEST_NAME} plain ASCII characters", field="name")
    if tx.value("find_tenant", name=name) is not None:
        raise NameTaken(f"there is a tenant {name!r} already", name=name)
    ensure_tenant(tx, name, now_us=now_us)
    audit.write(tx, caller, "tenant.create", name, now_us=now_us)
    return get_tenant(tx, caller, name)


def disable_tenant(tx: Tx, caller: Caller, name: str, disabled: bool, *, now_us: int) -> Tenant:
    """Refuse its tokens from now on, or take them again.  What it has, and what runs, stays.

    Raises NotFound, or Conflict for the caller's own.
    """
    tenant_id = tx.value("find_tenant", name=name)
    if tenant_id is None:
        raise no_tenant(name)
    if disabled and name in (caller.tenant, caller.home):
        raise Conflict("you are in this tenant: you would lock yourself out", name=name)
    if tx.run("set_tenant_disabled", tenant_id=tenant_id, disabled_at=now_us if disabled else None):
        action = "tenant.disable" if disabled else "tenant.enable"
        audit.write(tx, caller, action, name, now_us=now_us)
    return get_tenant(tx, caller, name)


def _tenant(row: Row) -> Tenant:
    return Tenant(
        name=row["name"],
        created_at=rfc3339(row["created_at"]) or "",
        disabled_at=rfc3339(row["disabled_at"]),
        user_count=row["users"],
        node_count=row["nodes"],
        job_count=row["jobs"],
    )


def no_tenant(name: str) -> NotFound:
    return NotFound(f"there is no tenant {name!r}", tenant=name)


def list_users(tx: Tx, caller: Caller, *, now_us: int) -> list[User]:
    """The users of the caller's tenant, by name."""
    rows = tx.all("list_users", tenant_id=caller.tenant_id, name=None, now_us=now_us)
    return [_user(row) for row in rows]


def create_user(tx: Tx, caller: Caller, spec: CreateUser, *, now_us: int) -> User:
    """Raises Invalid, NameTaken, or Denied for a role above the caller's."""
    check_user_name(spec.name)
    check_rank(caller, spec.role)
    made = tx.run("create_user", tenant_id=caller.tenant_id, name=spec.name, role=spec.role, now_us=now_us)
    if not made:
        raise NameTaken(f"there is a user {spec.name!r} already", name=spec.name)
    audit.write(tx, caller, "user.create", spec.name, now_us=now_us, role=spec.role)
    return _get_user(tx, caller, spec.name, now_us)


def edit_user(tx: Tx, caller: Caller, name: str, changes: EditUser, *, now_us: int) -> User:
    """Give a user another role, or refuse their tokens; both hold for the tokens that there are.

    Raises NotFound, Denied for one above the caller, Conflict for oneself.
    """
    row = tx.one("lock_user", tenant_id=caller.tenant_id, name=name)
    if row is None:
        raise no_user(name)
    role: UserRole = changes.role or row["role"]
    check_rank(caller, row["role"])
    check_rank(caller, role)
    disabled_at = row["disabled_at"]
    if changes.disabled is not None and changes.disabled != (disabled_at is not None):
        disabled_at = now_us if changes.disabled else None
    if (role, disabled_at) == (row["role"], row["disabled_at"]):
        return _get_user(tx, caller, name, now_us)
    if name == caller.subject and not caller.home:
        raise Conflict("this user is you: you would lock yourself out", name=name)
    tx.run("edit_user", tenant_id=caller.tenant_id, name=name, role=role, disabled_at=disabled_at)
    if role != row["role"]:
        _follow_role(tx, caller, name, role)
        audit.write(tx, caller, "user.set-role", name, now_us=now_us, role=role, before=row["role"])
    if disabled_at != row["disabled_at"]:
        action = "user.enable" if disabled_at is None else "user.disable"
        audit.write(tx, caller, action, name, now_us=now_us)
    return _get_user(tx, caller, name, now_us)


def _follow_role(tx: Tx, caller: Caller, name: str, role: UserRole) -> None:
    """The role of each token stands in its own row, where every version of geres looks."""
    for token in tx.all("tokens_of_user", tenant_id=caller.tenant_id, subject=name):
        new = lesser(token["role"], role) if token["own_role"] else role
        if new != token["role"]:
            tx.run("set_token_role", token_id=token["id"], role=new)


def _get_user(tx: Tx, caller: Caller, name: str, now_us: int) -> User:
    return _user(tx.all("list_users", tenant_id=caller.tenant_id, name=name, now_us=now_us)[0])


def _user(row: Row) -> User:
    return User(
        name=row["name"],
        tenant=row["tenant"],
        role=row["role"],
        created_at=rfc3339(row["created_at"]) or "",
        disabled_at=rfc3339(row["disabled_at"]),
        token_count=row["tokens"],
    )


def no_user(name: str) -> NotFound:
    return NotFound(f"there is no user {name!r}; see `geres user list`", user=name)


def check_user_name(name: str) -> None:
    """Raises Invalid for what could break a line, or is that of a node; an address of mail is a good name."""
    if name.startswith("node:"):
        raise Invalid("name: node: stands before the names of nodes; choose another", field="name")
    if not (0 < len(name) <= _LONGEST_NAME and name.isprintable() and name == name.strip()):
        raise Invalid(f"name: use 1 to {_LONGEST_NAME} printable characters", field="name")


def check_rank(caller: Caller, role: str) -> None:
    """Raises Denied for a role above the caller's own."""
    if RANK[role] > RANK.get(caller.role, 0):
        raise Denied(f"a token of role {caller.role} may not manage those of role {role}", role=caller.role)
