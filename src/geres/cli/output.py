"""Data on stdout: aligned tables, JSON, CSV or the caller's own format; talk on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from types import UnionType
from typing import IO, Any, get_args, get_origin

import click
import msgspec

from geres.errors import Invalid
from geres.model.nearest import did_you_mean
from geres.model.tasks import Usage
from geres.model.units import show_duration, show_size

#: Lines of a list on a terminal, where nobody asked for more or fewer.
TERMINAL_LINES = 50
_GAP = "  "
_NARROWEST = 12
_COLOURS = {
    "succeeded": "32",
    "idle": "32",
    "completed": "32",
    "active": "32",
    "running": "36",
    "assigned": "36",
    "failed": "31",
    "lost": "31",
    "start_failed": "31",
    "cancelled": "33",
    "held": "33",
    "blocked": "33",
    "disabled": "33",
    "draining": "33",
    "offline": "33",
}


@dataclass(frozen=True)
class Column:
    """A column of a table: its dotted name in the API's object, its heading and how a cell is shown."""

    name: str
    heading: str
    show: Callable[[Any], str] | None = None
    right: bool = False
    of_row: bool = False  #: `show` gets the whole object, for a cell made of several values
    needs: tuple[str, ...] = ()  #: other fields that such a cell is made of


@dataclass(frozen=True)
class Style:
    """How the caller wants the data."""

    json: bool = False
    jsonl: bool = False
    csv: bool = False
    format: str | None = None
    quiet: bool = False
    utc: bool = False
    select: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """True where a program reads the output, so that all of it is wanted."""
        return self.json or self.jsonl or self.csv or not sys.stdout.isatty()

    @property
    def table(self) -> bool:
        return not (self.json or self.jsonl or self.csv or self.format or self.quiet)


def style_options(*, stream: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of all commands that print data; they arrive as one `style`."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            given = {name: kwargs.pop(name) for name in ("json", "csv", "format", "quiet", "utc", "select")}
            given["jsonl"] = kwargs.pop("jsonl", False)
            given["select"] = tuple(part for part in (given["select"] or "").split(",") if part)
            kinds = [name for name in ("json", "jsonl", "csv", "format", "quiet") if given[name]]
            if len(kinds) > 1:
                raise click.UsageError(f"--{kinds[0]} and --{kinds[1]} do not go together")
            return command(*args, style=Style(**given), **kwargs)

        wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
        if hasattr(command, "__click_params__"):
            wrapped.__click_params__ = command.__click_params__  # type: ignore[attr-defined]
        options = [
            click.option("--json", is_flag=True, help="The API's own objects as JSON."),
            *([click.option("--jsonl", is_flag=True, help="One JSON object a line.")] if stream else []),
            click.option("--csv", is_flag=True, help="Comma-separated values with a heading."),
            click.option("--format", metavar="TEXT", help="Like '{id:>8} {state} {usage.max_rss_bytes}'."),
            click.option("-q", "--quiet", is_flag=True, help="Only ids."),
            click.option("--select", metavar="NAMES", help="Columns of the table, like id,state,node."),
            click.option("--utc", is_flag=True, help="Times in UTC instead of local time."),
        ]
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return add


def print_list(
    style: Style, items: Iterable[Any], columns: list[Column], *, key: str = "id", more: str | None = None
) -> int:
    """Print a list and return how many; `key` is the field that `--quiet` prints.

    Items are printed as they come, but for tables on a terminal, which are aligned first.
    """
    chosen = [_column(name, columns) for name in style.select] or columns
    if style.select and not (style.json or style.jsonl):
        items = _with_fields(items, style.select)
    if style.json:
        return _print_json(items)
    if style.jsonl:
        return _each(items, lambda row: _json(row))
    if style.csv:
        return _print_csv(items, chosen)
    if style.format is not None:
        formatter = Formatter(style.format)
        return _each(items, lambda row: formatter(plain(row)))
    if style.quiet:
        return _each(items, lambda row: escape(str(pick(plain(row), key))))
    return _print_table(items, chosen, style)


def print_one(style: Style, item: Any, lines: Callable[[Any], Iterable[str]], *, key: str = "id") -> None:
    """Print one object: `lines` gives the text for people."""
    if style.json or style.jsonl:
        write_line(_json(item) if style.jsonl else pretty_json(item))
    elif style.csv:
        flat = dict(flatten(plain(item)))
        _print_csv([flat], [Column(name, name) for name in flat])
    elif style.format is not None:
        write_line(Formatter(style.format)(plain(item)))
    elif style.quiet:
        write_line(escape(str(pick(plain(item), key))))
    else:
        for line in lines(item):
            write_line(line)


def check_names(style: Style, kind: type) -> None:
    """Raise Invalid where --format or --select names what objects of this kind do not have."""
    names = Formatter(style.format).names if style.format is not None else list(style.select)
    if names:
        known = field_names(kind)
        within = tuple(
            one.removesuffix("KEY").removesuffix("N") for one in known if one.endswith((".KEY", ".N"))
        )
        for name in names:
            if name not in known and not name.startswith(within):
                raise _no_field(name, known, "format" if style.format is not None else "select")


def named_fields(style: Style, columns: list[Column]) -> list[str]:
    """The fields of an object that printing it in this style takes."""
    if style.format is not None:
        names = Formatter(style.format).names
    elif style.quiet:
        names = ["id"]
    else:
        chosen = [_column(name, columns) for name in style.select] or columns
        names = [name for column in chosen for name in (column.name, *column.needs)]
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def field_names(kind: Any, within: str = "") -> list[str]:
    """The dotted names of all that objects of this kind hold; `meta.KEY` for a map."""
    names: list[str] = []
    for field in msgspec.structs.fields(kind):
        whole = within + field.name
        names.append(whole)
        for one in get_args(field.type) if isinstance(field.type, UnionType) else (field.type,):
            if get_origin(one) is dict:
                names.append(f"{whole}.KEY")
            elif get_origin(one) is list:
                names.append(f"{whole}.N")
            elif isinstance(one, type) and issubclass(one, msgspec.Struct):
                names += field_names(one, f"{whole}.")
    return names


def _no_field(name: str, known: Iterable[str], option: str) -> Invalid:
    known = sorted(known)
    hint = did_you_mean(name, known)
    if not hint:
        named = [one for one in known if "." not in one]
        hint = f"; there are {', '.join(named)}" + (" and more below them" if len(named) < len(known) else "")
    return Invalid(f"{option}: there is no field {name!r}{hint}", field=option)


class Formatter:
    """Python's format language over dotted names: `{id:>8} {usage.max_rss_bytes}`.

    What has no value prints `-`, so that columns stay in their places.
    """

    def __init__(self, text: str) -> None:
        from string import Formatter as Parser  # only own formats need it

        text = text.replace("\\t", "\t").replace("\\n", "\n")
        try:
            self._parts = [(literal, name, spec or "") for literal, name, spec, _ in Parser().parse(text)]
        except ValueError as error:
            raise Invalid(
                f"format: {error}; write names in braces, like '{{id:>8}} {{state}}'", field="format"
            ) from None
        self.names = [name for _, name, _ in self._parts if name is not None]
        if not self.names:
            raise Invalid(
                "format: names no field; write names in braces, like '{id:>8} {state}'", field="format"
            )

    def __call__(self, row: Any) -> str:
        text = ""
        for literal, name, spec in self._parts:
            text += literal
            if name is not None:
                text += self._shown(pick(row, name, strict=True), spec, name)
        return text

    @staticmethod
    def _shown(value: Any, spec: str, name: str) -> str:
        if isinstance(value, (dict, list)):
            value = msgspec.json.encode(value).decode()
        if isinstance(value, str):
            value = escape(value)
        if value is None:
            value = "-"
            spec = spec.rstrip("bcdeEfFgGnoxX%,_")
        try:
            return format(value, spec)
        except (ValueError, TypeError):
            try:
                return format(str(value), spec.rstrip("bcdeEfFgGnoxX%,_"))
            except ValueError:
                raise Invalid(f"format: {spec!r} does not fit {name}", field="format") from None


def plain(item: Any) -> Any:
    """The API's object as JSON has it."""
    return item if isinstance(item, dict) else msgspec.to_builtins(item)


def pick(row: Any, name: str, *, strict: bool = False, option: str = "format") -> Any:
    """The value of a dotted name; None where a part has no value.

    With `strict`, a name that the object does not have raises Invalid with those it has.
    """
    value = row
    for part in name.split("."):
        if value is None:
            return None
        if isinstance(value, dict):
            if part not in value and strict and value is row:
                raise _no_field(name, value, option)
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def flatten(row: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """The object's values under dotted names; lists stay whole."""
    for name, value in row.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{within}{name}.")
        else:
            yield within + name, value


def say(text: str) -> None:
    """Talk: one line on stderr.  A closed stderr is not worth dying for."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass


def write_line(text: str) -> None:
    """Data: one line on stdout."""
    sys.stdout.write(text + "\n")


def escape(text: str) -> str:
    """The text with control characters shown, so that no name drives the terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def pretty_json(item: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(item), indent=2).decode()


def show_time(text: str | None, *, utc: bool = False, now: datetime | None = None) -> str:
    """A time of the API for people: local unless `utc`; today's without the date."""
    if text is None:
        return ""
    if utc:
        return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S}Z"
    today = (now or datetime.now().astimezone()).date()
    return _local(text[:19] + text[26:] if text[19:20] == "." else text, today)


@lru_cache(maxsize=4096)
def _local(text: str, today: date) -> str:
    """Long lists have many times of the same second."""
    moment = datetime.fromisoformat(text).astimezone()
    return f"{moment:%H:%M:%S}" if moment.date() == today else f"{moment:%Y-%m-%d %H:%M}"


def seconds_since(text: str | None) -> float | None:
    """Seconds from a time of the API until now, by this machine's clock."""
    if text is None:
        return None
    moment = datetime.fromisoformat(text)
    return max(0.0, (datetime.now(moment.tzinfo) - moment).total_seconds())


def show_since(text: str | None) -> str:
    return show_duration(seconds_since(text))


def show_usage(usage: Usage) -> str:
    """What a task or a job used, in words."""
    return (
        f"{show_duration(usage.wall_seconds)} wall, {show_duration(usage.user_seconds)} user, "
        f"{show_duration(usage.system_seconds)} system"
        + (f", {show_size(usage.max_rss_bytes)} peak memory" if usage.max_rss_bytes else "")
    )


def show_bytes(value: int | None) -> str:
    return show_size(value) if value else ""


def show_number(value: float | None) -> str:
    return "" if value is None else f"{value:.15g}"


def colour(text: str, stream: IO[str] | None = None) -> str:
    """The text in the colour of the state it names, on a terminal that wants colours."""
    code = _COLOURS.get(text.strip())
    return f"\x1b[{code}m{text}\x1b[0m" if code and wants_colour(stream or sys.stdout) else text


def wants_colour(stream: IO[str]) -> bool:
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _with_fields(items: Iterable[Any], names: Iterable[str]) -> Iterator[Any]:
    """The items as they come.  Raises Invalid where the first has no such field."""
    for count, item in enumerate(items):
        if not count:
            for name in names:
                pick(plain(item), name, strict=True, option="select")
        yield item


def _column(name: str, columns: list[Column]) -> Column:
    return next((one for one in columns if one.name == name), Column(name, name.upper()))


def _json(item: Any) -> str:
    return msgspec.json.encode(item).decode()


def _each(items: Iterable[Any], line: Callable[[Any], str]) -> int:
    count = 0
    for item in items:
        write_line(line(item))
        count += 1
    return count


def _print_json(items: Iterable[Any]) -> int:
    """One array, written as the items come."""
    count = 0
    sys.stdout.write("[")
    for count, item in enumerate(items, 1):
        sys.stdout.write(("\n  " if count == 1 else ",\n  ") + _json(item))
    sys.stdout.write("\n]\n" if count else "]\n")
    return count


def _print_csv(items: Iterable[Any], columns: list[Column]) -> int:
    import csv  # only this format needs it

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([column.name for column in columns])
    count = 0
    for item in items:
        count += 1
        row = plain(item)
        writer.writerow([_csv_cell(pick(row, column.name)) for column in columns])
    return count


def _csv_cell(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        return msgspec.json.encode(value).decode()
    return escape(value) if isinstance(value, str) else value


def _print_table(items: Iterable[Any], columns: list[Column], style: Style) -> int:
    cells = [_cell_of(column, style) for column in columns]
    rows = [[cell(row) for cell in cells] for row in map(plain, items)]
    headings = [column.heading for column in columns]
    for line in table_lines(headings, rows, [column.right for column in columns], _width()):
        write_line(line)
    return len(rows)


def table_lines(
    headings: list[str], rows: list[list[str]], right: list[bool], width: int | None
) -> Iterator[str]:
    """Aligned lines; where `width` is known the last column is cut to it.  No rows, no heading."""
    if not rows:
        return
    widths = [
        max(len(heading), max(map(len, column)))
        for heading, column in zip(headings, zip(*rows, strict=True), strict=True)
    ]
    if width is not None:
        room = width - sum(widths[:-1]) - len(_GAP) * (len(widths) - 1)
        widths[-1] = min(widths[-1], max(room, _NARROWEST))
    bold = wants_colour(sys.stdout)
    heading = _line(headings, widths, right)
    yield f"\x1b[1m{heading}\x1b[0m" if bold else heading
    if width is None and not bold:  # nothing to cut or colour
        line = _GAP.join(f"%{'' if right[i] else '-'}{widths[i]}s" for i in range(len(widths)))
        for row in rows:
            yield (line % tuple(row)).rstrip()
        return
    for row in rows:
        yield _line(row, widths, right, coloured=bold)


def _line(cells: list[str], widths: list[int], right: list[bool], *, coloured: bool = False) -> str:
    parts = []
    for i, cell in enumerate(cells):
        if len(cell) > widths[i]:
            cell = cell[: widths[i] - 1] + "…"
        last = i == len(cells) - 1
        text = cell.rjust(widths[i]) if right[i] else cell if last else cell.ljust(widths[i])
        parts.append(colour(text) if coloured else text)
    return _GAP.join(parts).rstrip()


def _cell_of(column: Column, style: Style) -> Callable[[Any], str]:
    """What makes a column's cell out of an object."""
    name, show = column.name, column.show
    if show is not None and column.of_row:
        return lambda row: escape(show(row))
    get: Callable[[Any], Any] = lambda row: pick(row, name) if "." in name else row.get(name)  # noqa: E731
    if show is not None:
        return lambda row: escape(show(get(row)))
    if name.endswith(("_at", "_since")):
        now = datetime.now().astimezone()
        return lambda row: show_time(get(row), utc=style.utc, now=now)
    return lambda row: _text(get(row))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, (dict, list)):
        return escape(msgspec.json.encode(value).decode()) if value else ""
    return "" if value is None else str(value)


def _width() -> int | None:
    if not sys.stdout.isatty():
        return None
    return os.get_terminal_size(sys.stdout.fileno()).columns
