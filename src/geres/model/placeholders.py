"""Placeholders in what an array runs: `{}`, `{.}`, `{/}`, `{index}` and `{task}`."""

from __future__ import annotations

import re

from geres.model.ids import number_of, show_task

_MARK = re.compile(r"\{(?:|\.|/|index|task)\}")


def replace_all(text: str, task: int, item: str | None) -> str:
    """The text for one task of an array; `task` is its key.

    `{}` is the item (the index in an array of a range), `{.}` the item without its extension, `{/}` its last
    part, `{index}` the task's number, `{task}` its id.  Other braces stay as they are.
    """
    if "{" not in text:
        return text
    index = str(number_of(task))
    value = index if item is None else item
    return _MARK.sub(lambda match: _value(match[0], value, index, task), text)


def _value(mark: str, item: str, index: str, task: int) -> str:
    match mark:
        case "{}":
            return item
        case "{.}":
            return _without_extension(item)
        case "{/}":
            return item.rstrip("/").rpartition("/")[2]
        case "{index}":
            return index
    return show_task(task)


def _without_extension(item: str) -> str:
    folder, slash, name = item.rpartition("/")
    stem, dot, _ = name.rpartition(".")
    return folder + slash + stem if dot and stem else item
