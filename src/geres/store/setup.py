"""What a store is like before a server is set up on it; nothing is changed."""

from __future__ import annotations

from typing import NamedTuple

from geres.errors import Invalid, StoreUnavailable
from geres.store.database import Tx

_CONNECT_SECONDS = 5
OLDEST_POSTGRES = 140000


class Found(NamedTuple):
    release: int  #: like 160003 for PostgreSQL 16.3
    may_create: bool  #: tables, in the schema that is used
    schema: int  #: the number of its newest migration; 0 where geres was never here


def look_at(url: str) -> Found:
    """Look at a PostgreSQL database.  Raises StoreUnavailable, or Invalid where its driver is missing."""
    try:
        import psycopg  # an extra: only who uses PostgreSQL needs it

        from geres.store.postgres import PostgresTx
    except ModuleNotFoundError as error:
        told = f"store: PostgreSQL needs {error.name}: pip install 'geres[postgres]'"
        raise Invalid(told, field="store") from None
    try:
        with psycopg.connect(url, connect_timeout=_CONNECT_SECONDS) as connection:
            return _look(PostgresTx(connection))
    except psycopg.Error as error:
        raise StoreUnavailable(" ".join(str(error).split())) from None


def _look(tx: Tx) -> Found:
    ((release,),) = tx.raw("SELECT CAST(current_setting('server_version_num') AS INTEGER)")
    ((may_create,),) = tx.raw("SELECT COALESCE(has_schema_privilege(current_schema(), 'CREATE'), FALSE)")
    schema = 0
    if tx.raw("SELECT 1 WHERE to_regclass('schema_version') IS NOT NULL"):
        ((schema,),) = tx.raw("SELECT COALESCE(MAX(version), 0) FROM schema_version")
    return Found(release, may_create, schema)
