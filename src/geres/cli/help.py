"""`geres help`, `version` and `completion`."""

from __future__ import annotations

import click

from geres import __version__
from geres.cli.main import App, cli
from geres.cli.output import pretty_json, write_line
from geres.cli.topics import TOPICS, topic
from geres.errors import BY_CODE, NotFound

EXIT_CODES = """\
`geres run`, `geres wait` and `geres attach` give the task's own exit status:

  0        succeeded, or skipped because all was up to date
  N        the exit status of the command
  128+N    ended by signal N
  124      over its time limit
  125      a fault of geres itself; stderr has `geres: CODE: ...`
  126      the program cannot be executed
  127      there is no such program
  130      cancelled, also by Ctrl-C
  1        a node was lost, a file could not be staged, a parent failed
  2        a bad command line; nothing was stored

Of several tasks it is that of the last one that failed, in the order given.

All other commands:

"""
_MEANINGS = {
    0: "all is well",
    1: "anything else; with a traceback it is a fault of ours",
    2: "bad input; nothing was stored",
    3: "no token, an unknown one, or not allowed",
    4: "not found, or not kept any more",
    5: "in conflict with what is there: ended, taken, changed",
    6: "over a quota; try later",
    7: "no server, no store, or out of time; may be tried again",
}


@click.command(name="help")
@click.argument("words", nargs=-1, metavar="[COMMAND...|TOPIC]")
@click.pass_context
def help_(context: click.Context, words: tuple[str, ...]) -> None:
    """Help on a command or a topic: states, reasons, exit-codes, filters, placeholders, environment."""
    wanted = "-".join(words).lower()
    if wanted in ("exit-codes", "exit-code", "exit-status"):
        for line in exit_code_lines():
            write_line(line)
        return
    if wanted in TOPICS:
        write_line(topic(wanted).rstrip())
        return
    command: click.Command = cli
    parent = context.parent
    for word in words:
        found = command.get_command(context, word) if isinstance(command, click.Group) else None
        if found is None:
            raise NotFound(
                f"there is no help on {' '.join(words)!r}; `geres --help` lists the commands,"
                f" and there are the topics {', '.join(sorted([*TOPICS, 'exit-codes']))}"
            )
        command = found
    path = " ".join(words)
    with click.Context(command, info_name=path or "geres", parent=parent if words else None) as own:
        click.echo(command.get_help(own))


def exit_code_lines() -> list[str]:
    """The table of exit statuses, also for the documentation."""
    lines = EXIT_CODES.splitlines()
    for status, meaning in _MEANINGS.items():
        codes = sorted(
            code for code, kind in BY_CODE.items() if kind.exit_status == status and code != "error"
        )
        lines.append(f"  {status}  {meaning}" + (f" ({', '.join(codes)})" if codes else ""))
    return lines


@click.command()
@click.option("--json", is_flag=True, help="Also the server's, where one answers.")
@click.pass_obj
def version(app: App, json: bool) -> None:
    """Print the version."""
    if not json:
        write_line(f"geres {__version__}")
        return
    from geres.config import home
    from geres.sdk.discover import read_address  # the plain version needs no settings

    found = read_address(home())
    write_line(pretty_json({"geres": __version__, "server": found.version if found else None}))


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell: `eval "$(geres completion bash)"`."""
    from click.shell_completion import get_completion_class  # only this command needs it

    kind = get_completion_class(shell)
    assert kind is not None
    write_line(kind(cli, {}, "geres", "_GERES_COMPLETE").source())
