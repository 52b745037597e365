"""How lists page and end: mine, newest first, 50 lines on a terminal, then "shown of matched".

A list asks only for what it prints: the fields of its columns, or whole objects as text where JSON is wanted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import msgspec

from geres.cli.output import TERMINAL_LINES, Column, Style, check_names, named_fields, print_list, say
from geres.model.jobs import Job, JobPage
from geres.model.tasks import PartPage, Task
from geres.model.units import parse_duration, parse_time, rfc3339

_PAGE = 1000
_LARGE_PAGE = 5000  #: where all are wanted


class RawPage(msgspec.Struct, kw_only=True):
    """A page of objects as the API wrote them."""

    items: list[msgspec.Raw]
    next_cursor: str | None = None
    matched: int | None = None


def whose(client: Any, user: str | None, everyone: bool) -> str | None:
    """The submitter to list: as asked, else the caller; None for everybody's."""
    if user is not None or everyone:
        return user
    subject: str = client.whoami().subject
    return subject


def show_pages(
    style: Style, client: Any, kind: str, columns: list[Column], limit: int | None, query: dict[str, Any]
) -> None:
    """Print a list of tasks or jobs; `limit` 0 means all, None 50 lines on a terminal and all elsewhere."""
    most = limit if limit is not None else (0 if style.complete else TERMINAL_LINES)
    check_names(style, Task if kind == "tasks" else Job)
    size = min(most, _PAGE) if most else _LARGE_PAGE
    matched: list[int | None] = [None]
    asked: dict[str, Any] = {"limit": size, "count": style.table or None, **query}
    if style.json or style.jsonl:
        asked["kind"] = RawPage
    elif kind == "tasks":
        asked["kind"], asked["fields"] = PartPage, ",".join(named_fields(style, columns))
    else:
        asked["kind"] = JobPage
    pages = (client.task_pages if kind == "tasks" else client.job_pages)(**asked)

    def items() -> Iterator[Any]:
        for number, page in enumerate(_ahead(pages) if not most else pages):
            if number == 0:
                matched[0] = page.matched
            yield from page.items

    wanted = itertools.islice(items(), most) if most else items()
    shown = print_list(style, wanted, columns)
    if style.table:
        total = matched[0] if matched[0] is not None else shown
        if shown == 0:
            say(f"no {kind}" + ("; `--all` shows everybody's" if query.get("user") else ""))
        else:
            say(f"{shown:,} of {total:,} {kind}")


def _ahead(pages: Iterator[Any]) -> Iterator[Any]:
    """The pages, each asked for while the one before is printed."""
    from concurrent.futures import ThreadPoolExecutor  # only lists that are read whole need it

    with ThreadPoolExecutor(1) as threads:
        coming = threads.submit(next, pages, None)
        while (page := coming.result()) is not None:
            if page.next_cursor is not None:
                coming = threads.submit(next, pages, None)
                yield page
            else:
                yield page
                return


def moment(text: str | None, field: str) -> str | None:
    """A typed time for the API: ISO 8601, local where it names no zone, or so long ago: `2h`, `7d`."""
    if text is None:
        return None
    if text and text[-1] in "smhd" and not text[:4].isdigit():
        import time  # only "so long ago" needs it

        return rfc3339(int((time.time() - parse_duration(text, field)) * 1_000_000))
    return rfc3339(parse_time(text, field))
