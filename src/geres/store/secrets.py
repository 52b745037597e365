"""What all servers of a store share and nobody else knows: made once, by whoever needs it first."""

from __future__ import annotations

import secrets

from geres.store.database import Tx

TASK_TOKENS = "task_tokens"  #: the key of the tasks' tokens


def shared(tx: Tx, name: str, *, now_us: int) -> bytes:
    """The secret of this name, 32 bytes; it is made where there is none."""
    tx.run("make_secret", name=name, value=secrets.token_hex(32), now_us=now_us)
    return bytes.fromhex(tx.value("find_secret", name=name))
