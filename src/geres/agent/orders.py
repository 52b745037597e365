"""What a server assigns, in the words of the supervisor: argv, environment, folders, limits."""

from __future__ import annotations

import os
import shlex
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geres.agent.accounts import Account, Accounts, own_account
from geres.agent.local import Localities
from geres.config import AgentConfig
from geres.model.ids import job_of
from geres.model.placeholders import replace_all
from geres.model.tasks import TaskSpec
from geres.model.wire import Assign, Spec

_MOST_KEYS = 1000
_FIRST_LOOK_SECONDS = 0.05
_FALLBACK_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Place:
    """The facts of this node that tasks are told."""

    node: str
    url: str
    home: Path
    folder: Path  #: of the agent
    is_up_home: bool = True  #: the home is that of a `geres up`
    account: dict[str, str] = field(default_factory=dict)
    fingerprint: str = ""  #: of the server's certificate, where it is pinned
    on_disconnect: str = "run"  #: what becomes of tasks that do not say

    @property
    def shared(self) -> Path:
        return self.folder / "shared"

    def start_environment(self) -> dict[str, str]:
        """What the start task of the pool gets, beside its own."""
        return self.account | {
            "GERES_NODE_ID": self.node,
            "GERES_NODE_SHARED_DIR": str(self.shared),
            "GERES_URL": self.url,
        }

    def shared_for(self, account: Account | None) -> Path:
        """The folder that the tasks of an account share; made where it is not there yet."""
        if account is None:
            return self.shared
        path = self.shared / str(account.uid)
        path.mkdir(mode=0o700, exist_ok=True)
        if path.stat().st_uid != account.uid:
            os.chown(path, account.uid, account.gid)
        return path


def account_environment() -> dict[str, str]:
    """HOME, USER, LOGNAME, SHELL, PATH, LANG and TZ of the account that we run as."""
    found = {**_of_account(own_account()), "PATH": os.environ.get("PATH", _FALLBACK_PATH)}
    found |= {name: os.environ[name] for name in ("LANG", "TZ") if name in os.environ}
    return found


def _of_account(account: Account) -> dict[str, str]:
    return {
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        "SHELL": account.shell,
    }


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _meta_name(key: str) -> str:
    return "GERES_META_" + "".join(c if c.isascii() and c.isalnum() else "_" for c in key).upper()


class Orders:
    """Turns assignments into starts.  The supervisor is told a specification once, then its key."""

    def __init__(
        self,
        config: AgentConfig,
        place: Place,
        localities: Localities,
        accounts: Accounts,
        send: Callable[[tuple[Any, ...]], None],
    ) -> None:
        self._config = config
        self._place = place
        self._local = localities
        self._accounts = accounts
        self._send = send
        self._specs: dict[int, Spec] = {}
        self._keys: OrderedDict[tuple[Any, ...], int] = OrderedDict()
        self._next_key = 1
        self._dropped: list[int] = []
        self._wrap = shlex.split(config.wrap)

    @property
    def on_disconnect(self) -> str:
        return self._place.on_disconnect

    def forget_server(self) -> None:
        """A new connection: specifications are sent anew."""
        self._specs.clear()

    def forget_supervisor(self) -> None:
        """A new supervisor, or a new connection to it: it has no specifications."""
        self._keys.clear()
        self._dropped.clear()

    def learn(self, spec: Spec) -> None:
        self._specs[spec.spec_id] = spec

    def spec_of(self, assign: Assign) -> TaskSpec | None:
        known = self._specs.get(assign.spec_id)
        return None if known is None else known.spec

    def start(self, assign: Assign) -> tuple[Any, ...]:
        """The supervisor's order for one attempt, its specification defined before.

        Raises KeyError for a specification that the server did not send, Refused for an account that it may
        not have here, Slow where that is not known yet.
        """
        known = self._specs[assign.spec_id]
        spec = known.spec
        account = self._accounts.of(assign.submitted_by, spec.user, spec.group)
        argv = assign.argv
        extra: dict[str, Any] = {}
        env: dict[bytes, bytes] = {}
        if assign.is_array:
            argv = [replace_all(word, assign.task, assign.item) for word in argv or _argv(spec)]
            env[b"GERES_ARRAY_INDEX"] = b"%d" % (assign.task & 0xFFFFFFFF)
            for stream, path in (("stdout", spec.stdout), ("stderr", spec.stderr)):
                if path is not None and "{" in path:
                    extra[stream] = _bytes(replace_all(path, assign.task, assign.item))
        if assign.item is not None:
            env[b"GERES_ITEM"] = _bytes(assign.item)
        if assign.retry_count:
            env[b"GERES_RETRY_COUNT"] = b"%d" % assign.retry_count
        if assign.gpu_ids:
            ids = ",".join(map(str, assign.gpu_ids)).encode()
            env[b"GERES_GPUS"] = env[b"CUDA_VISIBLE_DEVICES"] = ids
            extra["gpu_ids"] = assign.gpu_ids
        if assign.token and "GERES_TOKEN" not in spec.env:
            env[b"GERES_TOKEN"] = assign.token.encode()
        if env:
            extra["env"] = env
        words = None if argv is None else [_bytes(word) for word in (*self._wrap, *argv)]
        key = self._key(assign, known, account)
        return (assign.task, assign.attempt, key, assign.lane, assign.ahead, words, extra or None)

    def reconfigure(self, config: AgentConfig) -> None:
        """Other settings from now on; what was started, and what waits, keeps those that it has."""
        self._config, self._wrap = config, shlex.split(config.wrap)
        self._dropped += self._keys.values()
        self._keys.clear()

    def drop(self) -> None:
        """Let the supervisor forget what is no longer remembered here; the starts that use it are sent."""
        if self._dropped:
            self._send(("drop", self._dropped))
            self._dropped = []

    def _key(self, assign: Assign, known: Spec, account: Account | None) -> int:
        spec = known.spec
        direct = account is None and self._is_direct(spec, assign)
        name = (assign.spec_id, job_of(assign.task), assign.job_name, assign.submitted_by, direct, account)
        key = self._keys.get(name)
        if key is not None:
            self._keys.move_to_end(name)
            return key
        key = self._keys[name] = self._next_key
        self._next_key += 1
        self._send(("spec", key, self._fields(assign, known, direct, account)))
        if len(self._keys) > _MOST_KEYS:
            _, oldest = self._keys.popitem(last=False)
            self._dropped.append(oldest)
        return key

    def _is_direct(self, spec: TaskSpec, assign: Assign) -> bool:
        """True where nothing that a start touches can hang the supervisor."""
        paths = [] if spec.cwd is None else [spec.cwd]
        path = spec.env.get("PATH") or self._place.account["PATH"]
        paths += [folder for folder in path.split(":") if folder.startswith("/")]
        words = assign.argv or spec.command or []
        named = (words[0] if words else None, spec.stdout, spec.stderr)
        paths += [os.path.dirname(name) for name in named if name is not None and name.startswith("/")]
        # Output that the launcher opens is not seen by the supervisor, so `logs` would miss it.
        patience = 0.0 if spec.stdout is None and spec.stderr is None else _FIRST_LOOK_SECONDS
        verdicts = [self._local.is_local(path, patience) for path in paths]  # all, so that all get known
        return all(verdicts)

    def _fields(self, assign: Assign, known: Spec, direct: bool, account: Account | None) -> dict[str, Any]:
        spec, config = known.spec, self._config
        output_limit = min(spec.output_limit_bytes, config.output_limit_bytes)
        fields = {
            "argv": [_bytes(word) for word in (*self._wrap, *_argv(spec))],
            "env": self._environment(assign, known, account),
            "account": None if account is None else (account.uid, account.gid, account.groups),
            "cwd": None if spec.cwd is None else _bytes(spec.cwd),
            "direct": direct,
            "umask": spec.umask,
            "memory_bytes": int(spec.memory_bytes * config.limit_factor),
            "stdin": spec.stdin,
            "stdout": None if spec.stdout is None else _bytes(spec.stdout),
            "stderr": None if spec.stderr is None else _bytes(spec.stderr),
            "append": spec.append,
            "merge": spec.merge,
            "keep_output": spec.keep_output,
            "output_limit_bytes": output_limit,
            "disk_bytes": spec.disk_bytes or config.disk_bytes,
            "stops_alone": (spec.on_disconnect or self.on_disconnect) == "stop",
            "time_limit_seconds": spec.time_limit_seconds,
            "grace_seconds": spec.grace_seconds,
            "memo": (output_limit, spec.retain_seconds),
        }
        return {name: value for name, value in fields.items() if value is not None}

    def _environment(self, assign: Assign, known: Spec, account: Account | None) -> dict[bytes, bytes]:
        spec, place = known.spec, self._place
        env = dict(place.account)
        if account is not None:
            env |= _of_account(account)
        env |= {
            "GERES_JOB_ID": str(job_of(assign.task)),
            "GERES_JOB_NAME": assign.job_name,
            "GERES_NODE_ID": place.node,
            "GERES_NODE_SHARED_DIR": str(place.shared_for(account)),
            "GERES_CPUS": f"{spec.cpus:g}",
            "GERES_MEMORY_BYTES": str(spec.memory_bytes),
            "GERES_URL": place.url,
            **({"GERES_FINGERPRINT": place.fingerprint} if place.fingerprint else {}),
            "GERES_SUBMITTED_BY": assign.submitted_by,
            "GERES_RETRY_COUNT": "0",
        }
        if place.is_up_home and account is None:  # others may not look into it
            env["GERES_HOME"] = str(place.home)
        for metas in (known.job_meta, spec.meta):
            env |= {_meta_name(key): value for key, value in metas.items()}
        env |= spec.env
        return {_bytes(key): _bytes(value) for key, value in env.items() if _is_possible(key, value)}


def _argv(spec: TaskSpec) -> list[str]:
    if spec.shell is not None:
        return ["/bin/sh", "-c", spec.shell]
    return spec.command or []


def _is_possible(key: str, value: str) -> bool:
    return bool(key) and "=" not in key and "\0" not in key and "\0" not in value
