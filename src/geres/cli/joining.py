"""`geres node join-token` and its like: let machines become nodes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

import click

from geres import config
from geres.cli.main import App
from geres.cli.output import Column, Style, escape, print_list, print_one, say, show_time, style_options
from geres.model.joining import Invitation, JoinToken, parse_invitation
from geres.model.units import parse_duration
from geres.sdk.http import check_address

_COLUMNS = [
    Column("id", "ID"),
    Column("state", "STATE"),
    Column("pool", "POOL"),
    Column("used", "USED", right=True),
    Column("uses", "OF", right=True),
    Column("created_by", "BY"),
    Column("expires_at", "GOOD UNTIL"),
]


@click.command(name="join-token")
@click.option("-p", "--pool", metavar="NAME", help="Pool of its nodes.  [the one that the agent names]")
@click.option("--expires", metavar="TIME", default="1h", show_default=True, help="Good for so long.")
@click.option("--uses", metavar="N", type=int, default=1, show_default=True, help="So many nodes may join.")
@click.option("--tenant", metavar="NAME", help="Whose tasks its nodes run (admins).  [your own]")
@click.option("--address", metavar="URL", help="By which the new machine reaches the server.")
@style_options(stream=False)
@click.pass_obj
def join_token(
    app: App,
    pool: str | None,
    expires: str,
    uses: int,
    tenant: str | None,
    address: str | None,
    style: Style,
) -> None:
    """Print the one command by which a new machine joins as a node.

    The token in it is good once (--uses) and for an hour (--expires).  The node runs the tasks of one tenant.
    """
    if address is not None:
        check_address(address)
    if tenant is not None:
        os.environ["GERES_TENANT"] = tenant
    made = app.client.create_join_token(
        pool=pool, uses=uses, expires_seconds=parse_duration(expires, "expires")
    )
    invitation = _reachable(parse_invitation(made.join or ""), address, app.client.url)
    made.join = str(invitation)
    print_one(style, made, _command, key="join")
    if not style.table:
        return
    times = "once" if made.uses == 1 else f"{made.uses:,} times"
    say(
        f"type this on the new machine; it is good {times}, until {show_time(made.expires_at, utc=style.utc)}"
    )
    if config.is_loopback(urlsplit(invitation.url).hostname or ""):
        say(
            f"{invitation.url} is reached from this machine alone: start with `geres up --host 0.0.0.0`, or"
            " give the address of a tunnel with --address"
        )


def _command(made: JoinToken) -> Iterator[str]:
    yield f"geres agent --join {made.join}"


def _reachable(invitation: Invitation, address: str | None, ours: str) -> Invitation:
    """With the address that was asked for, else the one by which we came, where other machines can, too."""
    if address is None and not config.is_loopback(urlsplit(ours).hostname or ""):
        address = ours
    return invitation if address is None else invitation._replace(url=address.rstrip("/"))


@click.command(name="join-tokens")
@style_options()
@click.pass_obj
def join_tokens(app: App, style: Style) -> None:
    """List join tokens, without what they are made of."""
    print_list(style, app.client.join_tokens(), _COLUMNS, key="id")


@click.command(name="revoke-join-token")
@click.argument("token_id", metavar="ID")
@style_options(stream=False)
@click.pass_obj
def revoke_join_token(app: App, token_id: str, style: Style) -> None:
    """Let nobody join with it any more; nodes that have joined stay."""
    revoked = app.client.revoke_join_token(token_id)
    print_one(style, revoked, lambda one: [f"{escape(one.id)} {one.state}"], key="id")
