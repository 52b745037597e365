"""Connections between agents and servers: in order, late, cut in the middle, never doubled."""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Any

from geres.model.wire import Frame, encode


class Connection:
    """One WebSocket.  Both ways are queues of bytes; None is its end, as that side comes to know of it."""

    def __init__(self, number: int, agent: Any, server: Any) -> None:
        self.number, self.agent, self.server = number, agent, server
        self.up: deque[bytes | None] = deque()
        self.down: deque[bytes | None] = deque()
        self.up_held_us = self.down_held_us = 0  #: nothing of that way arrives before
        self.desk: Any = None
        self.greeting: Any = None  #: the strand of its hello
        self.welcomed = False
        self.heartbeat_at_us = 0
        self.answered_at_us = 0
        self.server_over = self.agent_over = False  #: that side has ended with it

    def say(self, frame: Frame) -> None:
        """The agent sends."""
        _put(self.up, encode(frame))

    def tell(self, frame: Frame) -> None:
        """The server sends."""
        _put(self.down, encode(frame))

    def hang_up(self) -> None:
        """The server has closed it: what was sent before still arrives."""
        _put(self.down, None)

    def leave(self) -> None:
        """The agent has closed it, or has died."""
        self.agent_over = True
        self.down.clear()
        _put(self.up, None)

    def cut(self, dice: Random, up_until_us: int, down_until_us: int) -> None:
        """The network fails: of what is under way some is lost, and each side learns of it in its time."""
        for way in (self.up, self.down):
            for _ in range(dice.randint(0, len(way))):
                way.pop()
            _put(way, None)
        self.up_held_us, self.down_held_us = up_until_us, down_until_us


def _put(way: deque[bytes | None], data: bytes | None) -> None:
    if not way or way[-1] is not None:
        way.append(data)
