"""`geres server` and `geres agent`: run one part in this process."""

from __future__ import annotations

import click

_PASSED_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}


@click.command(context_settings=_PASSED_ON)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def server(words: tuple[str, ...]) -> int:
    """Run one server until a signal comes."""
    from geres.server.main import main  # the web framework: only this command needs it

    return main(list(words)) or 0


@click.command(context_settings=_PASSED_ON)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def agent(words: tuple[str, ...]) -> int:
    """Run one agent: this machine becomes a node."""
    from geres.agent.main import main  # the agent's loops: only this command needs them

    return main(list(words)) or 0
