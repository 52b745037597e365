"""Which account of this machine a task runs as: that of its submitter, or the one that the settings name."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

_FRESH_SECONDS = 60.0
_ABSENT_SECONDS = 5.0  #: so soon a new account is seen
_PATIENCE_SECONDS = 2.0
_MOST_KNOWN = 10_000
_LOOKERS = 4


class Account(NamedTuple):
    """An account as the system knows it."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"
    shell: str = "/bin/sh"


class Refused(Exception):
    """The task does not run on this node as the account that it wants; the sentence says why."""


class Slow(Exception):
    """The system's list of accounts has not answered yet."""


def decide(
    subject: str,
    user: str | None,
    group: str | None,
    accounts: Mapping[str, str],
    own: Account,
    find: Callable[[str], Account | None],
    find_group: Callable[[str], int | None],
) -> Account | None:
    """The account for a task of `subject` that asks for `user` and `group`; None for our own, unchanged.

    `accounts` has subjects, or `*`, and the names of the accounts that they may use, the first of which is
    taken where none is asked for; without an entry it is the one of the same name.  Raises Refused.
    """
    listed = (accounts.get(subject) or accounts.get("*") or "").split()
    names = listed or [
        subject
    ]  # as it is: who is called `ann lee` is not ann, and `1001` is no account's number
    if own.uid != 0:
        wanted = user or names[0]
        if wanted not in names or wanted not in ((own.name, str(own.uid)) if listed else (own.name,)):
            raise Refused(
                f"this node runs tasks of its own account {own.name} only, not of {wanted!r}: "
                "start its agent as root, or with --trust-submitters"
            )
        if group is not None and find_group(group) != own.gid:
            raise Refused(f"group: this node cannot change to {group!r}, for its agent is not root")
        return None
    if not listed and subject.isdigit():
        raise Refused(f"the user {subject} has no account's name: map it in agent.accounts of the node")
    account = _existing(names[0], subject, find)
    if account.uid == 0 and not listed:
        raise Refused(
            "tasks do not run as root here: submit as another user, or map it in agent.accounts of the node"
        )
    may_all = account.uid == 0
    if user is not None and user != account.name:
        account = _existing(user, subject, find)
        if not may_all and account.name not in names:
            raise Refused(
                f"user: {subject} may not run tasks as {user} here; agent.accounts of the node says who may"
            )
    if group is not None:
        gid = find_group(group)
        if gid is None:
            raise Refused(f"group: there is no group {group!r} on this node")
        if not may_all and gid not in (account.gid, *account.groups):
            raise Refused(f"group: {account.name} is not in the group {group} on this node")
        return account._replace(gid=gid)
    return None if account.uid == 0 and user is None else account


def _existing(name: str, subject: str, find: Callable[[str], Account | None]) -> Account:
    account = find(name)
    if account is None:
        whose = "" if name == subject else f", which tasks of {subject} should run as"
        raise Refused(
            f"there is no account {name!r} on this node{whose}: make it, or map {subject} in agent.accounts"
        )
    return account


class Accounts:
    """Decides for each task, and remembers what the system said.

    Asking it may hang where accounts lie on a network, so threads ask.
    """

    def __init__(
        self,
        accounts: Mapping[str, str],
        own: Account | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._accounts = accounts
        self.own = own or own_account()
        self._clock = clock
        self._known: dict[tuple[str, str], tuple[Account | int | None, float]] = {}
        self._asked: dict[tuple[str, str], Future[None]] = {}
        self._lookers = ThreadPoolExecutor(_LOOKERS, thread_name_prefix="accounts")
        #: why no task can run as another account here; empty where it can
        self.barred = ""

    @property
    def may_switch(self) -> bool:
        """True where tasks may run as other accounts than ours."""
        return self.own.uid == 0 and self._accounts != {"*": self.own.name}

    def of(self, subject: str, user: str | None = None, group: str | None = None) -> Account | None:
        """As `decide`.  Raises Refused, or Slow where the answer is not there yet."""
        account = decide(subject, user, group, self._accounts, self.own, self._find_account, self._find_group)
        if account is not None and self.barred:
            raise Refused(f"no task can run as {account.name} on this node: {self.barred}")
        return account

    def close(self) -> None:
        self._lookers.shutdown(wait=False, cancel_futures=True)

    def _find_account(self, name: str) -> Account | None:
        if name == self.own.name:
            return self.own
        found = self._look(("account", name))
        assert not isinstance(found, int)
        return found

    def _find_group(self, name: str) -> int | None:
        found = self._look(("group", name))
        assert not isinstance(found, Account)
        return found

    def _look(self, key: tuple[str, str]) -> Account | int | None:
        """What the system says; what was known for long is asked anew beside.  Raises Slow."""
        known, now = self._known.get(key), self._clock()
        if known is not None:
            age = now - known[1]
            if age < (_ABSENT_SECONDS if known[0] is None else _FRESH_SECONDS):
                return known[0]
        asking = self._asked.get(key)
        if asking is None:
            asking = self._asked[key] = self._lookers.submit(self._ask, key)
        if known is None or known[0] is None:
            wait([asking], _PATIENCE_SECONDS)
            known = self._known.get(key)
        if known is None:
            raise Slow(f"the {key[0]} {key[1]} is still being looked up")
        return known[0]

    def _ask(self, key: tuple[str, str]) -> None:
        try:
            if len(self._known) > _MOST_KNOWN:
                self._known.clear()
            found = account_of(key[1]) if key[0] == "account" else group_of(key[1])
            self._known[key] = (found, self._clock())
        finally:
            self._asked.pop(key, None)


def own_account() -> Account:
    """The account that this process runs as."""
    return account_of(str(os.getuid())) or Account(str(os.getuid()), os.getuid(), os.getgid())


def account_of(name: str) -> Account | None:
    """The account of a name or a number; None where there is none.  May hang."""
    try:
        entry = pwd.getpwuid(int(name)) if name.isascii() and name.isdigit() else pwd.getpwnam(name)
    except (KeyError, OverflowError, ValueError):
        return None
    groups = tuple(sorted({*os.getgrouplist(entry.pw_name, entry.pw_gid)}))
    home, shell = entry.pw_dir or "/", entry.pw_shell or "/bin/sh"
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, groups, home, shell)


def group_of(name: str) -> int | None:
    """The number of a group; None where there is none.  May hang."""
    try:
        return int(name) if name.isascii() and name.isdigit() else grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        return None


def let_pass(home: Path, folder: Path, ours: list[Path]) -> str:
    """Let other accounts pass through to the folders of their tasks, and see nothing on the way.

    `ours` is what geres has put into the home.  Where others could then see something else in it, its rights
    are left as they are.  Returns why they cannot pass, in words; empty where they can.
    """
    way = (folder, folder / "tasks", folder / "shared")
    for path in {*ours, *folder.iterdir()}.difference(way):
        mode = path.lstat().st_mode
        if mode & 0o077 and not stat.S_ISLNK(mode):
            path.chmod(stat.S_IMODE(mode) & 0o700)
    others = {*home.iterdir()}.difference(ours, way)
    if not any(path.lstat().st_mode & 0o077 for path in others):
        home.chmod(0o711)
    for path in way:
        path.chmod(0o711)
    for path in (folder, *folder.parents):
        if not path.stat().st_mode & 0o001:
            return f"they cannot enter {path}; give the agent a --home like /var/lib/geres"
    return ""
