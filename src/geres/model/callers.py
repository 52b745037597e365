"""Who asks: the identity behind a token, and how much the roles may."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

#: Of people and their programs.
UserRole = Literal["admin", "operator", "user", "viewer"]
Role = Literal["admin", "operator", "user", "viewer", "node", "task"]
#: More is more; nodes and tasks are beside this order.
RANK: dict[str, int] = {"viewer": 1, "user": 2, "operator": 3, "admin": 4}


class Caller(Struct, frozen=True):
    tenant_id: int
    tenant: str
    subject: str
    role: Role
    address: str = ""  #: where the request came from
    token_id: int = 0  #: of a token in the store
    task: int = 0  #: of role task: its key
    node: str = ""  #: of role node: its name; empty for a token that any node of its tenant may use
    pool: str = ""  #: of role node: its pool; empty for any
    home: str = ""  #: of an admin who works in another tenant: their own
    private: bool = False  #: sees only their own tasks and jobs


def lesser(one: UserRole, other: UserRole) -> UserRole:
    """The role of the two that may less."""
    return one if RANK[one] <= RANK[other] else other
