"""`geres submit`: queue work and print its ids."""

from __future__ import annotations

import shlex
from typing import Any

import click
import msgspec

from geres.cli.main import App
from geres.cli.output import escape, pretty_json, say, write_line
from geres.cli.task_options import task_options
from geres.cli.work import Work, read_work, warn
from geres.model.tasks import DryRun, SubmitTask
from geres.model.units import plural


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--stdin", is_flag=True, help="Give it a stdin that `geres attach --stdin` can write to.")
@click.option("--json", is_flag=True, help="The stored task or job as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No warnings.")
@task_options
@click.pass_obj
def submit(app: App, /, words: tuple[str, ...], stdin: bool, json: bool, quiet: bool, **flags: Any) -> None:
    """Queue a command and print its id; it starts in this directory when there is room.

    Options end at the first word of the command.  --array, --items and `::: a b c` make an array and
    print its job's id; --from prints one id a line.  In an array `{}` is the item, `{index}` its number.

    \b
      geres submit -c 4 -m 8G -- bwa mem ref.fa reads.fq
      geres submit --shell 'sort big.txt | uniq -c > counts.txt'
      geres submit gzip {} ::: *.txt
    """
    work = read_work(app, words, flags, stdin=stdin)
    client = app.client
    if work.dry_run:
        show_dry_run(client, work, json=json)
        return
    if work.rows is not None:
        tasks = submit_rows(client, work)
        for one in tasks.ids():
            write_line(one)
        return
    if work.array is not None:
        job = client.create_job(work.job_spec())
        if not quiet:
            warn(job.warnings)
        write_line(pretty_json(job.info) if json else job.id)
        return
    answer = submit_one(client, work)
    if not quiet:
        warn(answer.warnings)
        if answer.attached:
            say(f"geres: {answer.task.id} has that id already; it is left as it is")
    write_line(pretty_json(answer.task) if json else answer.task.id)


def submit_one(client: Any, work: Work) -> Any:
    """Store the task; the server's answer."""
    return client.send_task(SubmitTask(task=work.spec, job=work.job, after=work.after))


def submit_rows(client: Any, work: Work) -> Any:
    """Store the tasks of --from, in a job of their own if none was named; a lazy sequence of handles."""
    if work.job is not None:
        return client.send_rows(work.rows, work.spec, work.job, after=work.after)
    made = client.create_job()
    tasks = client.send_rows(work.rows, work.spec, made.id, after=work.after)
    made.close()  # it is completed when these tasks have ended
    return tasks


def show_dry_run(client: Any, work: Work, *, json: bool) -> None:
    """Print what would be stored and where it would go."""
    spec = work.spec if work.rows is None else merged(work)
    answer: DryRun = client.send_dry_run(SubmitTask(task=spec, job=work.job, after=work.after))
    if work.array is not None:
        answer = of_array(answer, work)
    if json:
        write_line(pretty_json(answer))
        return
    write_line(pretty_json(answer.spec))
    count = "" if work.rows is None else f" (the first of {len(work.rows)})"
    if work.array is not None:
        count = f", with {plural(answer.count, 'task')}"
        say(f"geres: the first runs {_shown(answer.first_command)}")
        if answer.count > 1:
            say(f"geres: the last runs {_shown(answer.last_command)}")
        if work.max_parallel:
            say(f"geres: at most {work.max_parallel} of them at once")
    own = work.job is None and (work.rows is not None or work.array is not None)
    job = "a job of its own" if own else f"job {answer.job}"
    say(f"geres: would go to {job}{count}: {answer.placement}")
    for rule in answer.rules:
        say(f"geres: rule: {rule}")
    warn(answer.warnings)


def of_array(answer: DryRun, work: Work) -> DryRun:
    """The answer with how many tasks the array makes, and what the first and the last of them run."""
    from geres.model.ids import parse_numbers, task_key  # only a dry run of an array needs them
    from geres.model.placeholders import replace_all

    assert work.array is not None
    items = work.array.items
    parts = (
        [range(1, len(items) + 1)] if items is not None else parse_numbers(work.array.range or "", "array")
    )

    def runs(number: int) -> list[str] | str | None:
        item = None if items is None else items[number - 1]
        key = task_key(0, number)
        if work.spec.command is not None:
            return [replace_all(word, key, item) for word in work.spec.command]
        return None if work.spec.shell is None else replace_all(work.spec.shell, key, item)

    first, last = min(part[0] for part in parts), max(part[-1] for part in parts)
    return msgspec.structs.replace(
        answer,
        job="",
        count=sum(len(part) for part in parts),
        first_command=runs(first),
        last_command=runs(last),
    )


def _shown(what: list[str] | str | None) -> str:
    return escape(what if isinstance(what, str) else shlex.join(what or []))


def merged(work: Work) -> Any:
    """The specification of the first of many rows."""
    from geres.model.specs import merge_row  # only a dry run of many needs it

    assert work.rows
    return merge_row(work.spec, work.rows[0])
