"""`geres config`: the settings and where each comes from."""

from __future__ import annotations

from typing import Any

import click

from geres.cli.main import group
from geres.cli.output import Column, Style, print_list, say, style_options
from geres.errors import Invalid

config = group("config", default="show", help="Show the settings and where they come from.")

_SECRET = ("store",)


@click.command(name="show")
@click.argument("keys", nargs=-1, metavar="[KEY...]")
@click.option("--origin", is_flag=True, help="Where each value comes from.")
@style_options()
def config_show(keys: tuple[str, ...], origin: bool, style: Style) -> int:
    """Show the settings that hold here, or only those named, like `server.port` or `client`."""
    from geres import config as settings  # reads files: only this command does

    loaded = settings.load()
    rows: list[dict[str, Any]] = [
        {"key": key, "value": _shown(key, value), "origin": where}
        for key, value, where in loaded.items()
        if not keys or any(key == one or key.startswith(one + ".") for one in keys)
    ]
    if not rows:
        raise Invalid(f"config: there is no setting {' '.join(keys)}; `geres config show` lists them")
    columns = [Column("key", "KEY"), Column("value", "VALUE")]
    print_list(style, rows, [*columns, Column("origin", "ORIGIN")] if origin else columns, key="key")
    problems = loaded.check()
    for problem in problems:
        say(f"geres: settings: {problem}")
    return 2 if problems else 0


def _shown(key: str, value: Any) -> Any:
    """The value; a password within an address is left out."""
    if key.rpartition(".")[2] in _SECRET and isinstance(value, str) and "@" in value:
        scheme, _, rest = value.partition("://")
        account, _, place = rest.rpartition("@")
        return f"{scheme}://{account.partition(':')[0]}@{place}"
    return list(value) if isinstance(value, tuple) else value
