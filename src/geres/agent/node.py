"""The agent's mind: the attempts of this node, what servers say of them, what the supervisor reports."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from geres.agent.accounts import Refused, Slow
from geres.agent.ends import ended_of, large_files, named_files
from geres.agent.journal import NO_SPACE
from geres.agent.link import Link
from geres.agent.named import Named, SlowDisks
from geres.agent.orders import Orders
from geres.agent.upkeep import Upkeep
from geres.agent.upload import Uploader
from geres.model.ids import show_task
from geres.model.wire import Ask, Assign, AttemptKey, Ended, Frame, StartOrder, StartReport, Stream

log = logging.getLogger("geres.agent.node")

WAITING, RUNNING, ENDED = "waiting", "running", "ended"
_REPEAT_SECONDS = 10.0
_FULL_SECONDS = 1.0
_MOST_FRAME_BYTES = 4 << 20


class Following:
    """For those who follow an attempt: a bell for what happens to it, and its end."""

    def __init__(self) -> None:
        self.count = 0
        self.bell = asyncio.Event()
        self.end: Ended | None = None


class Node:
    """One for each agent process; all of it belongs to the event loop.

    `outbox` gathers what the next frame to the server carries, `wake` rings for it.
    """

    def __init__(self, orders: Orders, uploader: Uploader, upkeep: Upkeep) -> None:
        self.orders = orders
        self.link: Link  # set once, before anything is heard
        self._uploader = uploader
        self._upkeep = upkeep
        self.attempts: dict[AttemptKey, str] = {}
        self._given_before: set[AttemptKey] = set()  # to the supervisor over earlier connections
        self.ended: dict[AttemptKey, Ended] = {}  # reported or to be reported, not acknowledged
        self.started: list[tuple[int, int, int]] = []  # to be sent
        self._running_since: dict[AttemptKey, int] = {}
        self._gpu_ids: dict[AttemptKey, list[int]] = {}
        self.asked: list[tuple[int, int, str]] = []
        self._to_send: dict[AttemptKey, None] = {}
        self._sent_at: dict[AttemptKey, float] = {}
        self.draining = False
        self.is_full = False  # the disk has no room for another task
        self.beat_bell = asyncio.Event()  # a heartbeat is wanted now
        self.answers = False  # the supervisor is one that answers pings
        self.answered_at = 0.0
        self._pong = asyncio.Event()
        self.wake: Callable[[], None] = lambda: None
        self.listed = asyncio.Event()
        self.progress = asyncio.Event()  # set whenever an attempt ends or an end is acknowledged
        self._following: dict[AttemptKey, Following] = {}
        self.stdin_given: dict[AttemptKey, int] = {}  # bytes that the task's pipe took; -1: it takes no more
        self._stdin_bells: dict[AttemptKey, asyncio.Event] = {}
        self.open_stream: Callable[[Stream], None] = lambda stream: None
        self.renew: Callable[[str], None] = lambda wish: None
        self.begin: Callable[[StartOrder | None], None] = lambda order: None
        self.start = StartReport()  # how far the start task is; nothing is started before it succeeded
        self._start_to_send: StartReport | None = None
        self.disks = SlowDisks()
        self._uploads: dict[AttemptKey, tuple[Ended, dict[str, str], int, list[Named]]] = {}
        self._uploading: set[AttemptKey] = set()
        self.upload_bell = asyncio.Event()

    # -- what the server says

    def obey(self, frame: Frame) -> None:
        """Work through a frame of the server, part after part."""
        for spec in frame.specs:
            self.orders.learn(spec)
        if frame.assign:
            self._assign(frame.assign)
        for ask in frame.ask:
            self._ask(ask)
        if frame.kill:
            self._forget(frame.kill, kill=True)
        for stream in frame.streams:
            self.open_stream(stream)
        if frame.ack:
            self._forget(frame.ack, kill=False)
        if frame.drain:
            self.link.send(("recall_all",))
        if frame.agent:
            self.renew(frame.agent)

    async def supervisor_answers(self) -> None:
        """Wait until it does; without it there is nothing that this node could do."""
        await self.listed.wait()
        if self.answers:
            self._pong.clear()
            self.link.send(("ping",))
            await self._pong.wait()

    def drain(self) -> None:
        """Start nothing more, and give back what waits."""
        self.draining = True
        self.link.send(("recall_all",))

    def start_is(self, report: StartReport) -> None:
        """The start task of the pool has come so far.  What waits is given back while it is not done."""
        self.start = self._start_to_send = report
        if report.state not in ("", "done"):
            self.link.send(("recall_all",))
        self.wake()

    def _assign(self, assigns: list[Assign]) -> None:
        starts = []
        for assign in assigns:
            key = (assign.task, assign.attempt)
            state = self.attempts.get(key)
            if state == ENDED:
                if key in self.ended:  # else its output is being uploaded
                    self._to_send[key] = None
                    self.wake()
            elif state is not None:
                continue
            elif self.draining or self.start.state not in ("", "done"):
                self._end_here(Ended(*key, "given_back"))
            elif self.is_full:
                # a little later, or a server that does not know of full disks sends it at once
                self.attempts[key] = WAITING
                asyncio.get_running_loop().call_later(_FULL_SECONDS, self._give_back_unseen, key)
            elif (start := self._start(assign)) is not None:
                self.attempts[key] = WAITING
                if assign.gpu_ids:
                    self._gpu_ids[key] = assign.gpu_ids
                starts.append(start)
        if starts:
            self.link.send(("start", starts))
        self.orders.drop()

    def _give_back_unseen(self, key: AttemptKey) -> None:
        """Give back what the supervisor was never told of, unless the server has taken it back meanwhile."""
        if self.attempts.get(key) == WAITING:
            self._end_here(Ended(*key, "given_back", "disk_full"))

    def disk_is(self, *, full: bool) -> None:
        """A node with a full disk takes no new tasks; the server is told at once."""
        if full is not self.is_full:
            self.is_full = full
            log.warning("the disk is full: no new tasks" if full else "the disk has room again")
            self.beat_bell.set()

    def dropped(self, key: AttemptKey, stream: str) -> None:
        """A large output was removed to make room; its last part is in the report."""
        found = self._uploads.get(key)
        report = found[0] if found is not None else self.ended.get(key)
        if report is not None and report.message is None:
            report.message = f"only the last of its {stream} is kept: the disk of its node was full"

    def _start(self, assign: Assign) -> tuple[Any, ...] | None:
        key = (assign.task, assign.attempt)
        try:
            spec = self.orders.spec_of(assign)
            if spec is not None and spec.handler is not None:
                message = f"this version of geres runs no handlers; {spec.handler!r} cannot be loaded"
                self._end_here(Ended(*key, "failed", "handler_load", message))
                return None
            return self.orders.start(assign)
        except Refused as error:
            self._end_here(Ended(*key, "failed", "no_account", str(error)))
            return None
        except Slow as error:
            log.warning("%s is given back: %s", show_task(assign.task), error)
            self._end_here(Ended(*key, "given_back"))
            return None
        except OSError as error:
            if error.errno in NO_SPACE:
                self.disk_is(full=True)
                self._end_here(Ended(*key, "given_back", "disk_full"))
            else:
                self._end_here(Ended(*key, "failed", "internal", f"the node could not prepare it: {error}"))
            return None
        except KeyError:
            message = f"the server did not send specification {assign.spec_id}"
            self._end_here(Ended(*key, "failed", "internal", message))
            return None

    def _ask(self, ask: Ask) -> None:
        key = (ask.task, ask.attempt)
        if key not in self.attempts or self.attempts[key] == ENDED:
            if key in self.ended:
                self._to_send[key] = None
                self.wake()
            return
        if ask.action == "cancel":
            self.end(key, ("cancelled", "requested", ask.why or None), None)
        elif ask.action == "signal":
            self.link.send(("signal", key, ask.signal))
            self._answer(key, "signal")
        elif ask.action == "suspend":
            self.link.send(("signal", key, 19))
            self._answer(key, "suspend")
        elif ask.action == "resume":
            self.link.send(("signal", key, 18))
            self._answer(key, "resume")
        elif ask.action == "recall":
            self.link.send(("recall", [key]))

    def _answer(self, key: AttemptKey, action: str) -> None:
        self.asked.append((*key, action))
        self.wake()

    def end(self, key: AttemptKey, verdict: tuple[str, str, str | None], grace: float | None) -> None:
        """TERM, the grace (None: the task's own), KILL."""
        self.link.send(("end", key, *verdict, grace))

    def _forget(self, keys: list[AttemptKey], kill: bool) -> None:
        names = [tuple(key) for key in keys]
        for name in names:
            key = (name[0], name[1])
            self.attempts.pop(key, None)
            self._running_since.pop(key, None)
            self._gpu_ids.pop(key, None)
            self.stdin_given.pop(key, None)
            self.ended.pop(key, None)
            self._to_send.pop(key, None)
            self._sent_at.pop(key, None)
            self._uploads.pop(key, None)
            self._upkeep.acknowledged(key)
            if kill:
                self._notify(key)
        self.progress.set()
        self.link.send(("kill" if kill else "ack", names))

    # -- what the supervisor says

    def hear(self, frame: tuple[Any, ...]) -> None:
        """Take in one frame of the supervisor."""
        what = frame[0]
        if what == "report":
            for task, attempt, started_us in frame[1]:
                key = (task, attempt)
                if key in self.attempts:
                    self.attempts[key] = RUNNING
                    self._running_since[key] = started_us
                    self.started.append((task, attempt, started_us))
                    self._notify(key)
            for end in frame[2]:
                self._take_end(end)
            self.wake()
        elif what == "large":
            self._upkeep.grown(frame[1])
        elif what == "disk":
            self._upkeep.measure(frame[1], self._over_disk)
        elif what == "stdin":
            key = tuple(frame[1])
            if self.attempts.get(key) in (WAITING, RUNNING):  # its start may be told later
                self.stdin_given[key] = frame[2]
            if (bell := self._stdin_bells.pop(key, None)) is not None:
                bell.set()
        elif what == "pong":
            self.answered_at = time.monotonic()
            self._pong.set()
        elif what == "list":
            self._take_list(*frame[1:])

    def linked(self) -> None:
        """A connection to a supervisor was opened.  What is given over it from now on is behind its list."""
        self.orders.forget_supervisor()
        self._given_before = set(self.attempts)

    def _over_disk(self, key: AttemptKey, used: int, limit: int) -> None:
        message = f"used {used >> 10} KiB on disk, more than its allowance of {limit >> 10} KiB"
        self.end(key, ("failed", "disk_full", message), None)

    def _take_list(
        self,
        pid: int,
        boot_id: str,
        waiting: list[AttemptKey],
        running: list[tuple[int, int, int, int, int]],
        ended: list[tuple[Any, ...]],
        gpu_ids: list[tuple[int, int, list[int]]] | None = None,
        answers: bool = False,
        *_: Any,  # of a newer supervisor
    ) -> None:
        """A (new) connection to the supervisor begins with all that it has."""
        here = {key: ENDED for key in self.attempts if key in self.ended or key in self._uploads}
        gone = [key for key in self.attempts if key in self._given_before and key not in here]
        under_way = [key for key in self.attempts if key not in self._given_before and key not in here]
        self.attempts = here | dict.fromkeys([*under_way, *waiting], WAITING)
        self._running_since = {(entry[0], entry[1]): entry[3] for entry in running}
        self.attempts |= dict.fromkeys(self._running_since, RUNNING)
        self.started = [(*key, started_us) for key, started_us in self._running_since.items()]
        self._gpu_ids = {key: self._gpu_ids[key] for key in under_way if key in self._gpu_ids}
        self._gpu_ids |= {(task, attempt): ids for task, attempt, ids in gpu_ids or []}
        for end in ended:
            self._take_end(end)
        for key in gone:
            if key not in self.attempts:
                self._lose(key)
        log.info(
            "supervisor %d has %d running, %d waiting, %d ended", pid, len(running), len(waiting), len(ended)
        )
        self.answers, self.answered_at = answers, time.monotonic()
        self.listed.set()
        self._pong.set()
        self.wake()

    def _lose(self, key: AttemptKey) -> None:
        """It was given to a supervisor that died before it wrote that down."""
        self._end_here(Ended(*key, "given_back"))

    def _take_end(self, end: tuple[Any, ...]) -> None:
        key = (end[0], end[1])
        if key in self.ended or key in self._uploads:
            return
        try:
            self._look_at_end(key, end)
        except Exception as error:  # whatever it is: a task whose end is not told runs for ever
            log.exception("the end of %s cannot be read", show_task(key[0]))
            message = f"the agent cannot read how it ended: {error!r}"
            self._end_here(Ended(*key, "failed", "internal", message[:1000]))

    def _look_at_end(self, key: AttemptKey, end: tuple[Any, ...]) -> None:
        report = ended_of(end)
        self._over(key)
        if report.outcome == "given_back" and report.reason == "disk_full":
            self.disk_is(full=True)
        files: dict[str, str] = {}
        limit = 0
        if report.folder is not None:
            limit, retain_seconds = end[13] or (0, 0.0)
            files = large_files(end)
            report.folder = self._upkeep.keep(key, report.folder, retain_seconds, files, limit)
        named = named_files(end)
        if files or named:
            self._uploads[key] = (report, files, limit, named)
            self.upload_bell.set()
        else:
            self._report(report)

    def _over(self, key: AttemptKey) -> None:
        self.attempts[key] = ENDED
        self._running_since.pop(key, None)
        self._gpu_ids.pop(key, None)
        self.stdin_given.pop(key, None)
        self._notify(key)

    def _end_here(self, report: Ended) -> None:
        """An end that the supervisor knows nothing of."""
        report.ended_us = time.time_ns() // 1000
        self._over((report.task, report.attempt))
        self._report(report)
        self.wake()

    def _report(self, report: Ended) -> None:
        key = (report.task, report.attempt)
        self.ended[key] = report
        self._to_send[key] = None
        self.progress.set()
        if key in self._following:
            self._following[key].end = report

    def _notify(self, key: AttemptKey) -> None:
        following = self._following.get(key)
        if following is not None:
            following.bell.set()
        if self.attempts.get(key) == ENDED and (bell := self._stdin_bells.pop(key, None)) is not None:
            bell.set()

    def follow(self, key: AttemptKey) -> Following:
        """Be told what happens to an attempt, until `unfollow`."""
        following = self._following.get(key)
        if following is None:
            following = self._following[key] = Following()
            following.end = self.ended.get(key)
        following.count += 1
        return following

    def unfollow(self, key: AttemptKey) -> None:
        """To be called once for each `follow`; with the last one nothing of it is kept."""
        following = self._following[key]
        following.count -= 1
        if not following.count:
            del self._following[key]

    def stdin_bell(self, key: AttemptKey) -> asyncio.Event:
        """Rings once, when the task has taken input or takes none any more."""
        return self._stdin_bells.setdefault(key, asyncio.Event())

    def output_of(self, key: AttemptKey) -> tuple[Ended, dict[str, str], int]:
        """(report, stream to file of what is not whole in it, output limit) of an attempt that ended here.

        Raises KeyError where its end is acknowledged.
        """
        if key in self._uploads:
            return self._uploads[key][:3]
        return self.ended[key], *self._upkeep.kept_files(key)

    @property
    def uploading(self) -> bool:
        return bool(self._uploads)

    # -- uploads

    async def upload_step(self) -> bool:
        """Look at named files and upload large outputs, of one attempt.  True where there are more."""
        if not self._uploads:
            self.upload_bell.clear()
            await self.upload_bell.wait()
        key = next((key for key in self._uploads if key not in self._uploading), None)
        if key is None:
            await asyncio.sleep(0.05)
            return True
        report, files, limit, named = self._uploads[key]
        self._uploading.add(key)
        try:
            await self.disks.look(report, named)
            await self._uploader.upload(report, files, limit)
        finally:
            self._uploading.discard(key)
        if self._uploads.pop(key, None) is not None:
            self._report(report)
            self.wake()
        return True

    # -- what is sent to the server

    def keys(self) -> tuple[list[AttemptKey], list[AttemptKey]]:
        """(all attempts, those that run), for a hello."""
        return list(self.attempts), [key for key, state in self.attempts.items() if state == RUNNING]

    def gpu_ids(self) -> list[tuple[int, int, list[int]]]:
        """(task, attempt, gpus) of the attempts that have some, for a hello."""
        return [(*key, ids) for key, ids in self._gpu_ids.items()]

    def unreported(self) -> list[AttemptKey]:
        """The attempts that the server believes to be here: all whose end it has not been sent."""
        return [key for key in self.attempts if key not in self._sent_at]

    def connected(self) -> None:
        """A new connection: every start, and every end that is not acknowledged, is reported again."""
        self.orders.forget_server()
        self._sent_at.clear()
        self.started = [(*key, started_us) for key, started_us in self._running_since.items()]
        self.asked.clear()
        self._to_send = dict.fromkeys(self.ended)

    def repeat(self, now: float) -> None:
        """Send again the ends that have not been acknowledged for long."""
        late = [key for key, at in self._sent_at.items() if now - at > _REPEAT_SECONDS and key in self.ended]
        if late:
            self._to_send |= dict.fromkeys(late)
            self.wake()

    def next_frame(self, now: float) -> Frame | None:
        """What there is to tell the server, as much as one frame should hold; None for nothing."""
        ended: list[Ended] = []
        size = 0
        for key in self._to_send:
            report = self.ended[key]
            size += 200 + len(report.stdout) + len(report.stderr)
            if ended and size > _MOST_FRAME_BYTES:
                break
            ended.append(report)
        for report in ended:
            key = (report.task, report.attempt)
            del self._to_send[key]
            self._sent_at[key] = now
        started, asked, start = self.started, self.asked, self._start_to_send
        if not (ended or started or asked or start):
            return None
        self.started, self.asked, self._start_to_send = [], [], None
        if started and ended:
            over = {(report.task, report.attempt) for report in ended}
            started = [entry for entry in started if (entry[0], entry[1]) not in over]
        return Frame(started=started, ended=ended, asked=asked, start=start)

    # -- the end of the agent

    @property
    def running_count(self) -> int:
        return sum(1 for state in self.attempts.values() if state != ENDED)

    def stop_tasks(self, keys: Iterable[AttemptKey], grace: float) -> None:
        for key in list(keys):
            if self.attempts.get(key) in (WAITING, RUNNING):
                self.end(key, ("failed", "node_stopped", "geres was stopped on this node"), grace)

    def names(self) -> list[str]:
        return [show_task(task) for (task, _), state in self.attempts.items() if state == RUNNING]
