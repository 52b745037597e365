"""The server's structured log: JSON lines with typed event ids."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import msgspec

from geres.model.ids import show_task
from geres.model.units import rfc3339
from geres.model.wire import Ended

_encode = msgspec.json.Encoder().encode
_ends = logging.getLogger("geres.tasks")


def task_ends(accepted: Iterable[tuple[str, Ended, str]], now_us: int) -> None:
    """One line for each task or attempt that ended: (node name, report, the task's new state)."""
    if not _ends.isEnabledFor(logging.INFO):
        return
    at = rfc3339(now_us)
    lines = []
    for node, report, state in accepted:
        line = {
            "at": at,
            "level": "info",
            "area": "tasks",
            "event": "task_ended",
            "task": show_task(report.task),
            "attempt": report.attempt,
            "state": state,
            "node": node,
        }
        if report.reason is not None:
            line |= {"reason": report.reason, "exit_code": report.exit_code, "signal": report.signal}
        lines.append(_encode(line).decode())
    if lines:
        _ends.info("\n".join(lines), extra={"is_json": True})
