"""The attempts of a node and what becomes of them: waiting, running, ended and not acknowledged."""

from __future__ import annotations

import heapq
import os
import resource
import signal
from collections.abc import Callable

from geres.agent.attempts import (
    ENDING,
    EXITED,
    GIVEN_BACK,
    RUNNING,
    SIGNALLED,
    UNSTARTED,
    WAITING,
    Attempt,
    End,
    Key,
    Spec,
    Usage,
)
from geres.agent.capture import INLINE_BYTES, File
from geres.agent.family import Children, kill, owner_by_environment, stat_of
from geres.agent.journal import Journal
from geres.agent.lanes import Lanes
from geres.agent.lease import ALONE, PATIENCE_SECONDS, Lease
from geres.agent.process import Unstartable, explain_note, now_us, parse_notes, usage_of
from geres.agent.starting import Starter

_GIVE_BACK_SECONDS = 1.0
_LINGER_SECONDS = 2.0  #: how long an end waits for killed processes of its task to be gone
_MOST_STARTS = 8  #: at a time, before children are looked after again
_NO_MEMORY = (b"memoryerror", b"cannot allocate memory", b"bad_alloc", b"out of memory", b"memory exhausted")
_HELD_BYTES = 4 << 20  #: outputs of ends that nobody has acknowledged; beyond it they stay on disk


class Running:
    """All attempts.  Ends, starts and notices gather in lists until the loop sends them."""

    def __init__(self, starter: Starter, journal: Journal) -> None:
        self.starter = starter
        self.journal = journal
        self.attempts: dict[Key, Attempt] = {}  # waiting, running, ending
        self.ended: dict[Key, End] = {}  # not acknowledged
        self.leaders: dict[int, Attempt] = {}
        self.new_started: dict[Key, int] = {}
        self.new_ended: list[End] = []
        self.is_urgent = False  # a report that somebody may wait for
        self.lanes = Lanes()
        self.lease = Lease()
        self.close_input: Callable[[Attempt], None] = lambda attempt: None
        self._timers: list[tuple[float, int, Attempt]] = []
        self._timer_count = 0
        self._strays: dict[int, Key | None] = {}
        self._lingering: list[Attempt] = []
        self._groups_left: list[str] = []
        self._children = Children()
        self._held_bytes = 0
        self._own_rss_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    # -- orders

    def add(self, order: tuple, spec: Spec | None, now: float) -> None:  # type: ignore[type-arg]
        """Take an attempt: it starts at once, or, sent ahead, in the room of one of its lane."""
        key = (order[0], order[1])
        if key in self.attempts:
            return
        if key in self.ended:
            self.new_ended.append(self.ended[key])
            self.is_urgent = True
            return
        if spec is None:
            self._keep_end((*key, GIVEN_BACK, 0, *[None] * 4, now_us(), *[None] * 5))
            self.is_urgent = True
            return
        attempt = Attempt(order, spec, now)
        self.attempts[key] = attempt
        self.lanes.add(attempt)

    def acknowledge(self, keys: list[Key]) -> None:
        for key in keys:
            self._forget_end(key)

    def recall(self, keys: list[Key]) -> None:
        """Give back what has not started."""
        for key in keys:
            attempt = self.attempts.get(key)
            if attempt is not None and attempt.state is WAITING:
                self._give_back(attempt)

    def recall_all(self) -> None:
        self.recall([key for key, attempt in self.attempts.items() if attempt.state is WAITING])

    def stop(self, key: Key, verdict: tuple[str, str, str], grace: float | None, now: float) -> None:
        """End an attempt: TERM, the grace, KILL.  One that waits is over at once."""
        attempt = self.attempts.get(key)
        if attempt is None:
            return
        if attempt.verdict is None:
            attempt.verdict = verdict
        if attempt.state is WAITING:
            self._finish(attempt, UNSTARTED, 0, None)
        elif attempt.state is RUNNING and not attempt.stop_sent:
            attempt.stop_sent = True
            self.signal(key, signal.SIGTERM)
            self.signal(key, signal.SIGCONT)  # one that is suspended would not hear it
            self._at(now + (attempt.spec.grace_seconds if grace is None else grace), attempt)

    def signal(self, key: Key, number: int) -> bool:
        """Send a signal to the attempt's group.  False where it does not run."""
        attempt = self.attempts.get(key)
        if attempt is None or attempt.state is not RUNNING:
            return False
        try:
            os.killpg(attempt.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def stop_alone(self, now: float) -> None:
        """The lease is about to end: end what must never run at once with a second try of it elsewhere."""
        for attempt in list(self.attempts.values()):
            if not attempt.spec.stops_alone:
                continue
            if attempt.state is WAITING and attempt.arrived < now - PATIENCE_SECONDS:
                self._give_back(attempt)
            elif attempt.state is RUNNING:
                attempt.verdict = attempt.verdict or ALONE
                kill(attempt.pid, group=True)

    def kill_silently(self, keys: list[Key]) -> None:
        """End attempts that the store does not know; nothing is reported."""
        for key in keys:
            self._forget_end(key)
            attempt = self.attempts.get(key)
            if attempt is None:
                continue
            attempt.silent = True
            if attempt.state is WAITING:
                self._give_back(attempt)
            elif attempt.state is RUNNING:
                kill(attempt.pid, group=True)
                self.lanes.leave(attempt)  # to what waits by now: the server does not count it any more

    # -- the loop's steps

    @property
    def has_running(self) -> bool:
        return bool(self.leaders or self._lingering)

    def next_timer(self) -> float | None:
        return self._timers[0][0] if self._timers else None

    def start_some(self, now: float) -> None:
        """Start what is ready, a few at a time.  The journal learns of it first."""
        batch = self.lanes.take_ready(_MOST_STARTS)
        if not batch:
            return
        self.journal.intents.extend([attempt.key for attempt in batch])
        self.journal.flush()
        for attempt in batch:
            self._start(attempt, now)

    def reap(self, now: float) -> None:
        """Wait for the children that have ended, kill what they left, and finish their attempts."""
        over, self._lingering = self._lingering, []
        if not self._children.is_cheap:
            self._kill_groups_of_the_dead()
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            attempt = self.leaders.pop(pid, None)
            if attempt is None:
                self._strays.pop(pid, None)
                continue
            attempt.state = ENDING
            attempt.ended_us = now_us()
            attempt.status = status
            attempt.rusage = usage
            attempt.linger_until = now + _LINGER_SECONDS
            over.append(attempt)
        if not over and not self._strays:
            return
        pids = self._children.read()
        alone = len(pids) == len(self.leaders) + len(self._strays) and self._strays_may_live()
        left = set() if alone else self._sort_out(pids)
        for attempt in over:
            if attempt.key in left and now < attempt.linger_until:
                self._lingering.append(attempt)
            else:
                self._end(attempt, alone)

    def tick(self, now: float) -> None:
        """What is due about once a second."""
        self._own_rss_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._groups_left = [folder for folder in self._groups_left if not self.starter.groups.remove(folder)]
        self.starter.groups.close()
        self._give_back_late(now)
        self.starter.come_home()

    def outgrown(self, now: float) -> list[tuple[int, int, int, int]]:
        """(task, attempt, bytes of stdout, bytes of stderr) of those that wrote on beyond what is kept."""
        large = []
        size = self.starter.captures.size
        for attempt in self.leaders.values():
            if now - attempt.started < 0.5 or not attempt.spec.keep_output:
                continue
            out, err = size(attempt.out), size(attempt.err)
            if max(out, err) > attempt.spec.output_limit_bytes and out + err != attempt.reported_bytes:
                attempt.reported_bytes = out + err
                large.append((*attempt.key, out, err))
        return large

    def allowances(self, now: float) -> list[tuple[int, int, int, bytes, int]]:
        """(task, attempt, allowance, folder, bytes of output on disk) of those with a disk allowance."""
        captures = self.starter.captures
        return [
            (
                *attempt.key,
                attempt.spec.disk_bytes,
                attempt.slot.path,
                captures.disk_bytes(attempt.out) + captures.disk_bytes(attempt.err),
            )
            for attempt in self.leaders.values()
            if attempt.spec.disk_bytes and attempt.slot is not None and not attempt.stop_sent
        ]

    def fire_timers(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            _, _, attempt = heapq.heappop(self._timers)
            if attempt.state is not RUNNING:
                continue
            if attempt.stop_sent:
                kill(attempt.pid, group=True)
            else:
                limit = attempt.spec.time_limit_seconds
                self.stop(
                    attempt.key, ("failed", "timeout", f"ran longer than its limit of {limit:g} s"), None, now
                )

    def compact_journal(self) -> None:
        started = [(*a.key, a.pid, a.started_us) for a in self.attempts.values() if a.state is not WAITING]
        self.journal.rewrite([], started, list(self.ended.values()))

    # -- within

    def _at(self, when: float, attempt: Attempt) -> None:
        self._timer_count += 1
        if len(self._timers) > 64 + 4 * len(self.leaders):  # most are of attempts that have long ended
            self._timers = [timer for timer in self._timers if timer[2].state is RUNNING]
            heapq.heapify(self._timers)
        heapq.heappush(self._timers, (when, self._timer_count, attempt))

    def _start(self, attempt: Attempt, now: float) -> None:
        if attempt.spec.stops_alone and self.lease.has_ended:  # the order came late, or we were frozen
            self.lease.waiting.append(attempt)
            return
        try:
            self.starter.start(attempt, now)
        except Unstartable as error:
            attempt.started_us = attempt.ended_us = now_us()
            if error.reason == "disk_full" and attempt.verdict is None:  # the node's fault: others have room
                attempt.verdict = ("given_back", error.reason, error.message)
                self._give_back(attempt)
                return
            if attempt.verdict is None:
                attempt.verdict = ("failed", error.reason, error.message)
            self._finish(attempt, UNSTARTED, error.code, None)
            return
        self.leaders[attempt.pid] = attempt
        self.new_started[attempt.key] = attempt.started_us
        self.journal.started.append((*attempt.key, attempt.pid, attempt.started_us))
        if attempt.spec.time_limit_seconds is not None:
            self._at(now + attempt.spec.time_limit_seconds, attempt)
        if attempt.spec.stdin:
            self.is_urgent = True

    def _kill_groups_of_the_dead(self) -> None:
        """Where children cannot be listed: kill each group while its dead leader holds the number."""
        seen = set()
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if info is None or info.si_pid in seen:
                return
            seen.add(info.si_pid)
            if info.si_pid in self.leaders:
                kill(info.si_pid, group=True)

    def _strays_may_live(self) -> bool:
        """True where each process that changed its parent belongs to an attempt that still runs."""
        for key in self._strays.values():
            attempt = self.attempts.get(key) if key is not None else None
            if attempt is None or attempt.state is not RUNNING:
                return False
        return True

    def _sort_out(self, pids: list[bytes]) -> set[Key]:
        """Whose the children are that we did not start; those of attempts that are over are killed.

        Returns the attempts of which something is still there.
        """
        present = {int(pid) for pid in pids}
        sessions = {a.pid: a.key for a in self.attempts.values() if a.pid}
        strays = {pid: self._strays.get(pid) for pid in present if pid not in self.leaders}
        left = set()
        for pid, key in strays.items():
            if key is None:
                key = strays[pid] = self._owner(pid, sessions)
            attempt = self.attempts.get(key) if key is not None else None
            if attempt is not None and attempt.state is RUNNING:
                continue
            if attempt is None and key is None and self.leaders:
                continue  # of one of those that run; the end of the last one ends it too
            status = stat_of(pid)
            kill(pid)
            if status is not None and status[2] != os.getpgrp():
                kill(status[2], group=True)
            if key is not None:
                left.add(key)
        self._strays = strays
        return left

    def _owner(self, pid: int, sessions: dict[int, Key]) -> Key | None:
        status = stat_of(pid)
        if status is not None and status[3] in sessions:
            return sessions[status[3]]
        return owner_by_environment(pid, self.starter.folders.tag)

    def _end(self, attempt: Attempt, alone: bool) -> None:
        """Report an attempt whose process is gone.  `alone`: nobody has its files open any more."""
        code = os.waitstatus_to_exitcode(attempt.status)
        groups = self.starter.groups
        usage = usage_of(attempt.rusage, self._own_rss_kb)
        if attempt.group is not None:
            if attempt.verdict is None and code != 0 and groups.was_over(attempt.group):
                limit = attempt.spec.memory_bytes
                attempt.verdict = (
                    "failed",
                    "out_of_memory",
                    f"used more than its limit of {limit >> 10} KiB",
                )
            peak = groups.peak_bytes(attempt.group)
            usage = (*usage[:2], peak or usage[2], *usage[3:])
            if not groups.remove(attempt.group):
                self._groups_left.append(attempt.group)
        elif attempt.spec.memory_bytes and code != 0 and self._says_no_memory(attempt):
            limit = attempt.spec.memory_bytes
            message = f"was refused memory beyond its limit of {limit >> 10} KiB"
            attempt.verdict = attempt.verdict or ("failed", "out_of_memory", message)
        failure = self._read_notes(attempt, alone)
        if failure is not None and attempt.verdict is None:
            attempt.verdict = ("failed", failure.reason, failure.message)
            self._finish(attempt, UNSTARTED, failure.code, usage, alone)
        elif code < 0:
            self._finish(attempt, SIGNALLED, -code, usage, alone)
        else:
            self._finish(attempt, EXITED, code, usage, alone)

    def _says_no_memory(self, attempt: Attempt) -> bool:
        """With a limit of the address space alone, a program is refused memory and ends by itself: we go by
        what it wrote."""
        if attempt.err is None:
            return False
        captures = self.starter.captures
        tail = captures.tail(attempt.err, captures.size(attempt.err)).lower()
        return any(words in tail for words in _NO_MEMORY)

    def named_files(self, attempt: Attempt) -> tuple[list[tuple[str, bytes, int, int | None]], bool]:
        """What the launcher has opened so far, and whether that is all."""
        if attempt.notes is None or not attempt.named:
            return [], True
        captures = self.starter.captures
        attempt.begins, _ = parse_notes(captures.tail(attempt.notes, captures.size(attempt.notes)))
        found = attempt.named_in(None)
        return found, len(found) == len(attempt.named)

    def _read_notes(self, attempt: Attempt, alone: bool) -> Unstartable | None:
        """What kept the launcher from running the command; None where it did run."""
        if attempt.notes is None:
            return None
        captures = self.starter.captures
        size = captures.size(attempt.notes)
        begins, failed = parse_notes(captures.tail(attempt.notes, size))
        # another account may have handed it to somebody whom we do not see: nobody else gets it
        captures.give_back(attempt.notes, size, alone and attempt.spec.account is None)
        attempt.notes = None
        if not failed:
            attempt.begins = begins
            return None
        return explain_note(failed, attempt.argv, attempt.spec.cwd, attempt.stdout, attempt.stderr)

    def _finish(
        self, attempt: Attempt, kind: str, code: int, usage: Usage | None, alone: bool = True
    ) -> None:
        """The attempt is over: its room goes on, its end is kept until it is acknowledged."""
        del self.attempts[attempt.key]
        attempt.state = ENDING
        self.close_input(attempt)
        started = attempt.slot is not None
        stdout, stderr, folder = self._settle(attempt, alone) if started else (None, None, None)
        if attempt.silent:
            self.journal.forgotten.append(attempt.key)
            self.new_started.pop(attempt.key, None)
            self.lanes.leave(attempt)
            return
        outcome, reason, message = attempt.verdict or (None, None, None)
        end = (
            *attempt.key,
            kind,
            code,
            outcome,
            reason,
            message,
            attempt.started_us if started else None,
            attempt.ended_us if usage is not None else now_us(),
            usage,
            stdout,
            stderr,
            folder,
            attempt.spec.memo if folder is not None else None,
            attempt.named_in(None if folder is None else os.fsencode(folder)),
        )
        self._keep_end(end)
        self.new_started.pop(attempt.key, None)
        passed = self.lanes.leave(attempt)
        if kind is GIVEN_BACK or not passed:
            self.is_urgent = True

    def _keep_end(self, end: End) -> None:
        self.ended[end[0], end[1]] = end
        self._held_bytes += _held(end)
        self.journal.ended.append(end)
        self.new_ended.append(end)

    def _forget_end(self, key: Key) -> None:
        end = self.ended.pop(key, None)
        if end is not None:
            self._held_bytes -= _held(end)
            self.journal.forgotten.append(key)

    def _give_back(self, attempt: Attempt) -> None:
        self._finish(attempt, GIVEN_BACK, 0, None)

    def _give_back_late(self, now: float) -> None:
        for attempt in self.lanes.late(now - _GIVE_BACK_SECONDS):
            self._give_back(attempt)

    def _settle(self, attempt: Attempt, alone: bool) -> tuple:  # type: ignore[type-arg]
        """Put away its output and its folder.  Returns stdout, stderr and the folder of an end."""
        assert attempt.slot is not None
        again = alone and not attempt.watched and attempt.spec.account is None
        keep: list[tuple[bytes, File, int]] = []
        stdout = self._look_at(attempt.out, b"stdout", keep)
        stderr = self._look_at(attempt.err, b"stderr", keep) if attempt.err is not attempt.out else None
        captures = self.starter.captures
        puts = [(name, lambda path, file=file: captures.keep(file, path)) for name, file, _ in keep]
        folder = None
        try:
            folder = self.starter.folders.settle(attempt.slot, *attempt.key, attempt.started_us, puts)
        except OSError as error:
            if attempt.verdict is None:
                attempt.verdict = ("failed", "staging", f"its output could not be kept: {error.strerror}")
            keep = []
        if folder is not None:
            for name, _, size in keep:
                path = os.fsdecode(folder + b"/out/" + name)
                if name == b"stdout" and stdout is not None:
                    stdout = (size, stdout[1], path)
                elif stderr is not None:
                    stderr = (size, stderr[1], path)
        kept = {id(file) for _, file, _ in keep}
        for file, seen in ((attempt.out, stdout), (attempt.err, stderr)):
            if file is not None and seen is not None:
                captures.give_back(file, seen[0], again and id(file) not in kept)
        return stdout, stderr, None if folder is None else os.fsdecode(folder)

    def _look_at(self, file: File | None, name: bytes, keep: list) -> tuple | None:  # type: ignore[type-arg]
        if file is None:
            return None
        captures = self.starter.captures
        size = captures.size(file)
        if not size:
            return (0, b"", None)
        if file.own and (size > INLINE_BYTES or self._held_bytes > _HELD_BYTES):
            keep.append((name, file, size))
        return (size, captures.tail(file, size), None)


def _held(end: End) -> int:
    return sum(len(stream[1]) for stream in end[10:12] if stream is not None)
