"""`geres server` and `geres agent`: run one part in this process."""

from __future__ import annotations

from collections.abc import Callable

import click

_PASSED_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}


@click.command(context_settings=_PASSED_ON)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def server(words: tuple[str, ...]) -> int:
    """Run one server until a signal comes."""
    from geres.server.main import main  # the web framework: only this command needs it

    return _status_of(main, words)


@click.command(context_settings=_PASSED_ON)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def agent(context: click.Context, /, words: tuple[str, ...]) -> int:
    """Run one agent: this machine becomes a node.

    `geres agent reload` and `geres agent restart` act on agents that run; see their --help.
    """
    if words[:1] in (("reload",), ("restart",)):
        from geres.cli.agents import reload, restart  # needs the client; running an agent does not

        command = reload if words[0] == "reload" else restart
        with command.make_context(f"agent {words[0]}", list(words[1:]), parent=context.parent) as inner:
            return int(command.invoke(inner) or 0)
    from geres.agent.main import main  # the agent's loops: only this command needs them

    return _status_of(main, words)


def _status_of(main: Callable[[list[str]], int], words: tuple[str, ...]) -> int:
    try:
        return main(list(words))
    except SystemExit as left:  # after --help, or words that it does not know
        return left.code if isinstance(left.code, int) else 0
