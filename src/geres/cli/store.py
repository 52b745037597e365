"""`geres store`: back up, restore and check a store, and move it to another database."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from geres import config
from geres.cli import home as homes
from geres.cli.main import group
from geres.cli.output import escape, pretty_json, say, write_line
from geres.errors import Conflict
from geres.model.units import show_size

store = group("store", help="Back up, check and move a store.")
_STORE = click.option("--store", "url", metavar="URL", help="sqlite:PATH or postgresql://...  [this home's]")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@_STORE
def backup(file: Path, url: str | None) -> None:
    """Write a backup of the SQLite store to FILE, a tar archive; the cluster may be up.

    It holds a snapshot of the database, the outputs, and the tokens of the home: keep it where nobody else
    reads it.
    """
    from geres.server import keeping  # the server's side: only these commands need it

    done = keeping.back_up(url or keeping.default_url(), config.home(), file)
    say(f"{file}: {show_size(done['bytes'])}, with {done['blobs']:,} outputs")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def restore(file: Path) -> None:
    """Unpack a backup into this home, which must hold no database; `geres up` goes on with it."""
    from geres.server import keeping

    home = config.home()
    if homes.is_locked(home):
        raise Conflict(f"a `geres up` runs in {home}; `geres down` stops it")
    names = keeping.restore(file, home)
    say(f"restored {', '.join(names)} into {home}; `geres store check` looks at it, `geres up` starts it")


@click.command()
@_STORE
@click.option("--json", is_flag=True, help="The findings as JSON.")
def check(url: str | None, json: bool) -> int:
    """Look for damage: pages that cannot be read, facts that contradict each other, outputs that are gone.

    The cluster may be up.  Exit status 1 where something is wrong.
    """
    from geres.server import keeping

    found = list(keeping.check(url or keeping.default_url(), config.home()))
    if json:
        write_line(pretty_json([{"kind": kind, "text": text} for kind, text in found]))
    else:
        for kind, text in found:
            write_line(f"{kind}: {escape(text)}")
        if not found:
            say("nothing is wrong")
    return 1 if found else 0


@click.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--dry-run", is_flag=True, help="Check both sides and count; change nothing.")
@click.option("--json", is_flag=True, help="Rows by table, as JSON.")
def move(source: str, target: str, dry_run: bool, json: bool) -> None:
    """Move a store from sqlite:PATH to postgresql://USER@HOST/DATABASE, an empty database.

    Ids, keys, results and their numbers stay as they are; so do the outputs in the home.  Stop the server
    first.  A move that was cut off goes on where it was when it is typed again.  The source is left as it is.
    """
    from geres.server import keeping

    if dry_run:
        rows, begun = keeping.plan_move(source, target)
        talk = f"would move {sum(rows.values()):,} rows" + (", of which some are there" if begun else "")
    else:
        with _bar("moving") as tell:
            rows = keeping.move_store(source, target, tell)
        talk = (
            f"moved {sum(rows.values()):,} rows and compared them; start the server with --store {target},"
            f" and keep {source.removeprefix('sqlite:')} until you are content"
        )
    if json:
        write_line(pretty_json(rows))
    else:
        for name, count in rows.items():
            if count:
                write_line(f"{count:>12,}  {name}")
    say(talk)


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console  # slow to load: only where a bar is drawn
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task(title, total=None)
        yield lambda what, done, total: bar.update(
            line, completed=done, total=total, description=what or title
        )
