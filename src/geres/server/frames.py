"""Between the store's words and the agents'."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from geres.blobs.folder import output_key
from geres.model.wire import Ended, Frame, Hello
from geres.scheduling.rooms import Facts

_decode_argv = msgspec.json.Decoder(list[str] | str).decode


def argv_of(text: str | None) -> list[str] | None:
    """A list is an argv, a string a shell line.  Raises msgspec.MsgspecError for what is neither."""
    if text is None:
        return None
    words = _decode_argv(text)
    return words if isinstance(words, list) else ["/bin/sh", "-c", words]


def ask_action(asked: str) -> str:
    """`requeue` is carried out like a cancel; the store knows what to do with the end."""
    action = asked.partition(":")[0]
    return {"requeue": "cancel", "hold": "recall", "edit": "recall"}.get(action, action)


def ask_signal(asked: str) -> int:
    """`signal:10` asks for signal 10."""
    number = asked.partition(":")[2]
    return int(number) if number else 0


def facts_of(hello: Hello) -> Facts:
    """What the plan has to know of a node."""
    return Facts(
        name=hello.node,
        pool=hello.pool,
        arch=hello.arch,
        os=hello.os,
        host=hello.host,
        host_id=hello.host_id,
        cpus_milli=round(hello.cpus * 1000),
        memory_bytes=hello.memory_bytes,
        gpus=hello.gpus,
        counts=tuple(sorted(hello.resources.items())),
        labels=tuple(sorted(hello.labels.items())),
        shared_paths=tuple(hello.shared_paths),
        slots=hello.slots,
    )


def is_attempt(task: int, attempt: int) -> bool:
    """False for numbers that no attempt can have, whatever an agent says."""
    return 0 < task < 1 << 63 and 0 <= attempt < 1 << 31


def only_attempts(frame: Frame) -> Frame:
    """The frame without what it says of attempts that there cannot be: no store could look them up."""
    frame.started = [row for row in frame.started if is_attempt(row[0], row[1])]
    frame.asked = [row for row in frame.asked if is_attempt(row[0], row[1])]
    frame.ended = [ended for ended in frame.ended if is_attempt(ended.task, ended.attempt)]
    return frame


def with_own_blobs(ended: Ended) -> Ended:
    """The report without the blobs that it names and that are not this attempt's."""
    for stream in ("stdout", "stderr"):
        named = getattr(ended, f"{stream}_blob")
        if named is not None and named != output_key(ended.task, ended.attempt, stream):
            setattr(ended, f"{stream}_blob", None)
    return ended


def bytes_of(reports: Iterable[tuple[int, Ended]]) -> int:
    """About what (node, report) take in memory."""
    return sum(1000 + len(one.stdout) + len(one.stderr) + len(one.value or b"") for _, one in reports)
