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
def agent(words: tuple[str, ...]) -> int:
    """Run one agent: this machine becomes a node."""
    from geres.agent.main import main  # the agent's loops: only this command needs them

    return _status_of(main, words)


def _status_of(main: Callable[[list[str]], int], words: tuple[str, ...]) -> int:
    try:
        return main(list(words))
    except SystemExit as left:  # after --help, or words that it does not know
        return left.code if isinstance(left.code, int) else 0
