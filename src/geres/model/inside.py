"""What a server says of itself to those who look after it."""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Ready(Struct, kw_only=True):
    """Answer of GET /readyz: 200 where `ready`, else 503."""

    ready: bool
    version: str
    parts: dict[str, str]  #: store, schema, loops, accepting: `ok`, or what is not


class LoopInside(Struct, kw_only=True):
    """A background loop.  A round of the loop `dispatcher` is a turn."""

    name: str
    rounds: int
    last_round_seconds_ago: float | None = None
    runs_for_seconds: float | None = None  #: of the round that goes on
    last_seconds: float = 0.0
    mean_seconds: float = 0.0
    longest_seconds: float = 0.0
    error: str | None = None  #: of the last round that failed
    error_seconds_ago: float | None = None


class NodeInside(Struct, kw_only=True):
    """A node that is connected to this server, with what is free on it."""

    name: str
    id: str
    epoch: int
    attempts: int
    cpus_free: float
    memory_bytes_free: int
    gpus_free: int
    accepting: bool
    heard_seconds_ago: float


class Stack(Struct, kw_only=True):
    """A thread or a task of the event loop: where it is, the innermost call last."""

    name: str
    frames: list[str]


class ServerInside(Struct, kw_only=True):
    """Answer of GET /v1/debug/state."""

    version: str
    pid: int
    url: str
    server_id: str
    stopping: bool
    up_seconds: float
    memory_bytes: int
    objects: int  #: that the garbage collector knows
    loops: list[LoopInside]
    nodes: list[NodeInside]
    queues: dict[str, int]
    store: dict[str, Any]
    tasks: list[Stack]
    threads: list[Stack]
