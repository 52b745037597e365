"""The frames between a server and an agent: MessagePack over one WebSocket that the agent opens.

Every frame is a Frame with at least one part.  Both ends tolerate unknown fields, so that neighbouring
versions work together: a field is only ever added, at the end, with a default.
Tasks are named by their key (see ids.py), times are microseconds since 1970 by the agent's clock (used
for durations and for people, never for decisions).
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from geres.model.tasks import KnownSpec, Usage

PROTOCOL = 1
AttemptKey = tuple[int, int]  #: (task key, attempt number): the fence


class Assign(Struct, array_like=True):
    """Start one attempt.  Its specification was sent before, on the same connection, under `spec_id`."""

    task: int
    attempt: int
    spec_id: int
    lane: int
    job_name: str
    argv: list[str] | None = None  #: instead of the command of the specification
    item: str | None = None
    is_array: bool = False  #: replace placeholders; the index is the task's number
    #: 0: starts at once.  n: sent ahead, it takes no room of its own: it starts while fewer than n attempts
    #: of its lane have room here, so in the room of one that ended.  The latest n counts.
    ahead: int = 0
    gpu_ids: list[int] = []
    requeue_count: int = 0
    retry_count: int = 0
    submitted_by: str = ""
    token: str = ""  #: of this attempt: what the task asks a server with


class Spec(Struct, array_like=True):
    """A specification that attempts refer to, sent once a connection."""

    spec_id: int
    spec: KnownSpec
    job_meta: dict[str, str] = {}


class Ended(Struct, array_like=True):
    """How one attempt ended.  Repeated until it is acknowledged."""

    task: int
    attempt: int
    outcome: str  #: succeeded, failed, cancelled or skipped; given_back: never started
    reason: str | None = None
    message: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    started_us: int | None = None
    ended_us: int = 0
    usage: Usage | None = None
    stdout: bytes = b""  #: all of it where it is small, else its last part
    stderr: bytes = b""
    stdout_bytes: int = 0  #: written in all
    stderr_bytes: int = 0
    stdout_blob: str | None = None  #: set where the whole was uploaded first
    stderr_blob: str | None = None
    value: bytes | None = None
    folder: str | None = None  #: the task's folder, where it left something in it


class Ask(Struct, array_like=True):
    """Do something to an attempt: cancel, signal, suspend, resume, recall."""

    task: int
    attempt: int
    action: str
    signal: int = 0
    why: str = ""  #: becomes the message of the end


class Stream(Struct, array_like=True):
    """Open a second WebSocket to `path` and stream this attempt's output to it, its input from it."""

    task: int
    attempt: int
    path: str
    with_stdin: bool = False


class StartOrder(Struct, array_like=True):
    """The start task of a pool: what a node runs, once a boot and version of it, before it takes tasks."""

    digest: str  #: names the version
    argv: list[str]
    env: dict[str, str] = {}
    retries: int = 0
    time_limit_seconds: float = 600.0  #: of each try


class StartReport(Struct, array_like=True):
    """How far a node is with its start task."""

    digest: str = ""  #: of which version; empty: none has run since the boot
    state: str = ""  #: running, done or failed
    why: str = ""  #: of one that failed
    tail: str = ""  #: the last part of what it wrote


class Hello(Struct):
    """First frame of an agent."""

    protocol: int
    version: str
    node: str  #: its name
    boot_id: str
    host_id: str  #: names the machine, so that clients on it can tell
    host: str
    arch: str
    os: str
    pid: int
    account: str
    cpus: float
    memory_bytes: int
    gpus: int = 0
    resources: dict[str, int] = {}
    labels: dict[str, str] = {}
    shared_paths: list[str] = []
    folder: str = ""  #: where task folders are
    attempts: list[AttemptKey] = []  #: all that it has: waiting, running, ended and not acknowledged
    running: list[AttemptKey] = []  #: those of them that have started and not ended
    pool: str = "default"
    slots: int = 0  #: most tasks at once; 0: by cpus alone
    gpu_ids: list[tuple[int, int, list[int]]] = []  #: (task, attempt, gpus) of the attempts that have some
    instance: str = ""  #: of the agent's folder: two agents of one name are told apart by it
    address: str = ""  #: where the connection came from; the server writes it
    notice: str = ""  #: for the node's history: why the agent connects again
    on_disconnect: str = ""  #: of tasks that do not say: run, stop or keep
    start: StartReport | None = None  #: None: of a version that knows no start tasks


class Welcome(Struct):
    """A server's answer to Hello."""

    epoch: int
    node_id: int
    lease_seconds: float
    heartbeat_seconds: float
    version: str
    start_task: StartOrder | None = None  #: of the node's pool


class Heartbeat(Struct):
    """Renews the lease.  `checksum` is `attempts_checksum` of the attempts the agent has."""

    count: int
    checksum: int
    outside_cpus: float = 0.0  #: busy with what geres did not start
    available_memory_bytes: int = 0
    disk_free_bytes: int = 0
    draining: bool = False
    disk_total_bytes: int = 0  #: of the file system of task folders and outputs
    number: int = 0  #: counts up over one connection
    full: bool = False  #: the disk has no room for another task


class Frame(Struct, omit_defaults=True):
    """One message, either way; the receiver works through its parts in the order of the fields."""

    hello: Hello | None = None
    welcome: Welcome | None = None
    error: str | None = None  #: a sentence; the connection closes after it
    specs: list[Spec] = []
    assign: list[Assign] = []
    ask: list[Ask] = []
    kill: list[AttemptKey] = []  #: attempts that the store does not know; no report wanted
    streams: list[Stream] = []
    ack: list[AttemptKey] = []  #: ends that are stored, or that were stale: forget them
    started: list[
        tuple[int, int, int]
    ] = []  #: (task, attempt, started_us), where the end is not in the same frame
    ended: list[Ended] = []
    asked: list[tuple[int, int, str]] = []  #: (task, attempt, action) carried out: suspend, resume
    heartbeat: Heartbeat | None = None
    heartbeat_ack: bool = False
    drain: bool = False  #: server: start nothing more.  agent: I am leaving when my tasks have ended
    agent: str = ""  #: what the agent is to do with itself: reload, restart
    heard: int = 0  #: with heartbeat_ack: the number of the last heartbeat that the lease was renewed for
    start: StartReport | None = None  #: the start task has come so far
    servers: list[str] = []  #: server: addresses of all servers of this store, where there are several


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Frame).decode


def attempts_checksum(attempts: list[AttemptKey]) -> int:
    """A number that two equal sets of attempts share, whatever their order."""
    total = 0
    for task, attempt in attempts:
        total = (total + (task * 0x9E3779B97F4A7C15 ^ attempt * 0xC2B2AE3D27D4EB4F)) & 0x7FFFFFFFFFFFFFFF
    return total
