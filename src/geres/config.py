"""Options: their units, defaults and checks.  Reading never fails; `Config.check` says all that is wrong.

Sources, which config_sources.py reads, weakest first: the defaults here, /etc/geres/geres.toml, geres.toml in
the user's configuration folder, the nearest geres.toml or .geres.toml from the working directory upwards, the
environment (`GERES_SERVER__LEASE_SECONDS=30`), flags.  A file may say `include = ["other.toml",
"conf.d/*.toml"]`; what it says itself wins over what it includes.  In a value,
`${env:NAME}` is an environment variable, `${file:PATH}` the text of a file, `${server.port}` another setting,
and `$${` a plain `${`.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import fields

from geres.config_sources import Sources, nearest_file, users_file, working_folder
from geres.errors import Invalid
from geres.model.identity import provider_of
from geres.model.ids import is_name, may_name_node
from geres.model.units import parse_duration

DEFAULT_PORT = 4470
#: Instead of files in `server.certificate`.
SELF_MADE, NO_TLS = "self-made", "none"
_SYSTEM_FILE = Path("/etc/geres/geres.toml")
_LEVELS = ("debug", "info", "warning", "error")


class ServerConfig(Struct, frozen=True):
    """Options of `geres server`."""

    #: Address to listen on.
    host: str = "127.0.0.1"
    #: Port to listen on.  `geres up` takes the next free one where it was not asked for one.
    port: int = DEFAULT_PORT
    #: PEM files: the certificate with its chain, and its key where another file holds it.  `self-made` for
    #: one that clients pin by its fingerprint; `none` for no TLS: tokens and tasks travel readable.  Empty:
    #: self-made where other machines reach the address, none on loopback.
    certificate: tuple[str, ...] = ()
    #: The address by which other machines reach this server, where it is not the host's name and the port.
    url: str = ""
    #: `sqlite:PATH` or `postgresql://...`; empty for geres.db in GERES_HOME.
    store: str = ""
    #: A node that is silent for so long is lost.  Longer bears worse networks, shorter reruns sooner.
    lease_seconds: float = 15.0
    #: How long ended tasks and their outputs are kept.
    retention_seconds: float = 90 * 86400.0
    #: `pack` fills one node first, `spread` takes the emptiest.
    placement: str = "pack"
    #: Between equal priorities: `fair` starts the submitter with the least use first, `fifo` the oldest task.
    order: str = "fair"
    #: A task that has waited so long gets a node reserved, so that small ones do not starve it.
    reserve_after_seconds: float = 300.0
    #: Commands for nodes, run with the node's name as their last word: `kickstart` for one that is silent, at
    #: growing intervals until it has been so for the time `give_up` (1h); `reboot` for `geres node reboot`.
    hooks: dict[str, str] = {}
    #: An identity provider whose tokens are good here: `issuer`, `audience`, and what its claims mean: see
    #: docs/operations/access.md.
    oidc: dict[str, str] = {}
    #: A submitter is warned where the disk of a node is fuller than so many percent.
    disk_warn_percent: int = 90

    @property
    def insecure(self) -> bool:
        """True where other machines may come without TLS, too."""
        return self.certificate == (NO_TLS,)


class AgentConfig(Struct, frozen=True):
    """Options of `geres agent`: what its node offers, and how tasks run there."""

    #: What `geres node join-token` printed: this machine becomes a node with it, once.
    join: str = ""
    #: The node's name; empty for the host's.
    name: str = ""
    pool: str = "default"
    #: What the node declares; 0 for what the machine has.
    cpus: float = 0.0
    #: What the node declares; 0 for what the machine has.
    memory_bytes: int = 0
    #: What the node declares; -1 for what is found.
    gpus: int = -1
    #: Named counts, like `{ licence = 3 }`.
    resources: dict[str, int] = {}
    #: Free words about the node, for `--match 'node.labels.site == "north"'`.
    labels: dict[str, str] = {}
    #: Most tasks at once, whatever they ask for; 0 for no such limit.
    slots: int = 0
    #: Folders that are the same on this node as where people submit.
    shared_paths: tuple[str, ...] = ()
    #: A task may take this many times the memory that it asked for before it is ended.
    limit_factor: float = 1.0
    #: Most that is kept of one output stream, whatever a task asks for.
    output_limit_bytes: int = 1 << 30
    #: Allowance for the folder and the outputs of a task that names none; 0 for none.
    disk_bytes: int = 0
    #: Words put before every command, like `nice -n 10`.
    wrap: str = ""
    #: On the way out, running tasks get so long to end by themselves.
    drain_seconds: float = 20.0
    #: Who runs as which account of the node, like `{ "ann@site" = "ann", "*" = "batch" }`; several, parted by
    #: blanks, may be chosen from with `--user`.  Who is not in it runs as the account of the same name.
    accounts: dict[str, str] = {}


class ClientConfig(Struct, frozen=True):
    """Options of the command line and of `geres.Client`: what a task gets that does not say."""

    cpus: float = 1.0
    #: 0 asks for none and limits nothing.
    memory_bytes: int = 0
    pool: str = "default"
    #: Low, normal, high or -1000 to 1000, larger first.
    priority: int = 0
    #: Between TERM and KILL when a task is cancelled or over its time.
    grace_seconds: float = 20.0
    #: Names, with `*`, that `--env '*'` leaves out.
    env_deny: tuple[str, ...] = (
        *("*TOKEN*", "*SECRET*", "*PASSWORD*", "*PASSWD*", "*_KEY", "*CREDENTIAL*", "GERES_*"),
        *(
            "SSH_*",
            "DISPLAY",
            "XAUTHORITY",
            "DBUS_*",
            "XDG_*",
            "HOME",
            "USER",
            "LOGNAME",
            "SHELL",
            "PWD",
            "OLDPWD",
            "_",
        ),
    )
    #: Refuse to submit as root.
    refuse_root: bool = False


class LogConfig(Struct, frozen=True):
    """What server and agent write about themselves."""

    #: debug, info, warning or error.
    level: str = "info"
    #: Levels of single areas, like `{ api = "debug" }`.
    levels: dict[str, str] = {}
    #: `json` for one object per line, `text` for people.
    format: str = "json"


class Config(Struct, frozen=True):
    """All settings, where each came from, and what was wrong with the sources."""

    server: ServerConfig = ServerConfig()
    agent: AgentConfig = AgentConfig()
    client: ClientConfig = ClientConfig()
    log: LogConfig = LogConfig()
    #: Key, like `server.port`, to the words for its source; `default` is left out.
    origins: dict[str, str] = {}
    problems: tuple[str, ...] = ()

    def items(self) -> Iterator[tuple[str, Any, str]]:
        """Every key with its value and its origin, in the order of the documentation."""
        for section in SECTIONS:
            values = getattr(self, section)
            for one in fields(values):
                key = f"{section}.{one.name}"
                yield key, getattr(values, one.name), self.origins.get(key, "default")

    def check(self) -> list[str]:
        """Every problem as a sentence that names the key and its source; empty where all is well."""
        return [
            *self.problems,
            *(f"{key} ({self.origins.get(key, 'default')}): {text}" for key, text in self._ranges()),
        ]

    def checked(self) -> Config:
        """Itself.  Raises Invalid with all problems where there is any."""
        if problems := self.check():
            raise Invalid("\n".join(problems), problems=problems)
        return self

    def _tls_problems(self) -> Iterator[tuple[str, str]]:
        server = self.server
        words = {SELF_MADE, NO_TLS} & set(server.certificate)
        if len(server.certificate) > (1 if words else 2):
            yield (
                "server.certificate",
                f"{', '.join(server.certificate)} is neither one or two files, nor {SELF_MADE}, nor {NO_TLS}",
            )
        if server.url and not server.url.startswith(("http://", "https://")):
            yield "server.url", f"{server.url!r} is no address; write one like https://host.example:4470"

    def _ranges(self) -> Iterator[tuple[str, str]]:
        server, agent, client, log = self.server, self.agent, self.client, self.log
        if not 0 <= server.port <= 65535:
            yield "server.port", f"{server.port} is no port; take one from 1 to 65535, or 0 for any free one"
        yield from self._tls_problems()
        if server.store and not server.store.startswith(("sqlite:", "postgresql://", "postgres://")):
            yield (
                "server.store",
                f"{server.store!r} is no store; write sqlite:PATH or postgresql://USER@HOST/DATABASE",
            )
        if not 3 <= server.lease_seconds <= 3600:
            yield "server.lease_seconds", f"{server.lease_seconds:g} is not between 3 s and 1 h"
        if server.retention_seconds < 60:
            yield "server.retention_seconds", f"{server.retention_seconds:g} is below a minute"
        try:
            provider_of(server.oidc)
        except Invalid as error:
            yield "server.oidc", str(error)
        yield from _one_of("server.placement", server.placement, ("pack", "spread"))
        yield from _one_of("server.order", server.order, ("fair", "fifo"))
        for hook, command in server.hooks.items():
            yield from _one_of("server.hooks", hook, ("kickstart", "reboot", "give_up"))
            if not command.strip():
                yield "server.hooks", f"{hook} is empty; leave it out"
        try:
            parse_duration(server.hooks.get("give_up", "1h"), "give_up")
        except Invalid as error:
            yield "server.hooks", str(error)
        if agent.limit_factor < 1:
            yield (
                "agent.limit_factor",
                f"{agent.limit_factor:g} would end tasks within their request; at least 1",
            )
        if agent.name and not may_name_node(agent.name):
            yield (
                "agent.name",
                f"{agent.name!r} cannot name a node; use letters, digits, dots, _ and - within",
            )
        if not is_name(agent.pool):
            yield "agent.pool", f"{agent.pool!r} cannot name a pool; use no dot and not only digits"
        for key, number, least in (
            ("agent.memory_bytes", agent.memory_bytes, 0),
            ("agent.gpus", agent.gpus, -1),
            ("agent.slots", agent.slots, 0),
            ("agent.output_limit_bytes", agent.output_limit_bytes, 0),
            ("agent.disk_bytes", agent.disk_bytes, 0),
            ("client.memory_bytes", client.memory_bytes, 0),
        ):
            if number < least:
                yield key, f"{number} is below {least}"
        for name, count in agent.resources.items():
            if not is_name(name):
                yield "agent.resources", f"{name!r} cannot name a resource; use no dot and not only digits"
            if count < 0:
                yield "agent.resources", f"{name} = {count} is below 0"
        for subject, names in agent.accounts.items():
            if not (subject and names.split()):
                yield "agent.accounts", f"{subject!r} has no account; write SUBJECT = ACCOUNT"
        for path in agent.shared_paths:
            if not path.startswith("/"):
                yield "agent.shared_paths", f"{path!r} is no absolute path"
        if not -1000 <= client.priority <= 1000:
            yield "client.priority", f"{client.priority} is not between -1000 and 1000"
        if not 0 <= self.server.disk_warn_percent <= 100:
            yield "server.disk_warn_percent", f"{self.server.disk_warn_percent} is not between 0 and 100"
        if client.cpus < 0:
            yield "client.cpus", f"{client.cpus:g} is below 0"
        yield from _one_of("log.level", log.level, _LEVELS)
        for level in log.levels.values():
            yield from _one_of("log.levels", level, _LEVELS)
        yield from _one_of("log.format", log.format, ("json", "text"))


SECTIONS: dict[str, type] = {
    "server": ServerConfig,
    "agent": AgentConfig,
    "client": ClientConfig,
    "log": LogConfig,
}
#: Everything that geres puts into its home; `geres down --purge` removes these and nothing else.
OURS = (
    *("geres.db*", "blobs", "token", "agent.token", "agent", "logs", "address.json*", "up.json*"),
    *("tls.pem", "node.json"),
    *("server.lock", "up.lock"),
)
#: Where the search for a settings file upwards begins, instead of in the current folder: `geres up` tells the
#: parts that it starts, which run in no folder of the user's.
CONFIG_FROM = "GERES_CONFIG_FROM"
#: Key, like `server.port`, to the type of its field.
KINDS: dict[str, Any] = {
    f"{section}.{one.name}": one.type for section, kind in SECTIONS.items() for one in fields(kind)
}


def home() -> Path:
    """The folder of the cluster: `GERES_HOME`, else the platform's user data folder.  It need not exist."""
    if asked := os.environ.get("GERES_HOME"):
        return Path(asked).expanduser().absolute()
    from platformdirs import user_data_path  # a tenth of the start of a short command

    return user_data_path("geres")


def host_id() -> str:
    """Names this machine, the same for every process and account on it; another one after a reboot."""
    parts = [socket.gethostname()]  # containers of one machine share the two files below
    for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        try:
            parts.append(Path(path).read_text().strip())
        except OSError:
            continue
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    system_file: Path = _SYSTEM_FILE,
    user_file: Path | None = None,
) -> Config:
    """Read all sources.  `flags` are keys like `server.port`; those that are None were not given.

    Never raises for what the sources say: see `Config.check`.
    """
    env = os.environ if env is None else env
    sources = Sources(env, KINDS, _default)
    below = cwd or Path(env.get(CONFIG_FROM) or working_folder())
    for path in (system_file, user_file or users_file(), nearest_file(below, sources.problems)):
        if path is not None and path.is_file():
            sources.read(path)
    sources.read_environment()
    for key, value in (flags or {}).items():
        if value is not None:
            sources.put(key, value, f"flag --{key.partition('.')[2].replace('_', '-')}", working_folder())
    values, origins = sources.values()
    sections = {
        section: kind(**{name: one for (of, name), one in values.items() if of == section})
        for section, kind in SECTIONS.items()
    }
    return Config(**sections, origins=origins, problems=tuple(sources.problems))


def _default(key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(SECTIONS[section](), name)


def own_file() -> Path:
    """Where the settings of this account lie; for root those of the whole machine."""
    return _SYSTEM_FILE if os.geteuid() == 0 else users_file()


def _one_of(key: str, value: str, known: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if value not in known:
        yield key, f"{value!r} is none of {', '.join(known)}"


def certificate_of(certificate: str | None, key: str | None, insecure: bool | None) -> list[str] | None:
    """The setting `server.certificate` that these flags mean; None where none was given.

    Raises Invalid for flags that contradict each other.
    """
    if insecure and (certificate or key):
        raise Invalid("insecure: contradicts --certificate; leave one of them out", field="insecure")
    if key and (certificate or SELF_MADE) in (SELF_MADE, NO_TLS):
        raise Invalid("key: belongs to a certificate; name its file with --certificate", field="key")
    if insecure:
        return [NO_TLS]
    return [one for one in (certificate, key) if one] or None


def is_loopback(host: str) -> bool:
    """True for an address that only this machine reaches."""
    if host.startswith("unix://"):
        return True
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None
