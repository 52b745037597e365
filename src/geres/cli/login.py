"""`geres login` and `geres logout`: remember a cluster elsewhere."""

from __future__ import annotations

import sys

import click

from geres import trust
from geres.cli.output import say
from geres.errors import Invalid, NotFound, Untrusted
from geres.sdk.client import Client
from geres.sdk.discover import Profile, forget_profile, write_profile
from geres.sdk.http import check_address


@click.command()
@click.argument("url")
@click.option("--token", metavar="TOKEN", help="Its token; else asked for, or read from stdin.")
@click.option(
    "--fingerprint",
    metavar="sha256:...",
    help="Of its certificate, as `geres up` prints it there: only that one is trusted.",
)
def login(url: str, token: str | None, fingerprint: str | None) -> None:
    """Use the cluster at URL from now on, where neither --url nor GERES_URL names another.

    The token is tried first, and kept in your configuration folder, readable by you alone.  A certificate
    that no authority vouches for is pinned: with --fingerprint, or after you have compared what is shown.
    """
    check_address(url)
    url = url.rstrip("/")
    pin = _trusted(url, fingerprint)
    if token is None:
        token = (
            click.prompt("Token", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
        )
    token = token.strip()
    if not token:
        raise Invalid("token: is empty", field="token")
    with Client(url, token, fingerprint=pin or None, patience=2) as client:
        me = client.whoami()
        write_profile(Profile(url=client.url, token=token, fingerprint=pin))
    say(f"geres: {me.subject} ({me.role}) at {url}; `geres logout` forgets it")


def _trusted(url: str, fingerprint: str | None) -> str:
    """The fingerprint to pin; empty where an authority vouches for the certificate, or there is no TLS.

    Before it returns no secret is asked for, and none is sent.  Raises Untrusted.
    """
    if fingerprint is not None:
        pin = trust.parse_fingerprint(fingerprint)
        if not url.startswith("https:"):
            raise Invalid(f"fingerprint: {url} has no certificate; write https://", field="fingerprint")
        trust.check(url, pin)
        return pin
    if not url.startswith("https:"):
        return ""
    try:
        trust.check(url)
    except Untrusted:
        if not sys.stdin.isatty():
            raise
        pin = trust.peek(url)
        say(
            f"No authority that this machine trusts vouches for the certificate of {url}.\n"
            f"Its fingerprint is {pin}\n"
            "Compare it with what `geres up` or `geres status` prints on the server."
        )
        if not click.confirm("Is it the same, and shall it be trusted from now on?", err=True):
            raise Untrusted("nothing was sent, and nothing is remembered", url=url) from None
        return pin
    return ""


@click.command()
def logout() -> None:
    """Forget the cluster of `geres login`."""
    if not forget_profile():
        raise NotFound("there is no login to forget")
