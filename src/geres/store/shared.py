"""What all servers of a store share and nobody else knows."""

from __future__ import annotations

from collections.abc import Callable

from geres.store.database import Tx


def secret(tx: Tx, name: str, make: Callable[[], str], *, now_us: int) -> str:
    """The secret of that name; `make` makes it where there is none, and the first server's counts."""
    found = tx.value("shared_secret", name=name)
    if found is None:
        tx.run("share_secret", name=name, value=make(), now_us=now_us)
        found = tx.value("shared_secret", name=name)
    return str(found)
