"""What makes a server's coroutines deterministic: they stop at each call of the store until they are picked.

A strand is a coroutine driven by hand.  `SimulatedStore` is the real database behind a gate: a call waits
before it, is done in one piece, and waits again before its answer arrives; it may fail on either way, or
within.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, Literal

from geres.errors import StoreUnavailable
from geres.store.database import Database, Order, Tx

Fault = Literal["none", "before", "within", "after"]


class Gate:
    """Awaiting it hands control back to whoever drives the strand."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Strand:
    """A coroutine that goes on only when `go` is called; `over` is told its result."""

    def __init__(
        self,
        name: str,
        coroutine: Coroutine[Any, Any, Any],
        over: Callable[[Any], None] = lambda result: None,
        failed: Callable[[StoreUnavailable], None] = lambda error: None,
    ) -> None:
        self.name = name
        self._coroutine = coroutine
        self._over, self._failed = over, failed

    def go(self) -> bool:
        """On to its next stop.  True where it has ended; a StoreUnavailable is told, anything else raised."""
        try:
            self._coroutine.send(None)
        except StopIteration as end:
            self._over(end.value)
            return True
        except StoreUnavailable as error:
            self._failed(error)
            return True
        return False

    def drop(self) -> None:
        """Its process has died."""
        self._coroutine.close()


class SimulatedStore(Database):
    """One server's way to the store.  `fault` is drawn for each call, `wrote` is told of each commit."""

    def __init__(
        self,
        db: Database,
        fault: Callable[[str], Fault],
        wrote: Callable[[str], None],
        now_us: Callable[[], int],
    ) -> None:
        self._now_us = now_us
        self.dialect = db.dialect
        self._db, self._fault, self._wrote = db, fault, wrote
        self.asked_us = 0  #: when what was committed last was asked for
        #: Answers of store functions that are not asked for: the clock of a database cannot be moved.
        self.instead: dict[Any, Callable[[], Any]] = {}

    def call(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        return self._db.call(function, *args, **kwargs)

    async def run(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        return await self._gated(function, args, kwargs, writes=True)

    async def run_as(self, order: Order, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        return await self._gated(function, args, kwargs, writes=True)

    async def read(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        return await self._gated(function, args, kwargs, writes=False)

    async def glance(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        return await self._gated(function, args, kwargs, writes=False)

    async def _gated(self, function: Any, args: Any, kwargs: Any, writes: bool) -> Any:
        asked_us = self._now_us()
        await Gate()
        self.asked_us = asked_us
        fault = self._fault(function.__name__)
        if fault == "before":
            raise StoreUnavailable(f"simulated: {function.__name__} was not done")
        if function in self.instead:
            return self.instead[function]()
        if fault == "within" and writes:
            self._db.call(_undone, function, args, kwargs)
        if fault == "after" and writes:
            self._db.call(function, *args, **kwargs)
            self._wrote(f"{function.__name__} (its answer is lost)")
            raise StoreUnavailable(f"simulated: the answer of {function.__name__} was lost")
        result = self._db.call(function, *args, **kwargs)
        if writes:
            self._wrote(function.__name__)
        await Gate()
        return result

    def close(self) -> None:
        pass


def _undone(tx: Tx, function: Any, args: Any, kwargs: Any) -> None:
    """Do it all, and have the commit refused."""
    function(tx, *args, **kwargs)
    raise StoreUnavailable(f"simulated: the commit of {function.__name__} failed")
