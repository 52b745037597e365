"""The command `geres`: finds and loads one command, and turns errors into one line and an exit status."""

from __future__ import annotations

import errno
import os
import re
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

from geres import __version__
from geres.cli.words import COMMANDS, MEANT, SECTIONS, option_hint
from geres.errors import GeresError, Invalid
from geres.model.nearest import nearest


class App:
    """What the commands share: how to find the cluster, and one client."""

    def __init__(self) -> None:
        self.url: str | None = None
        #: The command that was called: it says which options there are.
        self.command: click.Command | None = None
        #: True in `run`, `wait` and `attach`: their status is the tasks', our own faults are 125.
        self.has_task_status = False
        self._client: Any = None

    @property
    def client(self) -> Any:
        """The client of this cluster; typed as Any so that commands which need none do not load it."""
        if self._client is None:
            from geres.sdk.client import Client  # loads the HTTP client: only where a request is made

            self._client = Client(self.url)
        return self._client

    def tell(self, code: str, message: str, status: int) -> int:
        """One line on stderr; returns the exit status that fits the command."""
        from geres.cli.output import escape, say

        say(f"geres: {code}: {escape(message)}")
        return 125 if self.has_task_status and status not in (0, 2) else status


class Commands(click.Group):
    """A group whose commands are loaded when they are called, and that knows what was meant."""

    def __init__(self, *args: Any, within: str = "", default: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._within, self._default = within, default

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if self._default is not None and args and args[0].startswith("-") and args[0] not in ("-h", "--help"):
            args = [self._default, *args]
        return super().parse_args(context, args)

    def list_commands(self, context: click.Context) -> list[str]:
        return [*COMMANDS[self._within], *self.commands]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if (known := super().get_command(context, name)) is not None:
            return known
        entry = COMMANDS[self._within].get(name)
        if entry is None:
            return None
        module, _, attribute = entry.place.partition(":")
        command = getattr(import_module(f"geres.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(context, name) is None and not name.startswith("-"):
            if self._means_one(context, name):
                return super().resolve_command(context, ["show", *args])
            raise click.UsageError(self._unknown(name), context)
        found = super().resolve_command(context, args)
        context.obj.command = found[1]
        return found

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        entries = COMMANDS[self._within]
        for section in SECTIONS:
            rows = [(name, one.help) for name, one in entries.items() if one.section == section]
            if rows:
                with formatter.section(section):
                    formatter.write_dl(rows)

    def _means_one(self, context: click.Context, name: str) -> bool:
        """Whether `geres NOUN NAME` asks to show one: NAME is like no command of it."""
        if "show" not in COMMANDS[self._within]:
            return False
        return name[:1].isdigit() or nearest(name, self.list_commands(context)) is None

    def _unknown(self, name: str) -> str:
        path = f"geres {self._within}".strip()
        meant = None if self._within else MEANT.get(name)
        if meant is None and (near := nearest(name, self.list_commands(click.get_current_context()))):
            meant = f"{path} {near}"
        if meant is None and (nouns := [noun for noun in COMMANDS if noun and name in COMMANDS[noun]]):
            meant = "` or `".join(f"geres {noun} {name}" for noun in nouns)
        return f"there is no command {name!r}" + (f"; did you mean `{meant}`?" if meant else "")


def group(name: str, *, default: str | None = None, help: str = "") -> Commands:
    """The group `geres NAME ...`; without a further word it runs its command `default`."""

    @click.pass_context
    def run_default(context: click.Context, /) -> None:
        if context.invoked_subcommand is not None:
            return
        if default is None:
            click.echo(context.get_help())
            return
        command = made.get_command(context, default)
        assert command is not None
        with command.make_context(f"{name} {default}", [], parent=context.parent) as inner:
            command.invoke(inner)

    made = Commands(
        name,
        within=name,
        default=default,
        callback=run_default,
        invoke_without_command=True,
        no_args_is_help=False,
        help=help,
    )
    return made


_BROKEN_PIPE = 128 + 13
_WRITE_FAULTS = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
EPILOG = """\b
Exit status: 0 all is well, 2 bad input, 3 not allowed, 4 not found,
5 conflict, 6 over a quota, 7 no server, 1 anything else.  `run` and
`wait` give the task's own; `geres help exit-codes` has the table.
"""


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EPILOG,
)
@click.option("--url", metavar="URL", help="The cluster's address, instead of GERES_URL or this machine's.")
@click.option("--home", metavar="DIR", help="The folder of a `geres up`, instead of GERES_HOME.")
@click.option("--tenant", metavar="NAME", help="Work in this tenant (admins).  [GERES_TENANT, else your own]")
@click.version_option(__version__, "-V", "--version", message="geres %(version)s")
@click.pass_context
def cli(context: click.Context, url: str | None, home: str | None, tenant: str | None) -> None:
    """Run very many jobs on many machines, without a head node.

    Begin with `geres up --detach`, then `geres run hostname`.
    """
    if home is not None:
        os.environ["GERES_HOME"] = os.path.abspath(os.path.expanduser(home))
        if url is None:
            os.environ.pop("GERES_URL", None)
    if tenant is not None:
        os.environ["GERES_TENANT"] = tenant
    context.obj.url = url
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit status."""
    _open_closed_streams()
    status = run(sys.argv[1:] if args is None else args)
    try:
        sys.stdout.flush()
    except OSError as error:
        status = _not_written(error)
    sys.exit(status)


def _open_closed_streams() -> None:
    """A stream that the caller closed is one that nobody reads; its number must not go to a connection."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            try:
                os.fstat(descriptor)
            except OSError:
                os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115 - open to the end


def _not_written(error: OSError) -> int:
    """The exit status for a stdout that takes no more; `geres tasks | head` ends quietly."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if isinstance(error, BrokenPipeError):
        return _BROKEN_PIPE
    return App().tell("output", f"stdout cannot be written: {error.strerror}", 1)


def run(args: list[str]) -> int:
    """Run one command line; errors become a line on stderr.  Returns the exit status."""
    app = App()
    try:
        result = cli.main(args=args, prog_name="geres", standalone_mode=False, obj=app)
    except click.UsageError as error:
        return app.tell("invalid", _usage(error), 2)
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except click.ClickException as error:
        return app.tell("invalid", error.format_message(), 2)
    except GeresError as error:
        return app.tell(error.code, in_flags(str(error), app.command), error.exit_status)
    except SystemExit:  # click leaves so where a pipe is broken, and only then
        return _not_written(BrokenPipeError())
    except OSError as error:
        if error.filename is not None or error.errno not in _WRITE_FAULTS:
            raise
        return _not_written(error)
    return result if isinstance(result, int) else 0


def _usage(error: click.UsageError) -> str:
    message = error.format_message().rstrip(".")
    if isinstance(error, click.BadParameter) and error.param is not None and error.message:
        message = f"{max(error.param.opts, key=len)}: {error.message.rstrip('.')}"
    if isinstance(error, click.NoSuchOption):
        message = f"there is no option {error.option_name}"
        if hint := option_hint(error.option_name, _options_of(error.ctx)):
            message += f"; did you mean {hint}?"
    path = error.ctx.command_path if error.ctx else "geres"
    return f"{message} (`{path} --help` says more)"


#: What the API calls otherwise than the command line.
_FLAGS = {
    "array.range": "--array",
    "array.items": "--items",
    "retry.most": "--retries",
    "retry.delay_seconds": "--retry-delay",
    "max_parallel_label": "--label",
}
_FIELD = re.compile(r"(?:task\.)?(([a-z_]+)(?:\.([\w-]+))?)[^\s:]*(?=: )")
_WITH_KEYS = ("--resource", "--meta", "--env")


def in_flags(message: str, command: click.Command | None) -> str:
    """The message with the option where it begins with the API's name of a field: `--retries: -5 is ...`."""
    match = _FIELD.match(message)
    if match is None or command is None:
        return message
    options = {param.name: flag for param in command.params for flag in param.opts if flag.startswith("--")}
    plain = match[2].removesuffix("_seconds").removesuffix("_bytes")
    flag = _FLAGS.get(match[1]) or options.get(plain)
    if flag is None or flag not in options.values():
        return message
    key = f" {match[3]}" if flag in _WITH_KEYS and match[3] else ""
    return flag + key + message[match.end() :]


def _options_of(context: click.Context | None) -> list[str]:
    """The long options of the command that was called."""
    params = context.command.params if context else []
    return [name for one in params for name in one.opts if name.startswith("--")]


def fail(message: str) -> NoReturn:
    """Refuse a bad command line in one sentence."""
    raise Invalid(message)
