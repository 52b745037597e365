"""What the supervisor keeps of a specification and of an attempt; nothing here touches the system."""

from __future__ import annotations

from geres.agent.capture import File
from geres.agent.folders import Slot

TYPE_CHECKING = False  #: importing typing would cost the supervisor a megabyte
if TYPE_CHECKING:
    from typing import Any

WAITING, RUNNING, ENDING = "waiting", "running", "ending"

Key = tuple[int, int]  # (task key, attempt number)

#: Kinds of ends, the third field of an end.
EXITED, SIGNALLED, UNSTARTED, GIVEN_BACK, LOST = "exited", "signalled", "unstarted", "given_back", "lost"


class Spec:
    """How to run attempts; many attempts share one.  All names and paths are bytes."""

    __slots__ = (
        "account",
        "append",
        "argv",
        "cwd",
        "direct",
        "disk_bytes",
        "env",
        "grace_seconds",
        "keep_output",
        "memo",
        "memory_bytes",
        "merge",
        "output_limit_bytes",
        "path",
        "stderr",
        "stdin",
        "stdout",
        "stops_alone",
        "time_limit_seconds",
        "umask",
    )

    def __init__(self, fields: dict) -> None:  # type: ignore[type-arg]
        self.argv: list[bytes] = fields["argv"]
        self.env: dict[bytes, bytes] = fields["env"]
        self.path: bytes = self.env.get(b"PATH", b"/usr/local/bin:/usr/bin:/bin")
        self.cwd: bytes | None = fields.get("cwd")  # None: a folder of its own
        #: every path in it lies on a local file system, so that nothing here can hang
        self.direct: bool = fields.get("direct", False)
        self.disk_bytes: int = fields.get("disk_bytes", 0)  # most in its folder and outputs; 0: no limit
        self.umask: int | None = fields.get("umask")
        self.memory_bytes: int = fields.get("memory_bytes", 0)
        self.stdin: bool = fields.get("stdin", False)
        self.stdout: bytes | None = fields.get("stdout")
        self.stderr: bytes | None = fields.get("stderr")
        self.append: bool = fields.get("append", False)
        self.merge: bool = fields.get("merge", False)
        self.keep_output: bool = fields.get("keep_output", True)
        self.output_limit_bytes: int = fields.get("output_limit_bytes", 64 << 20)
        self.time_limit_seconds: float | None = fields.get("time_limit_seconds")
        #: ended when the lease of the node is about to end
        self.stops_alone: bool = fields.get("stops_alone", False)
        self.grace_seconds: float = fields.get("grace_seconds", 20.0)
        #: (uid, gid, further groups) of the account that it runs as; None: ours
        self.account: tuple[int, int, tuple[int, ...]] | None = fields.get("account")
        #: given back with the end of an attempt that left a folder; not looked at here
        self.memo: object = fields.get("memo")


class Attempt:
    """One attempt from its arrival to the report of its end."""

    __slots__ = (
        "ahead",
        "argv",
        "arrived",
        "begins",
        "ended_us",
        "env",
        "err",
        "gpu_ids",
        "group",
        "has_room",
        "key",
        "lane",
        "linger_until",
        "named",
        "notes",
        "out",
        "pid",
        "reported_bytes",
        "rusage",
        "silent",
        "slot",
        "spec",
        "started",
        "started_us",
        "state",
        "status",
        "stderr",
        "stdin_closing",
        "stdin_fd",
        "stdin_pending",
        "stdin_theirs",
        "stdin_written",
        "stdout",
        "stop_sent",
        "verdict",
        "watched",
    )

    def __init__(self, order: tuple, spec: Spec, now: float) -> None:  # type: ignore[type-arg]
        task, attempt, _, lane, ahead, argv, extra = order[:7]  # a newer agent may say more
        self.key: Key = (task, attempt)
        self.lane: int = lane
        self.ahead: int = ahead  # 0: starts at once; n: while fewer than n of its lane have room
        self.spec = spec
        self.argv: list[bytes] = spec.argv if argv is None else argv
        self.env: dict[bytes, bytes] | None = None
        self.stdout = spec.stdout
        self.stderr = spec.stderr
        self.gpu_ids: list[int] = []  # not looked at here: for the next agent
        if extra is not None:
            self.env = extra.get("env")
            self.gpu_ids = extra.get("gpu_ids", [])
            self.stdout = extra.get("stdout", spec.stdout)
            self.stderr = extra.get("stderr", spec.stderr)
        self.arrived = now
        self.state = WAITING
        self.has_room = False
        self.pid = 0
        self.started = 0.0
        self.started_us = 0
        self.ended_us = 0
        self.status = 0
        self.rusage: object = None
        self.linger_until = 0.0
        self.verdict: tuple[str, str, str] | None = None  # (outcome, reason, message) when we end it
        self.silent = False  # no report wanted
        self.watched = False  # somebody outside reads its output files
        self.stop_sent = False
        self.stdin_fd = -1
        self.stdin_theirs = -1
        self.stdin_pending = b""
        self.stdin_written = 0
        self.stdin_closing = False
        self.reported_bytes = 0
        self.group: str | None = None
        self.notes: File | None = None  # where the launcher says what it opened and why it failed
        self.named: dict[str, bytes] = {}  # "o", "e": paths that the launcher opens, and we never touch
        self.begins: dict[str, int] = {}  # where in those that it did open this attempt's output begins
        self.slot: Slot | None = None
        self.out: File | None = None  # the same as err where both were given one path
        self.err: File | None = None

    def named_in(self, folder: bytes | None) -> list[tuple[str, bytes, int, int | None]]:
        """What the launcher opened, as in an end; what lay in the task's folder is in `folder` now."""
        found = []
        owner = self.spec.account[0] if self.spec.account is not None else None
        for stream, path in self.named.items():
            if stream not in self.begins:
                continue
            if folder is not None and self.slot is not None and path.startswith(self.slot.path + b"/"):
                path = folder + path[len(self.slot.path) :]
            found.append((stream, path, self.begins[stream], owner))
        return found


#: (user_seconds, system_seconds, max_rss_bytes or None, minor_faults, major_faults, blocks_in, blocks_out,
#: voluntary_switches, involuntary_switches)
Usage = tuple[float, float, int | None, int, int, int, int, int, int]

#: How an attempt ended: (task, attempt, kind, code, outcome, reason, message, started_us, ended_us, usage,
#: stdout, stderr, folder, memo, named).  `code` is the exit code or the number of the signal.  `outcome`,
#: `reason` and `message` are None unless the supervisor decided.  `stdout` and `stderr` are (bytes written,
#: the last of them, path of the whole or None), or None where they are not kept.  `memo` is that of the
#: specification where there is a folder.  `named` is what the launcher opened: (stream "o" or "e", path,
#: where the attempt's output begins in it, -1 for no file, uid of the task's account, None for ours), ...; an
#: end of an earlier version has none.
if TYPE_CHECKING:
    End = tuple[Any, ...]
else:
    End = tuple
