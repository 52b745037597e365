"""What all servers of a store share and nobody else knows: made once, by whoever needs it first."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from geres.store.database import Tx

TASK_TOKENS = "task_tokens"  #: the key of the tasks' tokens
CERTIFICATE = "certificate"  #: the self-made certificate and its key, as PEM


def shared(tx: Tx, name: str, *, now_us: int) -> bytes:
    """The secret of this name, 32 bytes; it is made where there is none."""
    return bytes.fromhex(shared_text(tx, name, lambda: secrets.token_hex(32), now_us=now_us))


def shared_text(tx: Tx, name: str, make: Callable[[], str], *, now_us: int) -> str:
    """The secret of this name; `make` makes it where there is none, and the first server's counts."""
    if (found := tx.value("find_secret", name=name)) is None:
        tx.run("make_secret", name=name, value=make(), now_us=now_us)
        found = tx.value("find_secret", name=name)
    return str(found)
