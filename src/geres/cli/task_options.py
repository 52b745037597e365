"""The options of `run` and `submit`, and what they say about the task."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import click

from geres.cli.output import say
from geres.errors import Invalid
from geres.model.tasks import TaskSpec

#: Carried along when the task starts in the directory of the call, so that it finds the same programs.
_CALL_VARIABLES = ("PATH", "VIRTUAL_ENV", "CONDA_*", "LD_LIBRARY_PATH", "LC_*")

_OPTIONS: list[Callable[[Any], Any]] = [
    click.option("-c", "--cpus", metavar="N", help="Cpus; may be a fraction.  [default: 1]"),
    click.option("-m", "--memory", metavar="SIZE", help="Memory, like 500M or 1.5G; also the limit."),
    click.option("-G", "--gpus", metavar="N", help="Gpus."),
    click.option("-r", "--resource", "resources", multiple=True, metavar="NAME=N", help="Named resource."),
    click.option("-t", "--time-limit", metavar="TIME", help="Ended after so long: 90, 30s, 1h30m."),
    click.option("-p", "--pool", metavar="NAME", help="Pool of nodes."),
    click.option("-N", "--nodes", metavar="N", hidden=True, help="Nodes of a gang."),
    click.option("-w", "--nodelist", metavar="NAMES", help="Only these nodes: names or globs, with commas."),
    click.option("--match", metavar="EXPR", help="Only nodes like 'node.arch==\"x86_64\"'."),
    click.option("--exclusive", is_flag=True, default=None, help="The node for itself."),
    click.option("--priority", metavar="N", help="low, normal, high or -1000..1000; larger first."),
    click.option("-J", "--job", metavar="JOB", help="The job to join, by id or name."),
    click.option(
        "--after", multiple=True, metavar="ID", help="Start after this task or job succeeded; again for more."
    ),
    click.option("--hold", is_flag=True, default=None, help="Wait until it is released."),
    click.option("--not-before", metavar="TIME", help="Not before this time."),
    click.option("--name", metavar="TEXT", help="A name to show."),
    click.option("--id", metavar="NAME", help="An id of your own, unique in the job while the task lives."),
    click.option(
        "--if-exists", type=click.Choice(["fail", "attach"]), help="What to do when --id is taken.  [fail]"
    ),
    click.option("--meta", multiple=True, metavar="KEY=VALUE", help="Data to find it by."),
    click.option("--label", metavar="NAME", help="Count against the limit of this label."),
    click.option("--retries", metavar="N", help="Try again when it fails; -1 without end."),
    click.option("--retry-delay", metavar="TIME", help="Before the first retry; doubles."),
    click.option("--on-lost", type=click.Choice(["retry", "fail"]), help="When its node is lost.  [retry]"),
    click.option(
        "--on-disconnect",
        type=click.Choice(["run", "stop", "keep"]),
        help="When its node loses contact: run on, stop before another node may get it, or wait for the node."
        "  [run]",
    ),
    click.option("--grace", metavar="TIME", help="Between TERM and KILL.  [20s]"),
    click.option("--cwd", metavar="DIR", help="Where it starts; `task` for a folder of its own.  [here]"),
    click.option(
        "--env", multiple=True, metavar="NAME[=VALUE]", help="Carry a variable along; '*' for nearly all."
    ),
    click.option("--umask", metavar="OCTAL", help="Its umask."),
    click.option("--user", metavar="NAME", help="Run as this account, where the node allows it."),
    click.option("--group", metavar="NAME", help="Run with this group, one of the account's."),
    click.option("--shell", is_flag=True, help="The command is a line for /bin/sh."),
    click.option("-o", "--stdout", metavar="FILE", help="Its stdout goes to this file on the node instead."),
    click.option("-e", "--stderr", metavar="FILE", help="Its stderr goes to this file on the node."),
    click.option("--append", is_flag=True, default=None, help="Append to those files."),
    click.option("--merge", is_flag=True, default=None, help="Stderr goes where stdout goes."),
    click.option("--output-limit", metavar="SIZE", help="How much of each stream is kept.  [64M]"),
    click.option("--disk", metavar="SIZE", help="Allowance for its folder and output."),
    click.option("--retain", metavar="TIME", help="How long its folder stays on the node.  [7d]"),
    click.option("-f", "--file", metavar="FILE", help="Options from a TOML, YAML or JSON file; flags win."),
    click.option("-a", "--array", metavar="RANGE", help="One task for each index: 1-10, 1-10:2, 1-10%3."),
    click.option("--items", metavar="FILE", help="One task for each line of a file, or of stdin with `-`."),
    click.option("-0", "--null", is_flag=True, help="The items end with NUL, not with a newline."),
    click.option(
        "--max-parallel", metavar="N", type=click.IntRange(min=1), help="Never more of its tasks at once."
    ),
    click.option(
        "--from", "from_", metavar="FILE", help="One task for each line of JSON: options, or an argv."
    ),
    click.option("--dry-run", is_flag=True, help="Show what would be stored and where it would go."),
]


def task_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `run` and `submit` and the words of the command."""
    command = click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND...")(command)
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def own_options(flags: Mapping[str, Any], file: Mapping[str, Any]) -> dict[str, Any]:
    """Options in people's units: the flags over those of the file over the user's defaults."""
    options = {**_configured(), **file}
    for name in (
        *("cpus", "memory", "gpus", "time_limit", "pool", "nodelist", "match", "exclusive", "priority"),
        *("hold", "not_before", "name", "id", "if_exists", "label", "retries", "retry_delay", "on_lost"),
        "on_disconnect",
        *("grace", "umask", "user", "group", "append", "merge", "output_limit", "disk", "retain"),
    ):
        if flags[name] is not None:
            options[name] = flags[name]
    if flags["resources"]:
        options["resources"] = {**options.get("resources", {}), **pairs(flags["resources"], "resource")}
    if flags["meta"]:
        options["meta"] = {**options.get("meta", {}), **pairs(flags["meta"], "meta")}
    for name in ("stdout", "stderr"):
        if flags[name] is not None:
            options[name] = flags[name]
    if flags["nodes"] not in (None, "1"):
        raise Invalid("nodes: tasks on several nodes at once are not there yet", field="nodes")
    return options


def pairs(texts: tuple[str, ...], field: str) -> dict[str, str]:
    """`("a=1", "b=2")` as a dict.  Raises Invalid naming the field."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise Invalid(f"{field}: {text!r} is no pair; write NAME=VALUE", field=field)
        found[name] = value
    return found


def place(
    options: dict[str, Any], cwd: str | None, env: tuple[str, ...], *, sees: Callable[[str], bool]
) -> None:
    """Say where the task starts and with which variables: here, if nobody asked for another place.

    `sees` tells whether some node sees a folder of this host.  Where none does, the task starts in a
    folder of its own, and one line on stderr says so.
    """
    carried = dict(options.get("env", {}))
    if cwd is None and "cwd" in options:
        if options["cwd"] == "task":
            del options["cwd"]
    elif cwd is None:
        here = _here()
        if sees(here):
            options["cwd"] = options["see_path"] = here
            options["host"] = host_id()
            carried = {**_matching(os.environ, _CALL_VARIABLES), **carried}
        else:
            say(f"geres: no node sees {here}; the task starts in a folder of its own (--cwd names another)")
    elif cwd != "task":
        folder = _asked_folder(cwd)
        if sees(folder) and not os.path.isdir(folder):
            raise Invalid(f"cwd: there is no folder {folder}", field="cwd")
        options["cwd"] = folder
    else:
        options.pop("cwd", None)
    carried.update(carried_variables(env))
    if carried:
        options["env"] = carried


def carried_variables(asked: tuple[str, ...]) -> dict[str, str]:
    """What `--env` asks for: `NAME=V` as it is, `NAME` and globs from here, less what is never carried."""
    found: dict[str, str] = {}
    for text in asked:
        name, equals, value = text.partition("=")
        if equals:
            found[name] = value
        elif any(mark in name for mark in "*?["):
            allowed = {key: one for key, one in os.environ.items() if not _is_denied(key)}
            found.update(_matching(allowed, (name,)))
        elif name in os.environ:
            found[name] = os.environ[name]
        else:
            raise Invalid(f"env: {name} is not set here; write {name}=VALUE", field="env")
    return found


def check_caller() -> None:
    """Refuse root where the settings say so.  Raises Invalid."""
    if hasattr(os, "geteuid") and os.geteuid() == 0 and _settings().refuse_root:
        raise Invalid(
            "user: root may not submit here (client.refuse_root); use your own account", field="user"
        )


def _here() -> str:
    """The directory of the call, by the name under which the user sees it."""
    try:
        real = os.getcwd()
    except FileNotFoundError:
        raise Invalid("cwd: this directory does not exist any more; give --cwd", field="cwd") from None
    shown = os.environ.get("PWD", "")
    try:
        return shown if os.path.isabs(shown) and os.path.samefile(shown, real) else real
    except OSError:
        return real


def _asked_folder(path: str) -> str:
    expanded = os.path.expanduser(path)
    if os.path.isabs(expanded):
        return expanded
    absolute = os.path.normpath(os.path.join(_here(), expanded))
    if not os.path.isdir(absolute):
        raise Invalid(f"cwd: there is no folder {absolute}", field="cwd")
    return absolute


def _matching(variables: Mapping[str, str], patterns: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name, value in variables.items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            try:
                value.encode()
            except UnicodeEncodeError:
                say(f"geres: {name} is no valid text and is left out")
                continue
            found[name] = value
    return found


def _is_denied(name: str) -> bool:
    return any(fnmatchcase(name.upper(), pattern) for pattern in _settings().env_deny)


def _configured() -> dict[str, Any]:
    """What the user's settings say a task gets that does not say."""
    client = _settings()
    found: dict[str, Any] = {
        "cpus": client.cpus,
        "memory_bytes": client.memory_bytes,
        "pool": client.pool,
        "priority": client.priority,
        "grace_seconds": client.grace_seconds,
    }
    plain = TaskSpec()
    return {name: value for name, value in found.items() if value != (getattr(plain, name) or 0)}


_loaded: Any = None


def _settings() -> Any:
    global _loaded
    if _loaded is None:
        from geres import config  # reads files: only commands that submit do

        loaded = config.load()
        for problem in loaded.check():
            say(f"geres: settings: {problem}")
        _loaded = loaded.client
    return _loaded


def host_id() -> str:
    """Names this machine as nodes do."""
    from geres import config  # reads files: only commands that submit do

    return config.host_id()


def read_text(path: str, what: str) -> str:
    """The text of a file, or of stdin for `-`.  Raises Invalid naming the option."""
    try:
        if path == "-":
            return sys.stdin.buffer.read().decode()
        return Path(path).read_bytes().decode()
    except OSError as error:
        raise Invalid(f"{what}: {path} cannot be read: {error.strerror}", field=what) from None
    except UnicodeDecodeError:
        raise Invalid(f"{what}: {path} is no UTF-8 text", field=what) from None
