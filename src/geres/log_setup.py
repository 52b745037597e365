"""Sets the service log up: one JSON object a line on stderr, or words for people."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import msgspec

from geres.config import LogConfig
from geres.model.units import rfc3339

_encode = msgspec.json.Encoder().encode
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "is_json", "taskName"}
_MOST_KEPT_BYTES = 8 << 20
#: Libraries that talk about what is normal for us.
_QUIET = ("uvicorn", "websockets", "asyncio", "litestar")


#: What uvicorn takes for an error where a WebSocket is refused with an answer, or its client has left.
_NORMAL = "ASGI callable returned without completing handshake."


def _is_news(record: logging.LogRecord) -> bool:
    return record.msg != _NORMAL


class JsonLines(logging.Formatter):
    """`{"at", "level", "area", "event"?, "text", ...}`; a record with `is_json` holds whole lines already."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if getattr(record, "is_json", False):
            return text
        line: dict[str, Any] = {
            "at": rfc3339(int(record.created * 1_000_000)),
            "level": record.levelname.lower(),
            "area": record.name.removeprefix("geres."),
            "event": "message",
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        line["text"] = text
        if record.exc_info and record.exc_info[0] is not None:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return (
            _encode(line).decode() if _plain(line) else _encode({k: str(v) for k, v in line.items()}).decode()
        )


def keep(path: Path) -> None:
    """Write the log to a file too, if stderr does not go there; for those who ask from elsewhere."""
    try:
        ours, there = os.fstat(sys.stderr.fileno()), path.stat()
        if (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino):
            return
    except (OSError, ValueError):
        pass
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=_MOST_KEPT_BYTES, backupCount=1, delay=True)
    root = logging.getLogger()
    handler.setFormatter(root.handlers[0].formatter)
    root.addHandler(handler)


def _plain(line: dict[str, Any]) -> bool:
    return all(value is None or isinstance(value, str | int | float | bool) for value in line.values())


def set_up(settings: LogConfig) -> None:
    """Log to stderr from now on.  Levels of single areas go before the general one."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.format == "json":
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    for area, level in settings.levels.items():
        logging.getLogger(f"geres.{area}").setLevel(level.upper())
