"""`geres webhook`: who is told when tasks and jobs end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from geres.cli.main import App, group
from geres.cli.output import (
    Column,
    Style,
    escape,
    plain,
    print_list,
    print_one,
    say,
    show_number,
    show_time,
    style_options,
)
from geres.errors import Invalid
from geres.model.units import plural
from geres.model.webhooks import EVENTS, STATES, MadeWebhook, Webhook, WebhookTested

_MOST_SECRET_BYTES = 1000


def _told(row: dict[str, Any]) -> str:
    """What it is told of, in words."""
    told = " ".join(row["events"])
    if row["states"]:
        told += f" ({', '.join(row['states'])})"
    return told + (f" of job {row['job_id']}" if row["job_id"] else "")


def _state(row: dict[str, Any]) -> str:
    if row["failing_since"]:
        return f"fails since {show_time(row['failing_since'])}: {row['error']}"
    return "works" if row["delivered"] else "new"


_COLUMNS = [
    Column("id", "ID"),
    Column("url", "URL"),
    Column("events", "TOLD OF", _told, of_row=True),
    Column("waiting", "WAITING", show_number, right=True),
    Column("delivered", "DELIVERED", show_number, right=True),
    Column("state", "STATE", _state, of_row=True),
]

webhook = group("webhook", default="list", help="Tell other programs when tasks and jobs end.")


@click.command(name="add")
@click.argument("url")
@click.option("--event", "events", metavar="NAMES", help=f"Of these, parted by commas.  [{','.join(EVENTS)}]")
@click.option(
    "--state", "states", metavar="NAMES", help="Only of these states or outcomes, parted by commas.  [all]"
)
@click.option("--job", metavar="ID", help="Only of this job.  [all]")
@click.option(
    "--secret-from",
    metavar="FILE",
    help="Sign with the first line of this file; - for stdin.  [a new secret]",
)
@style_options(stream=False)
@click.pass_obj
def webhook_add(
    app: App,
    style: Style,
    url: str,
    events: str | None,
    states: str | None,
    job: str | None,
    secret_from: str | None,
) -> None:
    """Send a signed JSON message to URL for each end of a task or job; takes an operator.

    \b
      geres webhook add https://host.example/geres
      geres webhook add https://host.example/failures --event task.ended --state failed
      geres webhook add https://host.example/nightly --event job.ended --job nightly

    It prints the secret that the messages are signed with: this once.  `geres webhook test ID` tries it.
    """
    secret = None if secret_from is None else _secret(secret_from)
    made = app.client.create_webhook(
        url,
        events=_words("events", events, EVENTS),
        states=_words("states", states, STATES),
        job=job,
        secret=secret,
    )
    if style.table:
        say(f"webhook {made.id} is told from now on; its secret is shown this once")

    def lines(one: MadeWebhook) -> Iterator[str]:
        yield f"id:     {one.id}"
        yield f"secret: {escape(one.secret)}"

    print_one(style, made, lines)


def _words(field: str, text: str | None, known: tuple[str, ...]) -> list[str]:
    """The words of a list; what is none is refused by the server, but for an empty list."""
    if text is None:
        return []
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise Invalid(f"{field}: names nothing; there are {', '.join(known)}", field=field)
    return words


def _secret(file: str) -> str:
    try:
        if file == "-":
            text = sys.stdin.read(_MOST_SECRET_BYTES)
        else:
            with Path(file).open(encoding="utf-8") as opened:
                text = opened.read(_MOST_SECRET_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"secret-from: {file} cannot be read: {error}", field="secret-from") from None
    return text.partition("\n")[0].strip()


@click.command(name="list")
@style_options()
@click.pass_obj
def webhook_list(app: App, style: Style) -> None:
    """List webhooks, what waits for each, and what fails."""
    shown = print_list(style, app.client.webhooks(), _COLUMNS)
    if style.table and not shown:
        say("there is no webhook; `geres webhook add URL` makes one")


@click.command(name="show")
@click.argument("webhook_id", metavar="ID")
@style_options(stream=False)
@click.pass_obj
def webhook_show(app: App, style: Style, webhook_id: str) -> None:
    """Show one webhook: what it is told, what was delivered, what fails."""

    def lines(one: Webhook) -> Iterator[str]:
        def moment(text: str | None) -> str:
            return show_time(text, utc=style.utc)

        yield f"url:       {escape(one.url)}"
        yield f"told of:   {escape(_told(plain(one)))}"
        yield f"made:      {moment(one.created_at)} by {escape(one.created_by)}"
        last = f", the last at {moment(one.delivered_at)}" if one.delivered_at else ""
        yield f"delivered: {one.delivered:,}{last}"
        yield f"waiting:   {one.waiting:,}"
        if one.dropped:
            yield f"dropped:   {one.dropped:,}"
        if one.failing_since:
            tried = f"{plural(one.tries, 'try', 'tries')}, the next at {moment(one.next_try_at)}"
            yield f"fails:     since {moment(one.failing_since)}; {tried}"
        if one.error:
            yield f"error:     {escape(one.error)} ({moment(one.error_at)})"

    print_one(style, app.client.webhook(webhook_id), lines)


@click.command(name="test")
@click.argument("webhook_id", metavar="ID")
@style_options(stream=False)
@click.pass_obj
def webhook_test(app: App, style: Style, webhook_id: str) -> int:
    """Send a test message now and tell how it was taken.  Exit status 1 where it was not."""

    def lines(one: WebhookTested) -> Iterator[str]:
        took = f"in {one.seconds * 1000:.0f} ms"
        yield f"it answered {one.status} {took}" if one.good else f"failed {took}: {escape(one.error or '')}"

    tested = app.client.test_webhook(webhook_id)
    print_one(style, tested, lines, key="status")
    return 0 if tested.good else 1


@click.command(name="remove")
@click.argument("webhook_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def webhook_remove(app: App, webhook_id: str, yes: bool) -> None:
    """Send nothing more to it.  What waits is dropped."""
    if not yes:
        found = app.client.webhook(webhook_id)
        question = (
            f"Remove webhook {found.id} to {escape(found.url)}, for which {found.waiting:,} messages wait?"
        )
        if not sys.stdin.isatty():
            raise Invalid(f"{question} Nobody can be asked here: say --yes")
        click.confirm(question, abort=True, err=True)
    removed = app.client.remove_webhook(webhook_id)
    say(f"webhook {removed.id} to {escape(removed.url)} is removed")
