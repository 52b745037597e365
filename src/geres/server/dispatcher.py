"""Dispatching for the nodes connected here: gathers reports, takes turns, sends what came of them."""

from __future__ import annotations

import logging
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Protocol

import anyio
import msgspec

from geres.aio import Doorbell
from geres.errors import StoreUnavailable
from geres.model.demand import Demand
from geres.model.ids import job_of, show_task
from geres.model.states import Reason
from geres.model.tasks import WhyNode
from geres.model.wire import Ask, AttemptKey, Ended, Frame, Heartbeat, Hello, Stream, Welcome
from geres.scheduling import credit
from geres.scheduling.rooms import empty_room
from geres.server import explaining, logs
from geres.server.arriving import take_in
from geres.server.desk import Desk
from geres.server.faults import Faults
from geres.server.frames import ask_action, ask_signal, bytes_of, facts_of, only_attempts, with_own_blobs
from geres.server.hints import Hints
from geres.server.known import Known
from geres.server.orders import Orders
from geres.server.planner import TurnPlanner
from geres.store import dispatching, nodes
from geres.store.database import Database, Order
from geres.store.servers import Introduction
from geres.store.turn import Gathered, Placement, Turned, turn

log = logging.getLogger("geres.dispatcher")

_POLL_SECONDS = 1.0
_MOST_REPORTS = 4000  #: taken into one turn; the rest waits for the next
_MOST_BYTES = 256 << 20  #: of ends that wait for a turn; the agents repeat what comes beyond it
_MOST_MEANS = 20_000  #: lanes whose mean run time is kept
_SEND_AWAY_SECONDS = 2.0  #: at the end of this server, all nodes within so long
_QUIET_SECONDS = 2.0  #: without traffic before a checksum is compared

#: What is raised for what stands in the store of a single task.
_UNREADABLE = (ValueError, TypeError, msgspec.MsgspecError)


class Waiters(Protocol):
    def job_changed(self, job_ids: Iterable[int]) -> None: ...

    def task_ended(self, keys: Iterable[int]) -> None: ...


class Dispatcher:
    """One for each server.  All methods belong to the event loop; the store is reached in turns."""

    def __init__(
        self,
        db: Database,
        clock: Callable[[], int],
        waiters: Waiters,
        *,
        tenant_id: int,
        me: Introduction,
        hints: Hints | None = None,
        lease_seconds: float = 15.0,
        reserve_after_seconds: float = 300.0,
        placing: str = "pack",
        fair: bool = True,
        task_key: bytes = b"",
    ) -> None:
        self._db, self._clock, self._waiters = db, clock, waiters
        self._tenant_id, self._me, self._hints = tenant_id, me, hints or Hints(me.id)
        self._lease_seconds = lease_seconds
        self.bell = Doorbell()
        self.servers: list[str] = []  #: addresses of all, where there are several
        self.desks: dict[int, Desk] = {}
        self.left: dict[int, int] = {}  #: nodes that said good-bye, and the epoch; not stored yet
        self._started: list[tuple[int, int, int, int]] = []
        self._asked_done: list[tuple[int, int, int, str]] = []
        self._ended: list[tuple[int, Ended]] = []
        self._ended_bytes = 0
        self._reported: dict[tuple[int, AttemptKey], None] = {}
        self._means: OrderedDict[int, float] = OrderedDict()
        self._known = Known(db)
        self._orders = Orders(self._known, task_key)
        self.planner = TurnPlanner(
            self.desks, self._means, reserve_after_seconds=reserve_after_seconds, placing=placing, fair=fair
        )
        self.ask_bell = Doorbell()
        #: Nodes of a tenant that are connected to other servers.
        self.far_nodes: Callable[[int], Iterable[explaining.Connected]] = lambda tenant_id: ()
        self.asked_nodes: set[int] = set()  #: of which something was asked since they were last told
        self._faults = Faults(db, clock, self._take, self._apply, self.planner.leave_out)
        self._due = True  #: something may have become startable since the last turn
        self._waiting = True  #: the last turn that dispatched left tasks queued
        self._looked_at = 0.0
        self._unsure = False  #: a turn may have assigned what no node was told

    # connections

    async def connect(
        self,
        hello: Hello,
        send: Callable[[Frame], None],
        close: Callable[[str], None],
        tenant_id: int | None = None,
    ) -> Desk:
        """Take a node in, of this server's own tenant where none is given.

        Its Welcome and what it has to start or kill are sent before anything else.
        """
        now_us = self._clock()
        answer = await self._db.run(
            nodes.hello,
            hello,
            tenant_id=self._tenant_id if tenant_id is None else tenant_id,
            server_id=self._me.id,
            lease_us=int(self._lease_seconds * 1e6),
            now_us=now_us,
        )
        if old := self.desks.get(answer.node_id):
            self.disconnect(old, "the node has connected again")
        room = empty_room(answer.node_id, facts_of(hello))
        desk = Desk(
            answer.node_id, hello.node, answer.pool_id, answer.epoch, room, send, close, hello.account
        )
        desk.tenant_id = self._tenant_id if tenant_id is None else tenant_id
        desk.free_gpus = list(range(hello.gpus))
        desk.heartbeat_at = time.monotonic()
        desk.draining = answer.draining
        desk.start = answer.start
        desk.open_or_close()
        again, give_back = take_in(desk, answer.held, answer.resend, hello.running, hello.gpu_ids)
        lease, order = self._lease_seconds, desk.start.order
        welcome = Welcome(answer.epoch, answer.node_id, lease, lease / 3, self._me.version, order)
        frame = Frame(welcome=welcome, kill=answer.kill)
        resent = {held.spec_id: answer.specs.get(held.spec_id, "") for held, _ in again}
        await self._known.load({job_of(held.id) for held, _ in again}, resent.keys(), resent)
        for held, ahead in again:
            try:
                assign = self._orders.assign(desk, frame, held, held.attempt)
            except _UNREADABLE as error:
                desk.remove((held.id, held.attempt))
                self._give_up(desk.node_id, (held.id, held.attempt), error)
                continue
            assign.ahead = ahead
            assign.gpu_ids = desk.held[held.id, held.attempt].gpu_ids
            assign.submitted_by = held.submitted_by
        for held in answer.held:
            if held.asked is not None:
                action, number = ask_action(held.asked), ask_signal(held.asked)
                if number:
                    desk.signal_once(held.id, held.attempt, held.asked_at or 0)
                frame.ask.append(Ask(held.id, held.attempt, action, number, held.message or ""))
        newer = self.desks.get(desk.node_id)
        if newer is not None and newer.epoch > desk.epoch:
            self.disconnect(desk, "the node has connected again")
            return desk
        if newer is not None:  # of a hello before ours, which came to its end meanwhile
            self.disconnect(newer, "the node has connected again")
        frame.servers = self.servers
        send(frame)
        self.desks[desk.node_id] = desk
        for held in give_back:
            self._receive_end(desk, Ended(held.id, held.attempt, "given_back"))
        self.planner.node_came(desk.pool_id)
        self.after(answer.turned, now_us)
        log.info("node %s connected, epoch %d, %d attempts", desk.name, desk.epoch, len(desk.held))
        self._hints.asked([desk.node_id])  # another server may still think that it has it
        self.ring_here()
        return desk

    def disconnect(self, desk: Desk, why: str) -> None:
        """Forget a connection.  The node keeps its tasks until its lease ends."""
        desk.gone = True
        if self.desks.get(desk.node_id) is desk:
            del self.desks[desk.node_id]
        desk.close(why)

    async def send_away(self) -> None:
        """Have all nodes connect again, elsewhere or to our successor: not all in the same moment."""
        desks = list(self.desks.values())
        random.shuffle(desks)
        pause = min(_SEND_AWAY_SECONDS / max(1, len(desks)), 0.001)
        for desk in desks:
            self.disconnect(desk, "this server is stopping: connect again")
            await anyio.sleep(pause)

    def leave(self, desk: Desk) -> None:
        """The agent said good-bye; a loop stores it: the task of a connection may be cancelled any time."""
        self.left[desk.node_id] = desk.epoch

    # what agents say

    def receive(self, desk: Desk, frame: Frame) -> None:
        """Work through one frame of a node.  Ends free their room at once."""
        if desk.gone:
            return
        only_attempts(frame)
        if frame.started:
            self._started += [(task, attempt, desk.node_id, at) for task, attempt, at in frame.started]
            for task, attempt, _ in frame.started:
                if held := desk.held.get((task, attempt)):
                    held.started = True
        for task, attempt, action in frame.asked:
            state = {"suspend": "suspended", "resume": "running"}.get(action, "")
            self._asked_done.append((task, attempt, desk.node_id, state))
        for ended in frame.ended:
            self._receive_end(desk, ended)
        if frame.heartbeat is not None:
            self._receive_heartbeat(desk, frame.heartbeat)
        if frame.start is not None and desk.start_is_over(frame.start):
            self.ring_here()
        if frame.drain:
            desk.leaving = True
            desk.open_or_close()
        if frame.started or frame.ended or frame.asked:
            self.bell.ring()

    def _receive_end(self, desk: Desk, ended: Ended) -> None:
        key = (ended.task, ended.attempt)
        if self._ended_bytes > _MOST_BYTES:  # the store is away, for long: it stays with its agent
            return
        held = desk.held.get(key)
        if held is not None:
            if ended.usage is not None and ended.outcome != "given_back":
                self._learn(held.lane_id, ended.usage.wall_seconds)
            freed = desk.remove(key) or desk.lanes.get(held.lane_id) is not None
            self._due = self._due or (freed and self._waiting)
        if (desk.node_id, key) not in self._reported:
            self._reported[(desk.node_id, key)] = None
            self._ended.append((desk.node_id, with_own_blobs(ended)))
            self._ended_bytes += bytes_of(self._ended[-1:])

    def _learn(self, lane_id: int, seconds: float) -> None:
        self._means[lane_id] = credit.mean(self._means.get(lane_id), seconds)
        if len(self._means) > _MOST_MEANS:
            self._means.popitem(last=False)

    def _receive_heartbeat(self, desk: Desk, beat: Heartbeat) -> None:
        desk.heartbeat, desk.heard = True, beat.number
        desk.heartbeat_at = time.monotonic()
        if beat.disk_total_bytes:
            desk.disk_percent = 100.0 * (1.0 - beat.disk_free_bytes / beat.disk_total_bytes)
        if beat.full is not desk.full:
            desk.full = beat.full
            desk.open_or_close()
            self.ring_here()
        if desk.heartbeat_at - desk.busy_at < _QUIET_SECONDS or self._ended_bytes > _MOST_BYTES:
            return
        same = beat.count == len(desk.held) and beat.checksum == desk.checksum()
        desk.mismatches = 0 if same else desk.mismatches + 1
        if desk.mismatches >= 2:
            log.warning("node %s: its attempts differ from ours; it has to connect again", desk.name)
            self.disconnect(desk, "the list of attempts differs from the server's: connect again")

    # what the API says

    def ring(self) -> None:
        """Something may start now, here or on another server's nodes."""
        self.ring_here()
        self._hints.queued()

    def ring_here(self) -> None:
        self._due = True
        self.bell.ring()

    def asked(self, node_ids: Iterable[int]) -> None:
        """Something was asked of these nodes or their tasks; tell them, whichever server has them."""
        nodes_asked = set(node_ids)
        self.asked_here(nodes_asked)
        self._hints.asked(nodes_asked)

    def asked_here(self, node_ids: Iterable[int] | None) -> None:
        """Tell those of the nodes that are connected here; None for all."""
        mine = self.desks.keys() if node_ids is None else self.desks.keys() & set(node_ids)
        if mine:
            self.asked_nodes |= mine
            self.ask_bell.ring()

    def is_silent(self, desk: Desk) -> bool:
        """True for a node that has left a heartbeat out: perhaps it is connected elsewhere by now."""
        return time.monotonic() - desk.heartbeat_at > self._lease_seconds / 2

    def set_draining(self, desk: Desk, draining: bool) -> None:
        """Let a node take new tasks, or no more."""
        if not desk.leaving and desk.draining is not draining:
            desk.draining = draining
            desk.open_or_close()
            if draining:
                desk.send(Frame(drain=True))  # what waits there comes back
            self.ring_here()

    def explain(self, tenant_id: int, pool: str, demand: Demand) -> tuple[list[WhyNode], str | None]:
        """Why the connected nodes of the pool do not take such a task now, and the first that would."""
        connected = [*self._desks_of(tenant_id), *self.far_nodes(tenant_id)]
        return explaining.explain(connected, pool, demand)

    def full_disks(self, tenant_id: int, pool: str, percent: float) -> list[tuple[str, float]]:
        """(node, percent in use) of the pool's connected nodes with a fuller disk, the fullest first."""
        return explaining.full_disks(self._desks_of(tenant_id), pool, percent)

    def _desks_of(self, tenant_id: int) -> list[Desk]:
        return [desk for desk in self.desks.values() if desk.tenant_id == tenant_id]

    async def open_stream(self, task: int, attempt: int, path: str, with_stdin: bool) -> bool:
        """Ask the task's node to connect to `path`.  False where no node of this server has the attempt.

        Attempt N of task 0 means the logs of node N.
        """
        for desk in self.desks.values():
            if (task, attempt) in desk.held or (not task and desk.node_id == attempt):
                desk.send(Frame(streams=[Stream(task, attempt, path, with_stdin)]))
                return True
        return False

    def forget_job(self, job_id: int) -> None:
        """A job's facts (name, cap, priority) were changed."""
        self.forget_job_here(job_id)
        self._hints.edited(job_id)

    def forget_job_here(self, job_id: int | None) -> None:
        """None forgets all."""
        if job_id is None:
            self._known.jobs.clear()
        else:
            self._known.jobs.pop(job_id, None)

    def queue_lengths(self) -> dict[str, int]:
        """What waits for the next turn."""
        return {
            "ends": len(self._ended),
            "starts": len(self._started),
            "answers": len(self._asked_done),
        }

    # loops

    async def step(self) -> bool:
        """Take one turn.  True where another would find more to do."""
        now = time.monotonic()
        if now - self._looked_at >= _POLL_SECONDS:
            self._due = True  # another server may have queued something; its NOTIFY may be lost
            self._looked_at = now
        self.planner.now_us = self._clock()
        if self._unsure:
            await self._find_unsent()
        work = self._gather()
        if not (work.ended or work.started or work.asked or work.pools):
            return False
        try:
            done = await self._take(work)
        except StoreUnavailable:
            self._put_back(work)
            raise
        except Exception:
            log.exception("a turn failed; looking for what it cannot digest")
            await self._take_apart(work)
            return True
        if work.pools:
            self._waiting = done.waiting
        await self._apply(work, done)
        return done.more or bool(self._ended or self._started)

    def _gather(self) -> Gathered:
        due, self._due = self._due, False
        ended, self._ended = self._ended[:_MOST_REPORTS], self._ended[_MOST_REPORTS:]
        self._ended_bytes -= bytes_of(ended)
        ends = {(report.task, report.attempt) for _, report in ended}
        started = [row for row in self._started if (row[0], row[1]) not in ends]
        asked, self._asked_done, self._started = self._asked_done, [], []
        pools = sorted({desk.pool_id for desk in self.desks.values()}) if due else []
        self._waiting = self._waiting or due  # who knows what this turn will leave
        return Gathered(
            {desk.node_id: desk.epoch for desk in self.desks.values()}, pools, started, asked, ended
        )

    async def _find_unsent(self) -> None:
        """Nodes to which the store has assigned what they were not told connect again, and so get it."""
        for node_id, task, attempt in await self._db.read(dispatching.assigned_on, sorted(self.desks)):
            key, desk = (task, attempt), self.desks.get(node_id)
            if desk is not None and key not in desk.held and (node_id, key) not in self._reported:
                self.disconnect(desk, "an assignment was not sent: connect again")
        self._unsure = False

    def _put_back(self, work: Gathered) -> None:
        self._started = work.started + self._started
        self._asked_done = work.asked + self._asked_done
        self._ended = work.ended + self._ended
        self._ended_bytes += bytes_of(work.ended)
        self._due = True

    async def _take(self, work: Gathered) -> Turned:
        try:
            return await self._db.run_as(
                Order.TURN,
                turn,
                work,
                self.planner,
                now_us=self.planner.now_us,
                known_specs=self._known.specs.keys(),
            )
        except StoreUnavailable:
            self._unsure = True
            raise

    async def _take_apart(self, work: Gathered) -> None:
        """Do what a failed turn was to do without what it cannot digest."""
        self._started += work.started
        self._asked_done += work.asked
        self._due = True
        if left := await self._faults.reports(work):
            self._ended = left + self._ended
            self._ended_bytes += bytes_of(left)
        elif work.pools:
            await self._faults.queued(work)

    async def _apply(self, work: Gathered, done: Turned) -> None:
        now_us = self._clock()
        for node_id in done.stale_nodes:
            if (desk := self.desks.get(node_id)) and desk.epoch == work.epochs.get(node_id):
                self.disconnect(desk, "another server holds this node")
        frames: dict[int, Frame] = {}
        try:
            assigned = [placement.candidate for placement, _ in done.assigned]
            job_ids, spec_ids = {job_of(c.id) for c in assigned}, {c.spec_id for c in assigned}
            await self._known.load(job_ids, spec_ids, done.specs)
        except StoreUnavailable:
            self._unsure = True  # what is stored is acknowledged all the same
            done.assigned = []
        for placement, attempt in done.assigned:
            try:
                self._send_to(frames, placement, attempt, work.epochs)
            except _UNREADABLE as error:
                self._give_up(placement.node_id, (placement.candidate.id, attempt), error)
        acked: dict[int, list[AttemptKey]] = {}
        for node_id, key in done.acks:
            acked.setdefault(node_id, []).append(key)
            if (desk := self.desks.get(node_id)) and key in desk.held:  # reported over an older connection
                self._due = desk.remove(key) or self._due
        for node_id, keys in acked.items():
            frames.setdefault(node_id, Frame()).ack = keys
        for node_id, report in work.ended:
            self._reported.pop((node_id, (report.task, report.attempt)), None)
        now = time.monotonic()
        for node_id, frame in frames.items():
            if desk := self.desks.get(node_id):
                desk.busy_at = now
                desk.send(frame)
        self.after(done, now_us)

    def _give_up(self, node_id: int, key: AttemptKey, error: Exception) -> None:
        """Fail an attempt that no node can be told of, for what stands in the store of it: as if it had."""
        task, attempt = key
        log.error("task %s cannot be read: %s", show_task(task), error, extra={"event": "task_unreadable"})
        if desk := self.desks.get(node_id):
            self._due = desk.remove(key) or self._due
        text = f"what is stored of it cannot be read: {error}"
        self._ended.append((node_id, Ended(task, attempt, "failed", Reason.INTERNAL, text[:1000])))
        self._ended_bytes += bytes_of(self._ended[-1:])
        self.bell.ring()

    def after(self, done: Turned, now_us: int) -> None:
        """Tell those who wait, and the log."""
        if done.more:
            self._due = True
        if done.queued:
            self._hints.queued()
        if done.jobs or done.task_ids:
            self._waiters.job_changed(done.jobs or {job_of(key) for key in done.task_ids})
            self._waiters.task_ended(done.task_ids)
        if done.accepted:
            names = {desk.node_id: desk.name for desk in self.desks.values()}
            logs.task_ends(
                ((names.get(node, str(node)), ended, state) for node, ended, state in done.accepted), now_us
            )

    def _send_to(
        self, frames: dict[int, Frame], placement: Placement, attempt: int, epochs: dict[int, int]
    ) -> None:
        desk = self.desks.get(placement.node_id)
        if desk is None or desk.epoch != epochs[placement.node_id]:
            return  # the node is gone, and its lease will end; or its hello has brought the attempt up
        candidate = placement.candidate
        demand = self.planner.demands[candidate.lane_id]
        # its lane may have left the node while the turn was taken; the room that it had is free then
        ahead = placement.ahead and candidate.lane_id in desk.lanes
        held = desk.add((candidate.id, attempt), candidate.lane_id, demand, ahead=ahead)
        frame = frames.get(placement.node_id)
        if frame is None:
            frame = frames[placement.node_id] = Frame()
        assign = self._orders.assign(desk, frame, candidate, attempt)
        assign.ahead = desk.lanes[candidate.lane_id].in_room if ahead else 0
        assign.gpu_ids = held.gpu_ids
        assign.submitted_by = self.planner.submitters.get(candidate.lane_id, "")
