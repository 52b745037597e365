"""Write the generated parts of the documentation, or with --check tell which are not as the code has it.

A page holds them between `<!-- begin generated NAME -->` and `<!-- end generated NAME -->`; the picture of
the task states is a file of its own.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import Any

import click
from litestar import Litestar
from litestar.openapi.config import OpenAPIConfig
from msgspec import NODEFAULT
from msgspec.structs import fields

from geres import config, errors
from geres.agent import main as agent
from geres.api import access
from geres.api import app as api
from geres.cli.main import Commands, cli
from geres.model.options import _PARSED, _RETRY_OPTIONS
from geres.model.states import (
    FINAL,
    MOVES,
    ON_NODE,
    WAITING,
    JobState,
    NodeState,
    Outcome,
    Reason,
    TaskState,
)
from geres.model.tasks import Retry, TaskSpec
from geres.sdk.client import Client
from geres.sdk.group import Tasks
from geres.sdk.job import Job
from geres.sdk.task import Task
from geres.server import main as server

DOCS = Path(__file__).parent
PICTURE = DOCS / "concepts" / "states.svg"
_BLOCK = re.compile(r"(<!-- begin generated (\S+) -->\n).*?(<!-- end generated \2 -->)", re.DOTALL)
_PREFIXED = re.compile(r"^\s*#: ?(.*)$")
_TRAILING = re.compile(r"^\s*(\w+)\b.*?\s#: ?(.*)$")


def comments(kind: type) -> dict[str, str]:
    """The `#:` words of a class: member to text, whether they stand above it or behind it."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in inspect.getsource(kind).splitlines():
        if match := _PREFIXED.match(line):
            above.append(match[1])
        elif match := _TRAILING.match(line):
            found[match[1]] = match[2]
            above = []
        elif above and (match := re.match(r"^\s*(\w+)\s*[:=]", line)):
            found[match[1]] = " ".join(above)
            above = []
        else:
            above = []
    return found


def table(*rows: tuple[str, ...]) -> str:
    head, *body = rows
    lines = [head, tuple("---" for _ in head), *body]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def members(kind: type[StrEnum]) -> str:
    words = comments(kind)
    return table(("", "meaning"), *((f"`{one.value}`", words.get(one.name, "")) for one in kind))


def moves() -> str:
    """Which state may follow which."""
    rows = [
        (f"`{source}`", ", ".join(f"`{one}`" for one in TaskState if one in MOVES[source]))
        for source in TaskState
    ]
    return table(("from", "to"), *rows)


def settings() -> str:
    """One section for each group of settings."""
    parts = []
    for section, kind in config.SECTIONS.items():
        words = comments(kind)
        defaults = kind()
        rows = [
            (f"`{section}.{name}`", f"`{_default(getattr(defaults, name))}`", words.get(name, ""))
            for name in (one.name for one in fields(kind))
        ]
        doc = (kind.__doc__ or "").strip()
        parts.append(f"## {section}\n\n{doc}\n\n{table(('key', 'default', ''), *rows)}")
    return "\n" + "\n".join(parts) + "\n"


def access_table() -> str:
    """Every route with the roles that may call it."""
    order = ("admin", "operator", "user", "viewer", "task", "node")
    rows = []
    for (method, path), roles in access.RULES.items():
        shown = "no token" if roles is access.NOBODY else ", ".join(role for role in order if role in roles)
        rows.append((f"`{method} {path}`", shown))
    return table(("route", "who"), *rows)


def error_table() -> str:
    rows = []
    for code, kind in errors.BY_CODE.items():
        rows.append((f"`{code}`", f"`{kind.__name__}`", str(kind.http_status), str(kind.exit_status)))
    return table(("code", "Python", "HTTP", "exit status"), *rows)


def commands() -> str:
    """The help of every command, in the order of `geres --help`."""
    os.environ |= {"GERES_HOME": "~/.local/share/geres"}
    with cli.make_context("geres", [], obj=_NoApp(), resilient_parsing=True) as context:
        parts = [f"## geres\n\n```text\n{_help(cli, context)}\n```\n"]
        for path, command, inner in every_command(cli, context):
            text = _part_help(path) if path in _PARTS else _help(command, inner)
            parts.append(f"## {path}\n\n```text\n{text}\n```\n")
    return "\n" + "\n".join(parts) + "\n"


def every_command(
    group: Commands, context: click.Context
) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Full name, command and its context, groups before what is in them."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, name
        inner = click.Context(
            command, info_name=name, parent=context, max_content_width=100, terminal_width=96
        )
        yield inner.command_path, command, inner
        if isinstance(command, Commands):
            yield from every_command(command, inner)


def options() -> str:
    """Every option of a task: its name on the client, its field on the wire, what it is."""
    words = comments(TaskSpec)
    wire = {name: field for name, (field, _) in _PARSED.items()}
    rows = []
    for one in fields(TaskSpec):
        names = [name for name, field in wire.items() if field == one.name] or [one.name]
        default = "" if one.default is NODEFAULT else _default(one.default)
        shown = "" if default in ("None", "", '""') else f"`{default}`"
        rows.append((f"`{names[0]}`", f"`{one.name}`", shown, words.get(one.name, "")))
    retry = comments(Retry)
    for name, (field, _) in _RETRY_OPTIONS.items():
        rows.append((f"`{name}`", f"`retry.{field}`", "", retry.get(field, "")))
    return table(("in Python and in files", "over HTTP", "default", ""), *rows)


def python() -> str:
    """The public methods and properties of the client's classes, with their docstrings."""
    parts = []
    for kind in (Client, Task, Tasks, Job):
        parts.append(f"## geres.{kind.__name__}\n\n{inspect.getdoc(kind)}\n")
        for name, member in _public(kind):
            shown = name if isinstance(member, property) else f"{name}{_signature(member)}"
            doc = inspect.getdoc(member) or ""
            parts.append(f"### `{name}`\n\n```python\n{shown}\n```\n\n{doc}\n")
    return "\n" + "\n".join(parts) + "\n"


def _public(kind: type) -> Iterator[tuple[str, Any]]:
    seen = set()
    for base in kind.__mro__:
        for name, member in vars(base).items():
            member = member.__func__ if isinstance(member, staticmethod) else member
            if name.startswith("_") or name in seen or base is object:
                continue
            if isinstance(member, property) or inspect.isfunction(member):
                seen.add(name)
                yield name, member


def _signature(function: Callable[..., Any]) -> str:
    signature = inspect.signature(function)
    kept = [one for one in signature.parameters.values() if one.name != "self"]
    return str(signature.replace(parameters=kept)).replace("'", "")


def decisions() -> str:
    """Every page on a decision, by its title."""
    pages = [page for page in (DOCS / "decisions").glob("*.md") if page.name != "index.md"]
    titles = {page.name: page.read_text().partition("\n")[0].removeprefix("# ") for page in pages}
    return "".join(f"- [{title}]({name})\n" for name, title in sorted(titles.items(), key=lambda one: one[1]))


def routes() -> str:
    """Every route with what it takes and gives, from the OpenAPI description."""
    described = OpenAPIConfig(title="geres", version="1", use_handler_docstrings=True)
    app = Litestar(list(api.ROUTES), request_class=api.Request, openapi_config=described)
    document = api.complete(app.openapi_schema.to_schema(), api._QUERIES, api.HOT, api._BODIES)
    parts = []
    for path, operations in sorted(document["paths"].items()):
        for method, operation in sorted(operations.items()):
            parts.append(_route(method.upper(), path, operation))
    return "\n" + "\n".join(parts) + "\n"


def _route(method: str, path: str, operation: dict[str, Any]) -> str:
    words = [operation.get("summary", ""), operation.get("description", "")]
    told = [text.strip() for text in words if " " in text]
    names = [
        f"`{one['name']}`" for one in operation.get("parameters", []) if one["in"] in ("query", "header")
    ]
    body = _schema(operation.get("requestBody", {}))
    [status] = [code for code in operation["responses"] if code != "default"]
    given = _schema(operation["responses"][status])
    facts = [
        *([f"takes {', '.join(names)}"] if names else []),
        *([f"body `{body}`"] if body else []),
        f"answers {status}" + (f", `{given}`" if given else ""),
    ]
    return "\n\n".join([f"## {method} {path}", *told, "; ".join(facts)]) + "\n"


def _schema(holder: dict[str, Any]) -> str:
    """The name of the type of a body; a list as `[name]`."""
    for content in holder.get("content", {}).values():
        schema = content.get("schema", {})
        for form, one in (("{}", schema), ("[{}]", schema.get("items", {}))):
            if "$ref" in one:
                return form.format(one["$ref"].rpartition("/")[2])
    return ""


class _NoApp:
    """Stands for what commands share; help asks nothing of it."""

    url: str | None = None
    has_task_status = False


#: Parts read their own command lines, without click.
_PARTS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "geres server": server._parser,
    "geres agent": agent._parser,
}


def _part_help(path: str) -> str:
    """Our own layout: that of argparse differs between versions of Python."""
    parser = _PARTS[path]()
    flags = [
        (", ".join(one.option_strings) + (f" {one.metavar}" if one.metavar else ""), one.help or "")
        for one in parser._actions
    ]
    width = max(len(flag) for flag, _ in flags)
    lines = [f"  {flag.ljust(width)}  {text}" for flag, text in flags]
    return "\n".join([f"Usage: {path} [OPTIONS]", "", f"  {parser.description}", "", "Options:", *lines])


def _help(command: click.Command, context: click.Context) -> str:
    context.terminal_width = 96
    return command.get_help(context).rstrip()


def _default(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{one}"' for one in value) + "]"
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    return str(value)


#: Where the boxes stand: centre x and y.
_PLACES = {
    TaskState.BLOCKED: (130, 130),
    TaskState.HELD: (130, 240),
    TaskState.QUEUED: (130, 350),
    TaskState.SUSPENDED: (400, 130),
    TaskState.RUNNING: (400, 240),
    TaskState.ASSIGNED: (400, 350),
    TaskState.SKIPPED: (680, 130),
    TaskState.FAILED: (680, 195),
    TaskState.CANCELLED: (680, 260),
    TaskState.SUCCEEDED: (680, 350),
}
#: Groups drawn as frames: name, members, and the frame's left, top, width and height.
_FRAMES: dict[str, tuple[frozenset[TaskState], tuple[int, int, int, int]]] = {
    "waits": (WAITING, (40, 80, 180, 310)),
    "on a node": (ON_NODE, (310, 80, 180, 310)),
    "final": (FINAL, (585, 60, 190, 330)),
    "did not succeed": (FINAL - {TaskState.SUCCEEDED}, (595, 85, 170, 205)),
}
#: Curves for arrows that would run through a box; the others are straight.
_CURVES = {
    ("waits", "did not succeed"): "M160 80C200 10 600 10 645 85",
    (TaskState.SKIPPED, TaskState.BLOCKED): "M680 113C640 -30 170 -30 120 113",
    ("final", TaskState.QUEUED): "M680 390C640 450 170 450 130 367",
    (TaskState.BLOCKED, TaskState.QUEUED): "M75 140C50 180 50 300 75 340",
}
_BOX = (110, 34)
End = str | TaskState


def arrows() -> list[tuple[End, End]]:
    """Every move in as few arrows as possible: an arrow from or to a frame stands for each state in it."""
    left = {(source, target) for source, targets in MOVES.items() for target in targets}
    single: dict[End, frozenset[TaskState]] = {state: frozenset({state}) for state in TaskState}
    groups: dict[End, frozenset[TaskState]] = {name: states for name, (states, _) in _FRAMES.items()}
    drawn: list[tuple[End, End]] = []
    for sources, targets in ((groups, groups), (groups, single), (single, groups), (single, single)):
        for (one, several), (other, many) in product(sources.items(), targets.items()):
            pairs = set(product(several, many))
            if pairs <= left and not several & many:
                drawn.append((one, other))
                left -= pairs
    return drawn


def picture() -> str:
    """The states and their moves as an SVG."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 440" '
        'font-family="sans-serif" font-size="15">',
        "<title>States of a task and the moves between them</title>",
        '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" '
        'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="#555"/></marker></defs>',
        '<rect width="800" height="440" fill="#fff"/>',
    ]
    for name, (_, (x, y, width, height)) in _FRAMES.items():
        shape = f'x="{x}" y="{y}" width="{width}" height="{height}" rx="10"'
        parts.append(f'<rect {shape} fill="#f4f6f8" stroke="#b8c0c8"/>')
        parts.append(f'<text x="{x + 8}" y="{y + 17}" fill="#667" font-size="12">{name}</text>')
    ends = arrows()
    for one, other in ends:
        back = (other, one) in ends
        if not back or ends.index((one, other)) < ends.index((other, one)):
            start = ' marker-start="url(#head)"' if back else ""
            path = _CURVES.get((one, other)) or _straight(one, other)
            parts.append(f'<path d="{path}" fill="none" stroke="#555" marker-end="url(#head)"{start}/>')
    for state, (x, y) in _PLACES.items():
        shape = f'x="{x - _BOX[0] // 2}" y="{y - _BOX[1] // 2}" width="{_BOX[0]}" height="{_BOX[1]}" rx="6"'
        parts.append(f'<rect {shape} fill="#fff" stroke="#345"/>')
        parts.append(f'<text x="{x}" y="{y + 5}" text-anchor="middle" fill="#123">{state.value}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _straight(one: End, other: End) -> str:
    """A line between the centres, cut off at the borders."""
    (x1, y1), (x2, y2) = _border(one, other), _border(other, one)
    return f"M{x1:.0f} {y1:.0f}L{x2:.0f} {y2:.0f}"


def _border(end: End, towards: End) -> tuple[float, float]:
    (x, y), (width, height) = _shape(end)
    (to_x, to_y), _ = _shape(towards)
    across, down = to_x - x, to_y - y
    scale = min(
        width / 2 / abs(across) if across else float("inf"), height / 2 / abs(down) if down else float("inf")
    )
    return x + across * scale, y + down * scale


def _shape(end: End) -> tuple[tuple[float, float], tuple[int, int]]:
    """Centre and size of a box or a frame."""
    if isinstance(end, TaskState):
        return _PLACES[end], _BOX
    x, y, width, height = _FRAMES[end][1]
    return (x + width / 2, y + height / 2), (width, height)


BLOCKS: dict[str, Callable[[], str]] = {
    "task-states": lambda: members(TaskState),
    "moves": moves,
    "reasons": lambda: members(Reason),
    "job-states": lambda: members(JobState),
    "outcomes": lambda: members(Outcome),
    "node-states": lambda: members(NodeState),
    "settings": settings,
    "errors": error_table,
    "decisions": decisions,
    "options": options,
    "routes": routes,
    "access": access_table,
    "python": python,
    "commands": commands,
}


def generated() -> Iterator[tuple[Path, str]]:
    """Every file with generated parts, and the text that it should have."""
    yield PICTURE, picture()
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text()
        if _BLOCK.search(text):
            yield page, _BLOCK.sub(lambda match: match[1] + BLOCKS[match[2]]() + match[3], text)


def main() -> int:
    check = "--check" in sys.argv[1:]
    stale = [(path, text) for path, text in generated() if not path.exists() or path.read_text() != text]
    for path, text in stale:
        print(f"{path.relative_to(DOCS.parent)} {'is not as the code has it' if check else 'written'}")
        if not check:
            path.write_text(text)
    if check and stale:
        print("`make docs-write` writes them")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
