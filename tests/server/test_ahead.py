"""Whatever the order of messages, what is sent ahead neither overbooks a node nor leaves room unused."""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path

import pytest

from geres.model.ids import show_task
from geres.model.tasks import TaskRow, TaskSpec, Usage
from geres.model.wire import Assign, AttemptKey, Ended, Frame, Hello, decode, encode
from geres.server.dispatcher import Dispatcher
from geres.server.waiters import Waiters
from geres.store import submit
from geres.store.database import open_database
from geres.store.servers import Introduction
from tests.store.world import SECOND, World

CPUS = 2


class Node:
    """A model of a supervisor behind a slow wire."""

    def __init__(self) -> None:
        self.to_node: deque[Frame] = deque()
        self.to_server: deque[Frame] = deque()
        self.running: dict[AttemptKey, int] = {}
        self.specs: dict[int, float] = {}
        self.cpus: dict[int, float] = {}  # of each lane
        self.waiting: list[Assign] = []
        self.done: list[str] = []

    def send(self, frame: Frame) -> None:
        self.to_node.append(decode(encode(frame)))

    def hear(self) -> None:
        frame = self.to_node.popleft()
        self.specs |= {spec.spec_id: spec.spec.cpus for spec in frame.specs}
        for assign in frame.assign:
            self.cpus[assign.lane] = self.specs[assign.spec_id]
            if not assign.ahead or self.in_room(assign.lane) < assign.ahead:
                self.start(assign)
            else:
                self.waiting.append(assign)

    def in_room(self, lane: int) -> int:
        return sum(other == lane for other in self.running.values())

    def start(self, assign: Assign) -> None:
        self.running[assign.task, assign.attempt] = assign.lane
        used = sum(self.cpus[lane] for lane in self.running.values())
        assert used <= CPUS, "the node is overbooked"

    def end_one(self, key: AttemptKey) -> None:
        lane = self.running.pop(key)
        self.done.append(show_task(key[0]))
        ended = Ended(*key, "succeeded", exit_code=0, ended_us=1, usage=Usage(wall_seconds=0.001))
        self.to_server.append(decode(encode(Frame(ended=[ended]))))
        following = next((a for a in self.waiting if a.lane == lane), None)
        if following is not None:
            self.waiting.remove(following)
            self.start(following)


@pytest.mark.parametrize("seed", range(12))
async def test_no_order_of_messages_overbooks_or_starves(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    world = World(open_database(f"sqlite:{tmp_path / 'geres.db'}"))
    me = Introduction(1, "http://127.0.0.1:1", "0", 0)
    dispatcher = Dispatcher(world.db, lambda: world.now_us, Waiters(), tenant_id=world.tenant_id, me=me)
    node = Node()
    hello = Hello(1, "0", "n1", "boot", "h", "h", "x86_64", "linux", 1, "ann", float(CPUS), 1 << 33)
    desk = await dispatcher.connect(hello, node.send, lambda why: None)
    jobs = [world.job(), world.job()]
    total = 0

    for _ in range(600):
        world.now_us += SECOND // 1000
        action = dice.choice(["submit", "hear", "end", "end", "tell", "tell", "turn", "turn"])
        if action == "submit" and total < 150:
            n = dice.choice([1, 5, 20])
            cpus = dice.choice([1.0, 1.0, 2.0])
            spec = TaskSpec(command=["true"], cpus=cpus)
            job = dice.choice(jobs)
            await world.db.run(
                submit.create_tasks, world.ann, job, spec, [TaskRow()] * n, now_us=world.now_us
            )
            total += n
            dispatcher.ring()
        elif action == "hear" and node.to_node:
            node.hear()
        elif action == "end" and node.running:
            node.end_one(dice.choice(list(node.running)))
        elif action == "tell" and node.to_server:
            dispatcher.receive(desk, node.to_server.popleft())
        elif action == "turn":
            await dispatcher.step()

    for _ in range(5000):  # everything that was submitted ends: nothing is stuck behind room that nobody uses
        if len(node.done) == total and not node.to_server:
            break
        while node.to_node:
            node.hear()
        if node.running:
            node.end_one(next(iter(node.running)))
        while node.to_server:
            dispatcher.receive(desk, node.to_server.popleft())
        dispatcher.ring()
        await dispatcher.step()
    assert sorted(node.done) == sorted(set(node.done))
    assert len(node.done) == total
    while await dispatcher.step():
        pass
    assert desk.room.cpus_milli == CPUS * 1000
    assert not desk.held
    world.db.close()
