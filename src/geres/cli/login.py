"""`geres login` and `geres logout`: remember a cluster elsewhere."""

from __future__ import annotations

import sys

import click

from geres.cli.output import say
from geres.errors import Invalid, NotFound
from geres.sdk.client import Client
from geres.sdk.discover import Profile, forget_profile, write_profile


@click.command()
@click.argument("url")
@click.option("--token", metavar="TOKEN", help="Its token; else asked for, or read from stdin.")
def login(url: str, token: str | None) -> None:
    """Use the cluster at URL from now on, where neither --url nor GERES_URL names another.

    The token is tried first, and kept in your configuration folder, readable by you alone.
    """
    if token is None:
        token = (
            click.prompt("Token", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
        )
    token = token.strip()
    if not token:
        raise Invalid("token: is empty", field="token")
    with Client(url, token, patience=2) as client:
        me = client.whoami()
        write_profile(Profile(url=client.url, token=token))
    say(f"geres: {me.subject} ({me.role}) at {url}; `geres logout` forgets it")


@click.command()
def logout() -> None:
    """Forget the cluster of `geres login`."""
    if not forget_profile():
        raise NotFound("there is no login to forget")
