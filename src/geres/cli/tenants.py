"""`geres tenant`, `user`, `token`, `whoami` and `audit`: who may do what, and who did."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator

import click

from geres.cli.lists import moment
from geres.cli.main import App, group
from geres.cli.output import (
    TERMINAL_LINES,
    Column,
    Style,
    escape,
    print_list,
    print_one,
    say,
    show_number,
    show_time,
    style_options,
)
from geres.cli.quotas import quota_lines
from geres.errors import Invalid, NotFound
from geres.model.nodes import WhoAmI
from geres.model.tenants import AuditEntry, MadeToken, Tenant, Token, User
from geres.model.units import parse_duration

_PAGE = 1000
_ROLES = click.Choice(["admin", "operator", "user", "viewer"])
_YES = click.option("--yes", is_flag=True, help="Do not ask.")


def _sure(question: str, yes: bool) -> None:
    """Ask before what cannot be undone at once.  Raises Invalid where nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Invalid(f"{question} Nobody can be asked here: say --yes")
    click.confirm(question, abort=True, err=True)


tenant = group("tenant", default="list", help="Make, show and disable tenants.")
_TENANTS = [
    Column("name", "NAME"),
    Column("user_count", "USERS", show_number, right=True),
    Column("node_count", "NODES", show_number, right=True),
    Column("job_count", "JOBS", show_number, right=True),
    Column("created_at", "CREATED"),
    Column("disabled_at", "DISABLED"),
]


@click.command(name="create")
@click.argument("name")
@style_options(stream=False)
@click.pass_obj
def tenant_create(app: App, style: Style, name: str) -> None:
    """Make a tenant.

    `geres --tenant NAME user create USER --role operator` makes its first user, and
    `geres --tenant NAME token create --user USER` that user's token.
    """
    print_one(style, app.client.create_tenant(name), lambda made: [made.name], key="name")


@click.command(name="list")
@style_options()
@click.pass_obj
def tenant_list(app: App, style: Style) -> None:
    """List tenants: all for an admin, else yours."""
    print_list(style, app.client.tenants(), _TENANTS, key="name")


@click.command(name="show")
@click.argument("name")
@style_options(stream=False)
@click.pass_obj
def tenant_show(app: App, style: Style, name: str) -> None:
    """Show one tenant."""

    def lines(found: Tenant) -> Iterator[str]:
        yield f"tenant:   {escape(found.name)}"
        yield f"created:  {show_time(found.created_at, utc=style.utc)}"
        if found.disabled_at:
            yield f"disabled: {show_time(found.disabled_at, utc=style.utc)}"
        yield f"has:      {found.user_count} users, {found.node_count} nodes, {found.job_count} open jobs"

    print_one(style, app.client.tenant(name), lines, key="name")


@click.command(name="disable")
@click.argument("name")
@_YES
@click.pass_obj
def tenant_disable(app: App, name: str, yes: bool) -> None:
    """Refuse all tokens of a tenant.  What runs goes on, and nothing is removed."""
    found = app.client.tenant(name)
    _sure(f"Refuse the tokens of all {found.user_count} users and {found.node_count} nodes of {name}?", yes)
    app.client.disable_tenant(name)
    say(f"{escape(name)} is disabled; `geres tenant enable {escape(name)}` takes its tokens again")


@click.command(name="enable")
@click.argument("name")
@click.pass_obj
def tenant_enable(app: App, name: str) -> None:
    """Take its tokens again."""
    app.client.disable_tenant(name, False)


user = group("user", default="list", help="Make, list and disable users, and set their roles.")
_USERS = [
    Column("name", "NAME"),
    Column("role", "ROLE"),
    Column("token_count", "TOKENS", show_number, right=True),
    Column("created_at", "CREATED"),
    Column("disabled_at", "DISABLED"),
]


def _name(made: User) -> list[str]:
    return [escape(made.name)]


@click.command(name="create")
@click.argument("name")
@click.option("--role", type=_ROLES, default="user", show_default=True, help="What the user may do.")
@style_options(stream=False)
@click.pass_obj
def user_create(app: App, style: Style, name: str, role: str) -> None:
    """Make a user; `geres token create --user NAME` makes a token.

    An admin may do everything, in all tenants; an operator everything in the tenant; a user sees what is
    in the tenant and changes what is theirs; a viewer sees.
    """
    print_one(style, app.client.create_user(name, role), _name, key="name")


@click.command(name="list")
@style_options()
@click.pass_obj
def user_list(app: App, style: Style) -> None:
    """List the users of the tenant."""
    print_list(style, app.client.users(), _USERS, key="name")


@click.command(name="set-role")
@click.argument("name")
@click.argument("role", type=_ROLES)
@style_options(stream=False)
@click.pass_obj
def user_set_role(app: App, style: Style, name: str, role: str) -> None:
    """Give a user another role: it holds for the user's tokens too, at once."""
    print_one(style, app.client.edit_user(name, role=role), _name, key="name")


@click.command(name="disable")
@click.argument("name")
@_YES
@click.pass_obj
def user_disable(app: App, name: str, yes: bool) -> None:
    """Refuse all tokens of a user.  The user's tasks stay, and what runs goes on."""
    _sure(f"Refuse all tokens of {name}?", yes)
    app.client.edit_user(name, disabled=True)
    say(f"{escape(name)} is disabled; `geres user enable {escape(name)}` takes the tokens again")


@click.command(name="enable")
@click.argument("name")
@click.pass_obj
def user_enable(app: App, name: str) -> None:
    """Take the user's tokens again."""
    app.client.edit_user(name, disabled=False)


token = group("token", default="list", help="Make, list, replace and revoke tokens.")
_TOKENS = [
    Column("id", "ID"),
    Column("prefix", "BEGINS WITH"),
    Column("name", "NAME"),
    Column("user", "USER"),
    Column("role", "ROLE"),
    Column("created_at", "CREATED"),
    Column("last_used_at", "LAST USED"),
    Column("expires_at", "EXPIRES"),
]


def _secret(style: Style, made: MadeToken) -> None:
    if style.table:
        until = (
            f"until {show_time(made.expires_at, utc=style.utc)}" if made.expires_at else "until it is revoked"
        )
        say(
            f"token {made.id} of {escape(made.user)} ({made.role}), good {until}.  It is shown this once;"
            " use it with `geres login URL` or GERES_TOKEN"
        )
    print_one(style, made, lambda one: [one.token], key="token")


@click.command(name="create")
@click.option("--user", "whose", metavar="NAME", help="Whose.  [you]")
@click.option("--role", type=_ROLES, help="Less than its user may.  [as much]")
@click.option("--name", metavar="TEXT", help="To know it by, like laptop or ci.")
@click.option("--expires", metavar="TIME", help="Good for so long, like 30d.  [for ever]")
@style_options(stream=False)
@click.pass_obj
def token_create(
    app: App, style: Style, whose: str | None, role: str | None, name: str | None, expires: str | None
) -> None:
    """Make a token and print it: this once, for only its hash is kept."""
    seconds = None if expires is None else parse_duration(expires, "expires")
    _secret(style, app.client.create_token(user=whose, role=role, name=name, expires_seconds=seconds))


@click.command(name="list")
@click.option("--user", "whose", metavar="NAME", help="Of this user.  [operators: all, others: you]")
@click.option("--all", "everything", is_flag=True, help="Also those that are no good any more.")
@style_options()
@click.pass_obj
def token_list(app: App, style: Style, whose: str | None, everything: bool) -> None:
    """List tokens, without their secrets."""
    columns = [*_TOKENS, Column("revoked_at", "REVOKED")] if everything else _TOKENS
    print_list(style, app.client.tokens(user=whose, all=everything), columns)


@click.command(name="rotate")
@click.argument("token")
@click.option(
    "--overlap", metavar="TIME", default="1h", show_default=True, help="The old one is good so long."
)
@click.option("--expires", metavar="TIME", help="Good for so long.  [as long as the old one was made for]")
@style_options(stream=False)
@click.pass_obj
def token_rotate(app: App, style: Style, token: str, overlap: str, expires: str | None) -> None:
    """Make a token in place of TOKEN (its id, its first characters or its name), and print it.

    The old one is good until the overlap is over, so that nothing fails while you put the new one in place.
    """
    seconds = None if expires is None else parse_duration(expires, "expires")
    made = app.client.rotate_token(
        token, overlap_seconds=parse_duration(overlap, "overlap"), expires_seconds=seconds
    )
    _secret(style, made)


@click.command(name="revoke")
@click.argument("tokens", nargs=-1, required=True, metavar="TOKEN...")
@_YES
@click.pass_obj
def token_revoke(app: App, tokens: tuple[str, ...], yes: bool) -> None:
    """Refuse tokens (by id, first characters or name) from now on.

    The server asked does so at once, others within seconds.
    """
    known = app.client.tokens(all=True)
    meant = [_called(known, one) for one in tokens]
    _sure(f"Revoke {', '.join(f'token {one.id} of {escape(one.user)}' for one in meant)}?", yes)
    for one in meant:
        found: Token = app.client.revoke_token(one.id)
        say(f"token {found.id} of {escape(found.user)} is revoked")


def _called(known: list[Token], called: str) -> Token:
    """The token with this id, beginning or name; good ones before others, the newest first.

    Raises NotFound.
    """
    found = [one for one in known if called in (one.id, one.prefix, one.name)]
    if not found:
        raise NotFound(f"there is no token {called!r}; see `geres token list`", id=called)
    return max(found, key=lambda one: (one.good, int(one.id)))


@click.command()
@style_options(stream=False)
@click.pass_obj
def whoami(app: App, style: Style) -> None:
    """Tell who the cluster takes you for, and what you may do."""

    def lines(me: WhoAmI) -> Iterator[str]:
        yield f"{escape(me.subject)} ({me.role}) of tenant {escape(me.tenant)} at {app.client.url}"
        if me.role != "task":
            yield from quota_lines(app.client.quotas(me.subject))

    print_one(style, app.client.whoami(), lines, key="subject")


_AUDIT = [
    Column("at", "WHEN", None),
    Column("tenant", "TENANT"),
    Column("user", "USER"),
    Column("role", "ROLE"),
    Column("address", "FROM"),
    Column("action", "WHAT"),
    Column("result", "RESULT"),
    Column("target", "ON"),
]


@click.command()
@click.option("--user", "who", metavar="NAME", help="Of this user.")
@click.option("--action", metavar="WORD", help="Like job.cancel; `job.` for all that was done to jobs.")
@click.option("--result", metavar="WORD", help="ok, or a code like denied.")
@click.option("--refused", is_flag=True, help="Only what was refused for want of rights.")
@click.option("--since", metavar="TIME", help="From here on: a time, or so long ago like 2h.")
@click.option("--until", metavar="TIME", help="Before this time.")
@click.option("-n", "--limit", metavar="N", type=click.IntRange(min=0), help="How many; 0 for all.")
@style_options()
@click.pass_obj
def audit(
    app: App,
    style: Style,
    who: str | None,
    action: str | None,
    result: str | None,
    refused: bool,
    since: str | None,
    until: str | None,
    limit: int | None,
) -> None:
    """List who changed what, newest first: all tenants for an admin, else yours."""
    if refused and result is not None:
        raise Invalid("--refused and --result do not go together")
    most = limit if limit is not None else (0 if style.complete else TERMINAL_LINES)
    query = {
        "user": who,
        "action": action,
        "result": "denied" if refused else result,
        "since": moment(since, "since"),
        "until": moment(until, "until"),
    }

    def items() -> Iterator[AuditEntry]:
        for page in app.client.audit_pages(limit=min(most or _PAGE, _PAGE), **query):
            yield from page.items

    columns = [
        Column("at", "WHEN", lambda text: show_time(text, utc=style.utc)) if one.name == "at" else one
        for one in _AUDIT
    ]
    shown = print_list(style, itertools.islice(items(), most) if most else items(), columns)
    if style.table and not shown:
        say("nothing was changed, or it is no longer kept")
