"""Brings an attempt from waiting to a running process, for the supervisor; or says why it cannot start."""

from __future__ import annotations

import os

from geres.agent.attempts import RUNNING, Attempt
from geres.agent.capture import Captures, File
from geres.agent.cgroups import MemoryGroups
from geres.agent.folders import Folders, Slot
from geres.agent.process import (
    LAUNCHER,
    OpenFiles,
    Programs,
    Unstartable,
    bad_path,
    no_cwd,
    now_us,
    spawn_as,
)

_NO_SPACE = (28, 122)  # ENOSPC, EDQUOT


class Starter:
    """Holds what attempts are given: folders, output files, memory groups."""

    def __init__(self, folders: Folders, captures: Captures, groups: MemoryGroups) -> None:
        self.folders = folders
        self.captures = captures
        self.groups = groups
        self._programs = Programs()
        self._open_files = OpenFiles()
        self._away = False

    def start(self, attempt: Attempt, now: float) -> None:
        """Start its process.  Raises Unstartable; what it was given then is still in `attempt`."""
        try:
            self._give(attempt)
        except OSError as error:
            reason = "disk_full" if error.errno in _NO_SPACE else "internal"
            raise Unstartable(
                reason, f"the node could not make the task's folder: {error.strerror}", 125
            ) from None
        spec = attempt.spec
        env = self._environment(attempt)
        try:
            if spec.direct and not spec.memory_bytes and spec.account is None:
                self._start_directly(attempt, env, now)
            else:
                self._start_by_launcher(attempt, env)
        except OSError as error:
            reason = "disk_full" if error.errno in _NO_SPACE else "internal"
            raise Unstartable(reason, f"the node could not start it: {error.strerror}", 125) from None
        finally:
            if attempt.stdin_theirs >= 0:
                os.close(attempt.stdin_theirs)
                attempt.stdin_theirs = -1
        attempt.started = now
        attempt.state = RUNNING

    def come_home(self) -> None:
        """Leave the folder of the last task, so that it can be removed or unmounted."""
        if self._away:
            os.chdir("/")
            self._away = False

    def _give(self, attempt: Attempt) -> None:
        spec = attempt.spec
        owner = None if spec.account is None else spec.account[:2]
        attempt.slot = self.folders.take(owner)
        if spec.keep_output:
            if attempt.stdout is None:
                attempt.out = self.captures.take(owner)
            if not spec.merge and attempt.stderr is None:
                attempt.err = self.captures.take(owner)

    def _environment(self, attempt: Attempt) -> dict[bytes, bytes]:
        slot = slot_of(attempt)
        task, number = attempt.key
        env = attempt.spec.env.copy()
        env[b"GERES_TASK_ID"] = b"%d.%d" % (task >> 32, task & 0xFFFFFFFF)
        env[b"GERES_TASK_NUMBER"] = b"%d" % (task & 0xFFFFFFFF)
        env[b"GERES_ATTEMPT"] = b"%d" % number
        if attempt.env is not None:
            env.update(attempt.env)
        env[b"GERES_TASK_DIR"] = slot.task_dir
        if b"TMPDIR" not in env:
            env[b"TMPDIR"] = slot.tmp
        return env

    def _start_directly(self, attempt: Attempt, env: dict[bytes, bytes], now: float) -> None:
        spec = attempt.spec
        self._enter(attempt)
        descriptors = self._descriptors(attempt)
        name = attempt.argv[0]
        program = name if b"/" in name else self._programs.find(name, env.get(b"PATH", spec.path), now)
        before = os.umask(spec.umask) if spec.umask is not None else None
        try:
            attempt.started_us = now_us()
            attempt.pid = self._open_files.spawn(program, attempt.argv, env, descriptors)
        except Unstartable:
            self._programs.forget()
            raise
        finally:
            if before is not None:
                os.umask(before)

    def _start_by_launcher(self, attempt: Attempt, env: dict[bytes, bytes]) -> None:
        spec = attempt.spec
        cwd = out = err = b""
        if spec.direct and spec.account is None:
            self._enter(attempt)
        else:
            self.come_home()
            cwd = slot_of(attempt).wd if spec.cwd is None else spec.cwd
            out, err = attempt.stdout or b"", (attempt.stderr or b"") if not spec.merge else b""
            attempt.named = {"o": os.path.join(cwd, out)} if out else {}
            if err and err != out:
                attempt.named["e"] = os.path.join(cwd, err)
        procs, limit_kb = self._limit(attempt)
        descriptors = self._descriptors(attempt)
        attempt.notes = self.captures.take()
        descriptors.append((attempt.notes.fd, 3))
        arguments = [
            procs,
            limit_kb,
            b"" if spec.umask is None else b"%o" % spec.umask,
            cwd,
            out,
            err,
            b"1" if spec.append else b"",
            b"1" if spec.merge and out else b"",
        ]
        attempt.started_us = now_us()
        argv = [b"sh", b"-c", LAUNCHER, b"geres", *arguments, *attempt.argv]
        if spec.account is None:
            attempt.pid = self._open_files.spawn(b"/bin/sh", argv, env, descriptors)
        else:
            argv[4] = b""  # the group is joined before the account changes
            soft = self._open_files.soft
            attempt.pid = spawn_as(spec.account, argv, env, descriptors, procs, soft)

    def _limit(self, attempt: Attempt) -> tuple[bytes, bytes]:
        """The file to join the attempt's memory group by, or else the most address space in KiB."""
        limit = attempt.spec.memory_bytes
        if not limit:
            return b"", b""
        attempt.group = self.groups.make(".".join(map(str, attempt.key)), limit)
        if attempt.group is not None:
            return os.fsencode(attempt.group + "/cgroup.procs"), b""
        return b"", b"%d" % max(limit >> 10, 1)

    def _enter(self, attempt: Attempt) -> None:
        spec = attempt.spec
        cwd = slot_of(attempt).wd if spec.cwd is None else spec.cwd
        self._away = True
        try:
            os.chdir(cwd)
        except OSError as error:
            raise no_cwd(cwd, os.strerror(error.errno or 0)) from None

    def _descriptors(self, attempt: Attempt) -> list[tuple[int, int]]:
        """What goes where; with a direct specification the paths that the user named are opened here."""
        null = self.captures.null
        spec = attempt.spec
        if spec.direct and spec.account is None and attempt.stdout is not None:
            attempt.out = self._open(attempt, "stdout", attempt.stdout)
        out = attempt.out
        out_fd = null if out is None else out.fd
        if spec.merge:
            err_fd = out_fd
        else:
            if spec.direct and spec.account is None and attempt.stderr is not None:
                if out is not None and attempt.stderr == attempt.stdout:
                    attempt.err = out
                else:
                    attempt.err = self._open(attempt, "stderr", attempt.stderr)
            err_fd = null if attempt.err is None else attempt.err.fd
        descriptors = [(out_fd, 1), (err_fd, 2)]
        if spec.stdin:
            attempt.stdin_theirs, attempt.stdin_fd = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(attempt.stdin_fd, False)
            if spec.account is not None:
                os.fchown(attempt.stdin_theirs, *spec.account[:2])  # for those who open /dev/stdin
            descriptors.append((attempt.stdin_theirs, 0))
        return descriptors

    def _open(self, attempt: Attempt, stream: str, path: bytes) -> File:
        try:
            return self.captures.open_path(path, attempt.spec.append, attempt.spec.umask)
        except OSError as error:
            folder = os.path.dirname(os.path.abspath(path))
            why = "" if not os.path.isdir(folder) else os.strerror(error.errno or 0)
            raise bad_path(stream, path, why) from None


def slot_of(attempt: Attempt) -> Slot:
    assert attempt.slot is not None
    return attempt.slot
