"""A server without its sockets: the real Dispatcher and loops, each a strand that somebody has to drive."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any

from geres.errors import GeresError
from geres.model.wire import Frame, Hello, decode
from geres.server import loops
from geres.server.asking import Asking
from geres.server.clock import Clock
from geres.server.dispatcher import Dispatcher
from geres.server.fleet import Fleet
from geres.server.hints import Hints
from geres.server.leases import Leases
from geres.server.waiters import Waiters
from geres.store import servers
from geres.store.database import Database
from geres.store.servers import Introduction
from tests.simulation.network import Connection
from tests.simulation.strands import Fault, SimulatedStore, Strand
from tests.simulation.times import Time

LEASE_SECONDS = 6.0
LEASE_US = int(LEASE_SECONDS * 1e6)
#: Seconds between the steps of a loop; sooner would only make schedules longer.
_PERIODS = {
    "turn": 0.05,
    "renew": 0.5,
    "lose": 0.5,
    "ask": 1.5,
    "wake": 1.5,
    "end jobs": 3.0,
    "fleet": 5.0,
    "clock": 5.0,
}


class Server:
    """One life of a server.  `store_us` is the store's clock, which its own follows."""

    def __init__(
        self,
        name: str,
        db: Database,
        tenant_id: int,
        *,
        time: Time,
        store_us: Callable[[], int],
        fault: Callable[[str], Fault],
        wrote: Callable[[str], None],
    ) -> None:
        self.name = name
        self.connections: list[Connection] = []
        self._running: dict[str, Strand] = {}
        self._next: dict[str, float] = {}
        self._time = time
        self.store = SimulatedStore(db, fault, wrote, lambda: time.now_us)
        self.store.instead[servers.store_time_us] = store_us
        self.clock = clock = Clock(store_us())
        me = db.call(servers.register, Introduction(0, name, "0", clock()), lease_us=LEASE_US)
        hints = Hints(me.id)
        waiters = Waiters(hints)
        self.dispatcher = Dispatcher(
            self.store, clock, waiters, tenant_id=tenant_id, me=me, hints=hints, lease_seconds=LEASE_SECONDS
        )
        context: Any = SimpleNamespace(
            db=self.store, clock=clock, dispatcher=self.dispatcher, waiters=waiters
        )
        leases = Leases(self.store, clock, self.dispatcher, me, lease_seconds=LEASE_SECONDS)
        self._loops: dict[str, Callable[[], Any]] = {
            "turn": self.dispatcher.step,
            "renew": leases.renew_step,
            "lose": leases.lose_step,
            "ask": Asking(self.store, self.dispatcher).step,
            "wake": loops.Waker(context).step,
            "end jobs": loops.JobEnder(context).step,
            "fleet": Fleet(self.store, clock, me, hints).step,
            "clock": loops.ClockKeeper(context, clock, LEASE_SECONDS).step,
        }

    @property
    def loop_names(self) -> list[str]:
        return list(self._loops)

    def due(self) -> list[str]:
        """Loops that are in the middle of a step, or whose next one is due."""
        now = self._time.monotonic()
        return [name for name in self._loops if name in self._running or self._next.get(name, 0.0) <= now]

    def go_on(self, name: str) -> bool:
        """One piece of a loop's step, beginning a new one where none is under way.  True where it is over."""
        strand = self._running.get(name)
        if strand is None:
            strand = self._running[name] = Strand(name, self._loops[name]())
        if strand.go():
            del self._running[name]
            self._next[name] = self._time.monotonic() + _PERIODS[name]
            return True
        return False

    def is_midway(self, name: str) -> bool:
        return name in self._running

    # connections, as in api/agents.py

    def hear(self, connection: Connection, data: bytes | None) -> None:
        """Take in what has come over a connection."""
        if connection.server_over:
            return
        if data is None:
            self._over(connection)
            return
        frame = decode(data)
        if connection.desk is not None:
            self.dispatcher.receive(connection.desk, frame)
        else:
            assert frame.hello is not None
            connection.greeting = Strand(
                f"hello of {frame.hello.node}",
                self._greet(connection, frame.hello),
                over=lambda desk: self._take(connection, desk),
            )

    def greetings(self) -> list[Connection]:
        return [one for one in self.connections if one.greeting is not None]

    def greet_on(self, connection: Connection) -> None:
        strand, connection.greeting = connection.greeting, None
        if not strand.go():
            connection.greeting = strand

    async def _greet(self, connection: Connection, hello: Hello) -> Any:
        def close(why: str) -> None:
            connection.tell(Frame(error=why))
            connection.hang_up()

        try:
            return await self.dispatcher.connect(hello, connection.tell, close)
        except GeresError as error:
            close(str(error))
            return None

    def _take(self, connection: Connection, desk: Any) -> None:
        connection.desk = desk
        if desk is None or desk.gone:
            self._over(connection)

    def _over(self, connection: Connection) -> None:
        connection.server_over = True
        self.connections.remove(connection)
        if connection.desk is not None:
            self.dispatcher.disconnect(connection.desk, "the connection has ended")
        connection.hang_up()

    def crash(self, dice: Random) -> None:
        """What was sent still arrives, or some of it; nothing else is left."""
        for strand in [*self._running.values(), *(c.greeting for c in self.connections if c.greeting)]:
            strand.drop()
        for connection in self.connections:
            connection.server_over = True
            for _ in range(dice.randint(0, len(connection.down))):
                connection.down.pop()
            connection.hang_up()
        self.connections.clear()
