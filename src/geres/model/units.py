"""Sizes, durations and times as people type and read them.

Sizes: K, M, G, T, P are powers of 1024, with or without B or iB.  Durations: `90`, `2s`, `1m30s`, `1h`, `7d`.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from geres.errors import Invalid

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?")
_MOST_BYTES = 1 << 62
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: The years 1000 to 9999: an agent's clock may say anything, and one task must not spoil a list.
_FIRST_SECOND, _LAST_SECOND = -30_610_224_000, 253_402_300_799


def parse_size(text: str | int | float, field: str = "memory") -> int:
    """Bytes of `500M`, `1.5G`, `64KiB` or a bare number of bytes.  Raises Invalid naming `field`."""
    match = _SIZE.fullmatch(str(text).strip())
    if not match:
        raise Invalid(
            f"{field}: {text!r} is no size; write a number with K, M, G or T, like 500M or 1.5G", field=field
        )
    size = float(match[1]) * 1024 ** _POWERS[match[2].upper()]
    if size > _MOST_BYTES:
        raise Invalid(f"{field}: {str(text)[:40]!r} is larger than any machine; at most 4096P", field=field)
    return int(size)


def parse_duration(text: str | int | float, field: str = "time") -> float:
    """Seconds of `90`, `2s`, `1m30s`, `1h`, `7d` or `250ms`.  Raises Invalid naming `field`."""
    typed = str(text).strip()
    try:
        seconds = float(typed)
    except ValueError:
        match = _DURATION.fullmatch(typed) if typed else None
        if not match:
            raise Invalid(
                f"{field}: {text!r} is no duration; write seconds or a form like 30s, 1h30m or 7d",
                field=field,
            ) from None
        days, hours, minutes, secs, millis = (float(part) if part else 0.0 for part in match.groups())
        seconds = days * 86400 + hours * 3600 + minutes * 60 + secs + millis / 1000
    if not 0 <= seconds < 1e10:
        raise Invalid(f"{field}: {text!r} is not between 0 and 300 years", field=field)
    return seconds


def parse_cpus(text: str | int | float, field: str = "cpus") -> float:
    """A positive number of cpus in steps of a thousandth.  Raises Invalid naming `field`."""
    try:
        cpus = float(text)
    except ValueError:
        raise Invalid(f"{field}: {text!r} is no number; write one like 2 or 0.5", field=field) from None
    if not 0 <= cpus <= 1_000_000:
        raise Invalid(f"{field}: {text!r} is not between 0 and 1000000", field=field)
    return cpus


def show_size(size: int | None, *, down: bool = False) -> str:
    """`1.5G`; empty for None.  With `down` never more than it is, for sizes that people may ask for."""
    if size is None:
        return ""
    value = float(size)
    for unit in ("B", "K", "M", "G", "T"):
        if value < 1024:
            if down:
                value = math.floor(value) if value >= 100 else math.floor(value * 10) / 10
            return f"{value:.0f}{unit}" if unit == "B" or value >= 100 else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.1f}P"


def show_duration(seconds: float | None) -> str:
    """`0.12s`, `34s`, `5m02s`, `3h07m`, `2d04h`; empty for None."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{seconds:.2f}s"
    if seconds < 60:
        return f"{seconds:.0f}s"
    if seconds < 3600:
        return f"{int(seconds // 60)}m{int(seconds % 60):02d}s"
    if seconds < 86400:
        return f"{int(seconds // 3600)}h{int(seconds % 3600 // 60):02d}m"
    return f"{int(seconds // 86400)}d{int(seconds % 86400 // 3600):02d}h"


def rfc3339(at_us: int | None) -> str | None:
    """RFC 3339 in UTC with microseconds of a time in microseconds since 1970; None stays None."""
    if at_us is None:
        return None
    seconds, micros = divmod(at_us, 1_000_000)
    return f"{_to_the_second(seconds)}.{micros:06d}Z"


@lru_cache(maxsize=4096)
def _to_the_second(seconds: int) -> str:
    """Thousands of results fall into one second, and formatting a time takes longer than all else of them."""
    return f"{_EPOCH + timedelta(seconds=min(max(seconds, _FIRST_SECOND), _LAST_SECOND)):%Y-%m-%dT%H:%M:%S}"


def parse_time(text: str, field: str = "time") -> int:
    """Microseconds since 1970 UTC of an ISO 8601 time; one without a zone is local.  Raises Invalid."""
    try:
        return (datetime.fromisoformat(text).astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):  # the latter for a zone that leads out of the years 1 to 9999
        raise Invalid(
            f"{field}: {text[:80]!r} is no time; write one like 2026-03-01T12:00 or 2026-03-01T12:00Z",
            field=field,
        ) from None


def plural(count: float, word: str, words: str = "") -> str:
    """`1 gpu`, `2 gpus`, `2 retries`."""
    return f"{count:g} {word}" if count == 1 else f"{count:.15g} {words or word + 's'}"
