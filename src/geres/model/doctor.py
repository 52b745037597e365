"""What `geres doctor` finds."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Finding(Struct, omit_defaults=True, kw_only=True):
    """One thing that is wrong, in words."""

    kind: Literal["quarantine", "unreadable", "invariant", "stuck", "pool", "webhook", "node"]
    text: str
    id: str | None = None  #: of the task, job, node, pool, webhook or record that it is about
    at: str | None = None
    next: str | None = None  #: what to do
