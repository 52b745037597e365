"""Ids as they are typed: words, or `-` for those on stdin."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import click

from geres.errors import Invalid


def ids_argument(*, required: bool = True, metavar: str = "ID...") -> Callable[[Any], Any]:
    """The argument `ids`; `-` among them stands for the words on stdin."""
    return click.argument("ids", nargs=-1, required=required, metavar=metavar)


def read_ids(ids: Iterable[str]) -> list[str]:
    """The ids with `-` replaced by what stdin has.  Raises Invalid where that is nothing."""
    found: list[str] = []
    for one in ids:
        if one == "-":
            words = sys.stdin.read().split()
            if not words:
                raise Invalid("id: stdin holds no ids", field="id")
            found.extend(words)
        else:
            found.append(one)
    return found
