"""Who asks: the identity behind a token."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Role = Literal["admin", "operator", "user", "viewer", "node", "task"]


class Caller(Struct, frozen=True):
    tenant_id: int
    tenant: str
    subject: str
    role: Role
