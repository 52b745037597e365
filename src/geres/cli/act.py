"""Commands that change tasks: cancel, hold, release, edit, rerun."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import click

from geres.cli.ids import ids_argument, read_ids
from geres.cli.main import App
from geres.cli.output import escape, pretty_json, say, write_line
from geres.cli.task_options import pairs
from geres.errors import BY_CODE, Conflict, GeresError, Invalid, TaskFinished
from geres.model.nearest import did_you_mean
from geres.model.tasks import Acted

_EDITABLE = (
    *("cpus", "memory", "gpus", "priority", "exclusive", "nodelist", "match", "pool", "time_limit"),
    *("retries", "not_before"),
)


def _told(command: Callable[..., int]) -> Callable[..., int]:
    """How what became of the tasks is told."""
    for option in (
        click.pass_obj,
        click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors."),
        click.option("--json", is_flag=True, help="What became of each, as JSON."),
    ):
        command = option(command)
    return command


@click.command()
@ids_argument()
@click.option("--signal", metavar="NAME", help="Only send this signal, like HUP or USR1.")
@click.option("--force", is_flag=True, help="End it in the store even where the node does not answer.")
@click.option("--reason", metavar="TEXT", help="Kept with the task.")
@_told
def cancel(
    app: App,
    ids: tuple[str, ...],
    signal: str | None,
    force: bool,
    reason: str | None,
    json: bool,
    quiet: bool,
) -> int:
    """End tasks: queued ones never start, running ones get TERM and after their grace KILL.

    A job's id ends all its tasks, and with them an array's job; a job that takes more tasks stays open:
    `geres job cancel` ends it too.  One bad id does not stop the others.
    """
    name = None if signal is None else signal.upper().removeprefix("SIG")
    named = read_ids(ids)
    answer = app.client.cancel(*named, signal=name, force=force, reason=reason)
    asked = "cancelling" if signal is None else "signalled"
    return tell(answer, named, json=json, quiet=quiet, asked=asked)


@click.command()
@ids_argument()
@_told
def hold(app: App, ids: tuple[str, ...], json: bool, quiet: bool) -> int:
    """Keep queued tasks from starting until `geres release`."""
    named = read_ids(ids)
    return tell(app.client.hold(*named), named, json=json, quiet=quiet, asked="asked back")


@click.command()
@ids_argument()
@_told
def release(app: App, ids: tuple[str, ...], json: bool, quiet: bool) -> int:
    """Let held tasks go on."""
    named = read_ids(ids)
    return tell(app.client.release(*named), named, json=json, quiet=quiet)


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="ID... NAME=VALUE...")
@_told
def edit(app: App, words: tuple[str, ...], json: bool, quiet: bool) -> int:
    """Change what waiting tasks ask for: `geres edit 12.7 memory=2G cpus=2 priority=high`.

    Names: cpus, memory, gpus, priority, exclusive, nodelist, match, pool, time_limit, retries,
    not_before, and resources.NAME.
    """
    ids, given = ids_and_changes(words)
    if not ids:
        raise Invalid("id: is missing; say which tasks to change", field="id")
    if not given:
        raise Invalid("edit: nothing to change; write pairs like memory=2G", field="edit")
    named = read_ids(ids)
    return tell(app.client.edit(*named, **changes(given)), named, json=json, quiet=quiet)


@click.command()
@click.argument("words", nargs=-1, metavar="ID... [NAME=VALUE...]")
@click.option("-J", "--job", metavar="JOB", help="The tasks of this job.")
@click.option("--failed", is_flag=True, help="Only the tasks that failed.")
@_told
def rerun(
    app: App,
    words: tuple[str, ...],
    job: str | None,
    failed: bool,
    json: bool,
    quiet: bool,
) -> int:
    """Run ended tasks again as their next attempt; earlier attempts stay to be seen.

    What they ask for can be changed first, as by `geres edit`: `geres rerun 12.7 memory=16G`.
    """
    ids, given = ids_and_changes(words)
    named = [*read_ids(ids), *([job] if job else [])]
    if not named:
        raise Invalid("id: is missing; say which tasks to run again, or --job", field="id")
    return tell(app.client.rerun(*named, failed=failed, **changes(given)), named, json=json, quiet=quiet)


def ids_and_changes(words: tuple[str, ...]) -> tuple[list[str], tuple[str, ...]]:
    """The ids and the `NAME=VALUE` words among the words of a command."""
    return [word for word in words if "=" not in word], tuple(word for word in words if "=" in word)


def changes(given: tuple[str, ...]) -> dict[str, Any]:
    """The changes of `NAME=VALUE` words.  Raises Invalid for a name that cannot be changed."""
    found: dict[str, Any] = {}
    for name, value in pairs(given, "edit").items():
        name = name.replace("-", "_")
        if name.startswith("resources."):
            found.setdefault("resources", {})[name.removeprefix("resources.")] = value
        elif name == "exclusive":
            if value.lower() not in ("true", "false", "yes", "no"):
                raise Invalid(f"exclusive: {value!r} is neither true nor false", field="exclusive")
            found[name] = value.lower() in ("true", "yes")
        elif name in _EDITABLE:
            found[name] = value
        else:
            there_are = f"; there are {', '.join(_EDITABLE)} and resources.NAME"
            hint = did_you_mean(name, _EDITABLE) or there_are
            raise Invalid(f"{name}: cannot be changed{hint}", field=name)
    return found


def tell(
    answer: list[Acted], ids: Sequence[str], *, json: bool, quiet: bool, asked: str | None = None
) -> int:
    """Print what became of the tasks: of each, or where an id means many, of how many of each job.

    `asked` is the word for a task that a node still has.  Returns the status of the last refusal; where an id
    means many, tasks that were in no state for it are told of and are no error.
    """
    done = [(one.id, _word(one, asked)) for one in answer if one.code is None and one.state is not None]
    refused = [one for one in answer if one.code is not None]
    many = bool(done) and len(done) + len(refused) > len(ids)
    if many:
        done += [(one.id, "had ended") for one in refused if one.code == TaskFinished.code]
        refused = [one for one in refused if one.code != TaskFinished.code]
    if json:
        write_line(pretty_json(answer))
    elif not quiet:
        if not answer:
            say("geres: no task of it is in a state for that; nothing was changed")
        for line in _counted(done) if many else (f"{task} {word}" for task, word in done):
            write_line(line)
    _refuse(refused, many=many)
    if not quiet:
        for warning in dict.fromkeys(one.message for one in answer if one.message and not one.code):
            say(f"geres: {escape(warning)}")
    if many:
        refused = [one for one in refused if one.code != Conflict.code]
    return BY_CODE.get(refused[-1].code or "", GeresError).exit_status if refused else 0


def _word(one: Acted, asked: str | None) -> str:
    if asked is not None and one.state is not None and one.state.on_node:
        return asked
    return one.state.value if one.state is not None else "done"


def _counted(words: Iterable[tuple[str, str]]) -> Iterator[str]:
    """`12: 8 cancelled, 2 cancelling` for each job, of (task, word)."""
    jobs: dict[str, Counter[str]] = {}
    for task, word in words:
        jobs.setdefault(task.partition(".")[0], Counter())[word] += 1
    for job, counts in jobs.items():
        yield f"{job}: {', '.join(f'{count:,} {word}' for word, count in counts.items())}"


def _refuse(refused: list[Acted], *, many: bool) -> None:
    """Say what could not be done; where an id means many, what is alike only once."""
    alike: dict[str, list[Acted]] = {}
    for one in refused:
        kind = (one.message or "").replace(one.id, "") if many else one.id
        alike.setdefault(kind, []).append(one)
    for ones in alike.values():
        more = f" (and {len(ones) - 1:,} more like it)" if len(ones) > 1 else ""
        say(f"geres: {ones[0].code}: {escape(ones[0].message or ones[0].id)}{more}")
