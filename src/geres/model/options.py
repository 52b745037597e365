"""From people's units to a specification: the options of the SDK, the command line and spec files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from geres.errors import Invalid
from geres.model.nearest import nearest
from geres.model.specs import check_priority, check_row, check_spec
from geres.model.tasks import HIGHEST_PRIORITY, LOWEST_PRIORITY, PRIORITIES, Retry, TaskRow, TaskSpec
from geres.model.units import parse_cpus, parse_duration, parse_size

T = TypeVar("T")


def parse_priority(value: str | int, field: str = "priority") -> int:
    """The number of `high`, `normal`, `medium`, `low` or of a number.  Raises Invalid naming `field`."""
    if isinstance(value, str):
        if value.lower() in PRIORITIES:
            return PRIORITIES[value.lower()]
        try:
            value = int(value)
        except ValueError:
            raise _invalid(
                field,
                f"{value!r} is no priority; write low, normal, high or a number from "
                f"{LOWEST_PRIORITY} to {HIGHEST_PRIORITY}",
            ) from None
    check_priority(value, field)
    return value


def task_fields(options: Mapping[str, Any], *, field: str = "", also: Iterable[str] = ()) -> dict[str, Any]:
    """The fields of a TaskSpec or TaskRow from options in people's units; what is None is left out.

    Takes the names of the SDK's keywords (`memory="8G"`, `time_limit="1h"`, `retries=3`) and the
    names of the wire (`memory_bytes`), so that a specification that was shown can be submitted again.
    Raises Invalid for an unknown name (`also` are more names to propose), a bad unit or a wrong type.
    """
    fields: dict[str, Any] = {}
    retry: dict[str, Any] = {}
    for name, value in options.items():
        if value is None:
            continue
        try:
            if name in _RETRY_OPTIONS:
                key, parse = _RETRY_OPTIONS[name]
                retry[key] = parse(value, field + name)
            elif name in _PARSED:
                key, parse = _PARSED[name]
                fields[key] = parse(value, field + name)
            elif name in _SPEC_NAMES:
                fields[name] = value
            else:
                raise unknown_option(name, also, field)
        except (TypeError, ValueError) as error:
            raise _invalid(field + name, f"{value!r} does not fit: {error}") from None
    if retry:
        fields["retry"] = msgspec.structs.replace(fields.get("retry", Retry()), **retry)
    return fields


def spec_from_options(*, field: str = "", needs_command: bool = True, **options: Any) -> TaskSpec:
    """A checked TaskSpec from options in people's units.  Raises Invalid naming the field."""
    fields = task_fields(options, field=field)
    params = fields.pop("params", None)  # msgspec converts no Raw
    spec = msgspec.structs.replace(typed(TaskSpec, fields, field), params=params)
    check_spec(spec, needs_command=needs_command, field=field)
    return spec


def row_from_options(options: Mapping[str, Any], defaults: TaskSpec, *, field: str = "") -> TaskRow:
    """A checked row of a bulk submit from options in people's units.  Raises Invalid naming the field."""
    fields = task_fields(options, field=field)
    for name in fields:
        if name not in _ROW_NAMES:
            raise _invalid(field + name, "is the same for all tasks of a submit; give it as an option")
    row = typed(TaskRow, fields, field)
    check_row(row, defaults, field=field)
    return row


def unknown_option(name: str, also: Iterable[str] = (), field: str = "") -> Invalid:
    """The refusal of an unknown option, with the nearest one that exists."""
    known = sorted({*_PARSED, *_RETRY_OPTIONS, *_SPEC_NAMES, *also})
    near = nearest(name, known)
    return _invalid(field + name, "is no option" + (f"; did you mean {near!r}?" if near else ""))


def typed(kind: type[T], fields: dict[str, Any], field: str) -> T:
    try:
        return msgspec.convert(fields, kind, strict=True)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at ")
        name = path.strip("`").removeprefix("$.").removeprefix("$")
        raise Invalid(f"{field}{name}: {problem}", field=f"{field}{name}") from None


def _invalid(field: str, problem: str) -> Invalid:
    return Invalid(f"{field}: {problem}", field=field)


def _whole(value: Any, field: str) -> int:
    if isinstance(value, bool):
        raise _invalid(field, f"{value!r} is no whole number")
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        raise _invalid(field, f"{value!r} is no whole number") from None
    if isinstance(value, float) and (math.isnan(value) or number != value):
        raise _invalid(field, f"{value!r} is no whole number")
    return number


def _command(value: Any, field: str) -> list[str]:
    if isinstance(value, str):
        raise _invalid(
            field,
            'is one text; write a list of words, like ["echo", "hello"], or '
            f"shell={value[:40]!r} for a shell line",
        )
    words = list(value)
    for position, word in enumerate(words):
        if type(word) is not str:
            words[position] = _word(word, f"{field}[{position}]")
    return words


def _word(value: Any, field: str) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, (bytes, list, dict)):
        raise _invalid(field, f"{value!r} is no text")
    return str(value)


def _texts(value: Any, field: str) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise _invalid(field, f"{value!r} is no table of names and values")
    return {_word(key, field): _word(one, f"{field}.{key}") for key, one in value.items()}


def _counts(value: Any, field: str) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise _invalid(field, f"{value!r} is no table of names and counts")
    return {_word(key, field): _whole(one, f"{field}.{key}") for key, one in value.items()}


def _names(value: Any, field: str) -> list[str]:
    if isinstance(value, str):
        names = [part.strip() for part in value.split(",") if part.strip()]
        if not names:  # as from a variable that is not set: not a wish for any node
            raise _invalid(field, "is empty")
        return names
    return [_word(one, field) for one in value]


def _umask(value: Any, field: str) -> int:
    try:
        return int(value, 8) if isinstance(value, str) else _whole(value, field)
    except ValueError:
        raise _invalid(field, f"{value!r} is no octal number; write one like 022") from None


def _path(value: Any, field: str) -> str:
    return _word(value, field)


def _retry_value(value: Any, field: str) -> Retry:
    return value if isinstance(value, Retry) else typed(Retry, dict(value), field + ".")


def _params(value: Any, field: str) -> msgspec.Raw:
    return value if isinstance(value, msgspec.Raw) else msgspec.Raw(msgspec.json.encode(value))


_PARSED: dict[str, tuple[str, Callable[[Any, str], Any]]] = {
    "command": ("command", _command),
    "cpus": ("cpus", parse_cpus),
    "memory": ("memory_bytes", parse_size),
    "gpus": ("gpus", _whole),
    "resources": ("resources", _counts),
    "priority": ("priority", parse_priority),
    "meta": ("meta", _texts),
    "env": ("env", _texts),
    "cwd": ("cwd", _path),
    "stdout": ("stdout", _path),
    "stderr": ("stderr", _path),
    "nodelist": ("nodelist", _names),
    "umask": ("umask", _umask),
    "output_limit": ("output_limit_bytes", parse_size),
    "disk": ("disk_bytes", parse_size),
    "time_limit": ("time_limit_seconds", parse_duration),
    "grace": ("grace_seconds", parse_duration),
    "retain": ("retain_seconds", parse_duration),
    "retry": ("retry", _retry_value),
    "label": ("max_parallel_label", _word),
    "params": ("params", _params),
}
_RETRY_OPTIONS: dict[str, tuple[str, Callable[[Any, str], Any]]] = {
    "retries": ("most", _whole),
    "retry_delay": ("delay_seconds", parse_duration),
    "most_retry_delay": ("most_delay_seconds", parse_duration),
}
_SPEC_NAMES = frozenset(one.name for one in msgspec.structs.fields(TaskSpec))
_ROW_NAMES = frozenset(one.name for one in msgspec.structs.fields(TaskRow))
