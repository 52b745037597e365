"""Agents without processes: real WebSockets to a server, many from one process, every task ends at once.

`python -m bench.agents URL TOKEN FIRST COUNT`: connect nodes FIRST, FIRST + 1, ...; say `connected` on stdout
when all are, and end when stdin does.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from geres.model.tasks import Usage
from geres.model.wire import (
    PROTOCOL,
    AttemptKey,
    Ended,
    Frame,
    Heartbeat,
    Hello,
    attempts_checksum,
    decode,
    encode,
)

_AT_ONCE = 100  #: connections being made
_GATHER_SECONDS = 0.005  #: ends that come so close travel together, as a supervisor reports them
_OPEN_SECONDS = 120.0
_MEMORY_BYTES = 8 << 30


class Agent:
    """One node."""

    def __init__(self, url: str, token: str, number: int, making: asyncio.Semaphore) -> None:
        self._url, self._token, self._name, self._making = url, token, f"sim-{number}", making
        self._attempts: dict[AttemptKey, None] = {}  # sent here, their end not yet reported
        self._bell = asyncio.Event()
        self.connected = asyncio.Event()

    async def run(self) -> None:
        """Stay connected until cancelled."""
        while True:
            with contextlib.suppress(OSError, TimeoutError, WebSocketException):
                await self._serve()
            await asyncio.sleep(0.5)

    async def _serve(self) -> None:
        self._attempts.clear()
        async with contextlib.AsyncExitStack() as stack:
            async with self._making:
                socket = await stack.enter_async_context(self._opening())
                await socket.send(encode(Frame(hello=self._hello())))
                first = _frame(await socket.recv())
            if first.welcome is None:
                raise ConnectionError(first.error)
            self._obey(first)
            self.connected.set()
            group = await stack.enter_async_context(asyncio.TaskGroup())
            beating = group.create_task(self._beat(socket, first.welcome.heartbeat_seconds))
            ending = group.create_task(self._end(socket))
            async for data in socket:
                self._obey(_frame(data))
            beating.cancel()
            ending.cancel()

    def _opening(self) -> connect:
        return connect(
            self._url.replace("http", "ws", 1) + "/v1/agents",
            additional_headers={"Authorization": f"Bearer {self._token}"},
            compression=None,
            max_size=None,
            ping_interval=None,
            open_timeout=_OPEN_SECONDS,
            user_agent_header=None,
            proxy=None,
        )

    def _hello(self) -> Hello:
        name = self._name
        return Hello(
            PROTOCOL, "bench", name, "boot", name, name, "x86_64", "linux", 1, "bench", 1.0, _MEMORY_BYTES
        )

    def _obey(self, frame: Frame) -> None:
        if frame.assign:
            self._attempts |= dict.fromkeys((one.task, one.attempt) for one in frame.assign)
            self._bell.set()

    async def _end(self, socket: Any) -> None:
        while True:
            await self._bell.wait()
            await asyncio.sleep(_GATHER_SECONDS)
            self._bell.clear()
            keys, self._attempts = self._attempts, {}
            now_us, usage = time.time_ns() // 1000, Usage(wall_seconds=0.001)
            ends = [
                Ended(*key, "succeeded", exit_code=0, started_us=now_us - 1000, ended_us=now_us, usage=usage)
                for key in keys
            ]
            await socket.send(encode(Frame(ended=ends)))

    async def _beat(self, socket: Any, every: float) -> None:
        while True:
            beat = Heartbeat(len(self._attempts), attempts_checksum(list(self._attempts)))
            await socket.send(encode(Frame(heartbeat=beat)))
            await asyncio.sleep(every)


def _frame(data: str | bytes) -> Frame:
    return decode(data if isinstance(data, bytes) else data.encode())


async def main(url: str, token: str, first: int, count: int) -> None:
    making = asyncio.Semaphore(_AT_ONCE)
    agents = [Agent(url, token, number, making) for number in range(first, first + count)]
    running = [asyncio.create_task(agent.run()) for agent in agents]
    all_here = asyncio.create_task(_all_connected(agents))
    await asyncio.wait([all_here, *running], return_when=asyncio.FIRST_COMPLETED)
    if not all_here.done():  # one of them has ended, which it never should
        await asyncio.gather(*(one for one in running if one.done()))
    print("connected", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def _all_connected(agents: list[Agent]) -> None:
    for agent in agents:
        await agent.connected.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
