"""What a server is to those who look at the cluster."""

from __future__ import annotations

from msgspec import Struct


class Server(Struct, kw_only=True):
    """A server as the API shows it."""

    id: str
    url: str  #: where the other servers reach it
    version: str
    nodes: int  #: of the tenant, for an admin of all, that are connected to it
    since: str
    answers: bool = False  #: this one has answered the request
