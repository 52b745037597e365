"""What a server does as such: register, and keep nodes from being lost for its own absence."""

from __future__ import annotations

from geres.store.database import Tx


def register(tx: Tx, url: str, version: str, *, lease_us: int, now_us: int) -> int:
    """A new server's id.

    Nobody could renew a lease while no server was there: all leases go on for one more.
    """
    tx.run("extend_all_leases", lease_until=now_us + lease_us)
    return int(
        tx.value("register_server", url=url, version=version, now_us=now_us, lease_until=now_us + lease_us)
    )


def extend_leases(tx: Tx, *, lease_us: int, now_us: int) -> int:
    """Let no lease end within `lease_us`: after an outage of the store, or a jump of its clock."""
    return tx.run("extend_all_leases", lease_until=now_us + lease_us)


def store_time_us(tx: Tx) -> int:
    """The store's own clock in microseconds since 1970; 0 where it has none."""
    return int(tx.value("store_time"))
