"""What a command line asks to be run: one task, an array, or many; read, checked and submitted."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from geres.cli.output import say
from geres.cli.task_options import check_caller, own_options, place, read_text
from geres.errors import Invalid
from geres.model.jobs import ArraySpec, JobSpec
from geres.model.options import row_from_options, spec_from_options
from geres.model.specs import check_job
from geres.model.tasks import TaskRow, TaskSpec

_FILE_ONLY = ("array", "items", "max_parallel", "job", "after")
_ARRAY = re.compile(r"([0-9,:\-]+)(?:%(\d+))?")
_MOST_BAD_LINES = 10


class Work(msgspec.Struct, kw_only=True):
    """A checked request: a task, an array (`array` is set) or many (`rows` is set)."""

    spec: TaskSpec
    array: ArraySpec | None = None
    max_parallel: int | None = None
    rows: list[TaskRow] | None = None
    job: str | None = None
    after: list[str] = []
    dry_run: bool = False

    def job_spec(self) -> JobSpec:
        """The job that an array makes."""
        return JobSpec(task=self.spec, array=self.array, max_parallel=self.max_parallel, after=self.after)


def read_work(app: Any, words: Sequence[str], flags: Mapping[str, Any], *, stdin: bool = False) -> Work:
    """The request of a command line.  Raises Invalid, naming the option, before anything is sent.

    `stdin` gives a single task a stdin that a client can write to.
    """
    check_caller()
    file = read_file(flags["file"]) if flags["file"] else {}
    extra = {name: file.pop(name) for name in _FILE_ONLY if name in file}
    options = own_options(flags, file)
    words, listed = _listed(words, options)
    what_runs(options, words, flags, file)
    array, most = _array(flags, extra, listed)
    if flags["from_"] and array is not None:
        raise Invalid("from: does not go together with --array or --items")
    max_parallel = flags["max_parallel"] or most or extra.get("max_parallel")
    if max_parallel is not None and array is None:
        raise Invalid("max_parallel: goes with --array or --items; for a job, `geres job edit` sets it")
    if stdin and array is None and not flags["from_"]:
        options["stdin"] = True
    work = Work(
        spec=spec_from_options(needs_command=not flags["from_"], **options),
        array=array,
        max_parallel=max_parallel,
        job=flags["job"] or extra.get("job"),
        after=[*_after(extra.get("after", [])), *flags["after"]],
        dry_run=flags["dry_run"],
    )
    if flags["from_"]:
        work.rows = read_rows(flags["from_"], work.spec)
    if array is not None:
        if work.job is not None:
            raise Invalid("array: makes a job of its own; leave out --job")
        check_job(work.job_spec())
    if "host" not in options:
        # Last, for it may ask the cluster: bad words are told without one.
        place(options, flags["cwd"], flags["env"], sees=lambda path: _some_node_sees(app.client, path))
        work.spec = spec_from_options(needs_command=not flags["from_"], **options)
    return work


def what_runs(
    options: dict[str, Any], words: Sequence[str], flags: Mapping[str, Any], file: Mapping[str, Any]
) -> None:
    """Put the words into the options, as an argv or with --shell as a line."""
    if not words:
        if not (flags["from_"] or "command" in options or "shell" in options or "handler" in options):
            raise Invalid("command: is missing; say what to run", field="command")
        return
    if flags["from_"]:
        raise Invalid("command: the lines of --from say what to run; leave the command out", field="command")
    for name in ("command", "shell", "handler"):
        if name in file:
            raise Invalid(
                f"command: {flags['file']} says what to run (`{name}`); leave it out there or here",
                field="command",
            )
    if flags["shell"]:
        options["shell"] = " ".join(words)
    else:
        options["command"] = list(words)


def read_file(path: str) -> dict[str, Any]:
    """The options of a TOML, YAML or JSON file.  Raises Invalid naming the file and the option."""
    text = read_text(path, "file")
    values: Any
    if path.endswith(".json") or (path == "-" and text.lstrip().startswith("{")):
        try:
            values = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise Invalid(f"file: {path} is no JSON: {error}", field="file") from None
    elif path.endswith((".yaml", ".yml")):
        from msgspec import yaml  # only a call with such a file needs it

        try:
            values = yaml.decode(text)
        except msgspec.DecodeError as error:
            raise Invalid(f"file: {path} is no YAML: {_one_line(error)}", field="file") from None
    else:
        import tomllib  # only a call with a file needs it

        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise Invalid(f"file: {path} is no TOML: {error}", field="file") from None
    if not isinstance(values, dict):
        raise Invalid(f"file: {path} holds no table of options", field="file")
    if isinstance(values.get("task"), dict):
        values = {**{name: one for name, one in values.items() if name != "task"}, **values["task"]}
    for name in ("command", "items", "env", "meta"):
        _only_text(path, name, values.get(name))
    known = {name: one for name, one in values.items() if name not in _FILE_ONLY}
    try:
        spec_from_options(needs_command=False, **known)
    except Invalid as error:
        raise Invalid(f"{path}: {error}", **error.facts) from None
    return dict(values)


def _only_text(path: str, name: str, values: Any) -> None:
    """Raise Invalid for what the file's format took for a number: 1.10 would run as 1.1, 010 as 8."""
    parts = (
        values.items() if isinstance(values, dict) else enumerate(values if isinstance(values, list) else ())
    )
    for key, one in parts:
        if isinstance(one, (bool, int, float)):
            where = f"{name}[{key}]" if isinstance(values, list) else f"{name}.{key}"
            raise Invalid(f"{path}: {where}: {one!r} is no text; write it in quotes", field=name)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def read_rows(path: str, defaults: TaskSpec) -> list[TaskRow]:
    """The tasks of a file with a JSON object or list in each line, over the options of the command line.

    Raises Invalid that names the first bad lines; then nothing was sent.
    """
    rows: list[TaskRow] = []
    bad: list[str] = []
    for number, line in enumerate(read_text(path, "from").splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = msgspec.json.decode(line)
            if isinstance(values, list):
                values = {"command": values}
            if not isinstance(values, dict):
                raise Invalid("is neither an object of options nor a list of words")
            rows.append(row_from_options(values, defaults))
        except msgspec.DecodeError as error:
            bad.append(f"line {number}: no JSON: {error}")
        except Invalid as error:
            bad.append(f"line {number}: {error}")
    if bad:
        more = f"; and {len(bad) - _MOST_BAD_LINES} more" if len(bad) > _MOST_BAD_LINES else ""
        raise Invalid(
            f"from: {len(bad)} of {len(rows) + len(bad)} lines of {path} are bad, nothing was stored: "
            + "; ".join(bad[:_MOST_BAD_LINES])
            + more,
            field="from",
            lines=len(bad),
        )
    if not rows:
        raise Invalid(f"from: {path} holds no task", field="from")
    return rows


def _listed(words: Sequence[str], options: Mapping[str, Any]) -> tuple[Sequence[str], list[str] | None]:
    """The command without its `::: a b c`, and those items."""
    if ":::" not in words:
        return words, None
    cut = list(words).index(":::")
    items = list(words[cut + 1 :])
    if not items:
        raise Invalid("items: there are none after `:::`", field="items")
    return words[:cut], items


def _array(
    flags: Mapping[str, Any], extra: Mapping[str, Any], listed: list[str] | None
) -> tuple[ArraySpec | None, int | None]:
    """The array that is asked for, if one is, and the cap that its range names."""
    given = [
        name
        for name, value in (("--array", flags["array"]), ("--items", flags["items"]), (":::", listed))
        if value is not None
    ]
    if len(given) > 1:
        raise Invalid(f"array: {given[0]} and {given[1]} do not go together", field="array")
    if flags["array"] is not None or ("array" in extra and not given):
        text = flags["array"] if flags["array"] is not None else str(extra["array"])
        match = _ARRAY.fullmatch(text)
        if not match:
            raise Invalid(
                f"array: {text!r} is no range; write one like 1-10, 1-10:2 or 1-10%3", field="array"
            )
        if match[2] is not None and int(match[2]) < 1:
            raise Invalid(f"array: {text!r} lets none run; the number after % is at least 1", field="array")
        return ArraySpec(range=match[1]), int(match[2]) if match[2] else None
    if listed is not None:
        return ArraySpec(items=listed), None
    if flags["items"] is not None:
        return ArraySpec(items=read_items(flags["items"], null=flags["null"])), None
    if "items" in extra:
        items = extra["items"]
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise Invalid("items: is no list of texts", field="items")
        return ArraySpec(items=items), None
    return None, None


def read_items(path: str, *, null: bool = False) -> list[str]:
    """One item a line, as it is; an empty line is an empty item.  Raises Invalid where there is none."""
    text = read_text(path, "items")
    end = "\0" if null else "\n"
    items = text.split(end)
    if items and items[-1] == "":
        items.pop()
    if not null:
        items = [item.removesuffix("\r") for item in items]
    if not items:
        raise Invalid(f"items: {path} holds none", field="items")
    return items


def _after(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        values = [values]
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise Invalid("after: is no list of ids; ids are texts, so write them in quotes", field="after")
    yield from values


def _some_node_sees(client: Any, path: str) -> bool:
    """True where a node is on this host or shares the path; the local cluster's node always is."""
    if client.transport.address.origin.endswith("address.json"):
        return True
    host = socket.gethostname()
    for node in client.nodes():
        if node.host == host:
            return True
        if any(path == one or path.startswith(one.rstrip("/") + "/") for one in node.shared_paths):
            return True
    return False


def warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        say(f"geres: {warning}")
