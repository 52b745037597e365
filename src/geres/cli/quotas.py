"""`geres quota`: how much may be had at once, by whom, and how much is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from geres.cli.main import App, group
from geres.cli.output import Column, Style, escape, print_list, say, show_number, style_options
from geres.errors import Invalid
from geres.model.quotas import EACH, Quota
from geres.model.units import parse_cpus

_LIMITS = ("running", "cpus", "queued", "jobs")


def _of(name: str) -> Column:
    def show(row: dict[str, Any]) -> str:
        most, used = row["most"][name], row["used"] and row["used"][name]
        shown = "" if used is None else show_number(used)
        if most is None:
            return shown
        return f"{shown} of {show_number(most)}" if shown else f"at most {show_number(most)}"

    return Column(f"most.{name}", name.upper(), show, right=True, of_row=True)


def _whose(row: dict[str, Any]) -> str:
    if row["user"] is None:
        return f"tenant {row['tenant']}"
    return "each user" if row["user"] == EACH else str(row["user"])


_COLUMNS = [Column("user", "OF", _whose, of_row=True), *map(_of, _LIMITS)]

quota = group("quota", default="show", help="Show quotas and what is used of them; set them.")


@click.command(name="show")
@click.argument("user", required=False)
@style_options()
@click.pass_obj
def quota_show(app: App, style: Style, user: str | None) -> None:
    """Show what may be had at once, and what is: of the tenant and of users, or of one USER.

    An empty cell has no limit.  RUNNING are tasks on nodes and CPUS what they asked for: beyond these, tasks
    wait.  QUEUED are tasks that wait, JOBS those that have not ended: beyond these, a submit is refused.
    """
    print_list(style, app.client.quotas(user), _COLUMNS, key="user")


@click.command(name="set")
@click.option("--user", metavar="NAME", help="Of this user; '*' of each without an own one.  [the tenant]")
@click.option("--running", metavar="N", help="Tasks on nodes at once; `none` for no limit.")
@click.option("--cpus", metavar="N", help="Cpus of tasks on nodes.")
@click.option("--queued", metavar="N", help="Tasks that wait.")
@click.option("--jobs", metavar="N", help="Jobs that have not ended, without `default`.")
@style_options()
@click.pass_obj
def quota_set(app: App, /, style: Style, user: str | None, **limits: str | None) -> None:
    """Limit what a user, each user or the whole tenant may have at once; takes an operator.

    \b
      geres quota set --running 200 --cpus 800
      geres quota set --user '*' --queued 10000 --jobs 50
      geres quota set --user ann --running none

    What is there already stays and runs on.
    """
    given = {name: _amount(name, text) for name, text in limits.items() if text is not None}
    if not given:
        raise Invalid("quota: nothing to set; name --running, --cpus, --queued or --jobs", field="quota")
    print_list(style, app.client.set_quota(user, **given), _COLUMNS, key="user")
    if user not in (None, EACH) and not any(one.name == user for one in app.client.users()):
        say(f"geres: no user {escape(user or '')} has come yet; it holds from the first log-in on")


def _amount(name: str, text: str) -> float | int | None:
    if text.lower() == "none":
        return None
    if name == "cpus":
        return parse_cpus(text, "cpus") if text != "0" else 0
    if not (text.isascii() and text.isdigit()):
        raise Invalid(f"{name}: {text!r} is no number; write one from 0 on, or none", field=name)
    return int(text)


def quota_lines(quotas: list[Quota]) -> Iterator[str]:
    """The limits that hold for the caller, for people."""
    names = dict(zip(_LIMITS, ("tasks running", "cpus in use", "tasks waiting", "open jobs"), strict=True))
    for one in quotas:
        for name, words in names.items():
            most, used = getattr(one.most, name), getattr(one.used, name) if one.used else None
            if most is not None and used is not None:
                whose = f"tenant {escape(one.tenant)}" if one.user is None else escape(one.user)
                yield f"quota of {whose}: {show_number(used)} of {show_number(most)} {words}"
