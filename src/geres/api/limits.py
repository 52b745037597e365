"""How often one may ask: buckets of permits that fill up again, bounded in number, in memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

_MOST_BUCKETS = 10_000


class Bucket:
    """At most `burst` permits at once, `rate` more each second."""

    __slots__ = ("_at", "_burst", "_left", "_rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst, self._left, self._at = rate, burst, burst, now

    def take(self, now: float) -> float:
        """Take a permit and return 0; where there is none, return the seconds until there is."""
        if seconds := self.wait(now):
            return seconds
        self._left -= 1.0
        return 0.0

    def wait(self, now: float) -> float:
        """The seconds until there is a permit; 0 where there is one, which stays."""
        self._left = left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        return 0.0 if left >= 1.0 else (1.0 - left) / self._rate


class Buckets:
    """One bucket for each key.  Beyond the most, the one that was asked longest ago is forgotten."""

    def __init__(self, rate: float, burst: float, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._monotonic = rate, burst, monotonic
        self._buckets: OrderedDict[object, Bucket] = OrderedDict()

    def of(self, key: object) -> Bucket:
        found = self._buckets.get(key)
        if found is None:
            found = self._buckets[key] = Bucket(self._rate, self._burst, self._monotonic())
            if len(self._buckets) > _MOST_BUCKETS:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return found

    def take(self, key: object) -> float:
        """A permit of this key, like Bucket.take."""
        return self.of(key).take(self._monotonic())

    def is_empty(self, key: object) -> bool:
        """True where this key has no permit now."""
        found = self._buckets.get(key)
        return found is not None and found.wait(self._monotonic()) > 0
