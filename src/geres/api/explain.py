"""Words for `why`, made of the facts of store/why.py and of what the dispatcher knows of the nodes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from geres.api.context import Context
from geres.model.callers import Caller
from geres.model.ids import show_task
from geres.model.jobs import Job
from geres.model.states import JobState, Reason, TaskState
from geres.model.tasks import Attempt, Task, Why, WhyGroup, WhyNode
from geres.model.units import parse_time, plural, show_duration, show_size
from geres.store import why
from geres.store.why import EndGroup, JobFacts, TaskFacts

_REASONS: dict[str, str] = {
    Reason.TIMEOUT: "was over its time limit",
    Reason.OUT_OF_MEMORY: "took more memory than it asked for",
    Reason.DISK_FULL: "filled the disk, or its allowance",
    Reason.NOT_FOUND: "names a program that is not on the node",
    Reason.NOT_EXECUTABLE: "names a file that cannot be executed",
    Reason.NO_CWD: "could not enter its working directory",
    Reason.NO_ACCOUNT: "may not run on the node as the account that it should run as",
    Reason.STAGING: "could not bring or keep its files",
    Reason.HANDLER_LOAD: "is of a type that is unknown on the node, or does not load",
    Reason.NODE_LOST: "lost its node",
    Reason.NODE_REBOOTED: "lost its node, which rebooted",
    Reason.SUPERVISOR_LOST: "was ended with its node's supervisor",
    Reason.NODE_STOPPED: "was ended when geres was stopped on its node, or a spot node was taken away",
    Reason.CRASH_LIMIT: "lost its node too often",
    Reason.UP_TO_DATE: "had nothing to do: its outputs are newer than its inputs",
    Reason.PARENT_FAILED: "needed the success of a task that did not succeed",
    Reason.REQUESTED: "on request",
    Reason.FORCED: "by force, before its node confirmed",
    Reason.JOB_CANCELLED: "with its job",
    Reason.INTERNAL: "met a fault of geres itself",
}


async def task(context: Context, caller: Caller, key: int) -> Why:
    """Why a task is in its state.  Raises NotFound."""
    facts = await context.db.read(why.of_task, caller, key)
    now_us = context.clock()
    match facts.task.state:
        case TaskState.BLOCKED:
            return _blocked(facts, now_us)
        case TaskState.HELD:
            return _why(
                facts.task,
                f"on purpose, for {_since(facts.task, now_us)}",
                next=f"geres release {facts.task.id}",
            )
        case TaskState.QUEUED:
            nodes, place = context.dispatcher.explain(caller.tenant_id, facts.task.pool, facts.demand)
            return _queued(facts, nodes, place, now_us)
        case TaskState.ASSIGNED | TaskState.RUNNING | TaskState.SUSPENDED:
            return _on_node(facts, now_us)
    return _ended(facts)


def _why(about: Task, summary: str, lines: Sequence[str] = (), *, next: str | None = None) -> Why:
    return Why(
        id=about.id,
        state=about.state,
        summary=f"{about.state}: {summary}",
        lines=list(lines),
        next_command=next,
    )


def _blocked(facts: TaskFacts, now_us: int) -> Why:
    about, lines = facts.task, []
    if facts.waits_on:
        shown = ", ".join(facts.parents)
        more = (
            f" and {facts.waits_on - len(facts.parents)} more" if facts.waits_on > len(facts.parents) else ""
        )
        summary = f"waits for {shown}{more}"
        return _why(
            about,
            summary,
            next=f"geres why {facts.parents[0].removeprefix('job ')}" if facts.parents else None,
        )
    left = show_duration(max(0.0, (parse_time(about.not_before or about.state_since) - now_us) / 1e6))
    if about.retry_count and about.attempts:
        last = about.attempts[-1]
        summary = f"waits {left} for try {about.retry_count + 1}; the last one {_how(last)}"
        lines = _after_attempt(about, last)
        found = _why(about, summary, lines, next=f"geres logs {about.id}")
        found.stderr_tail = facts.stderr_tail
        return found
    return _why(about, f"waits {left}, until {about.not_before}", next=f"geres edit {about.id} not_before=")


def _queued(facts: TaskFacts, nodes: list[WhyNode], place: str | None, now_us: int) -> Why:
    about, job = facts.task, facts.job
    if job.state is JobState.DISABLED:
        return _why(
            about, f"its job {job.id} is disabled{_because(job.reason)}", next=f"geres job enable {job.id}"
        )
    full = [cap for cap in facts.caps if cap.full]
    if full:
        cap = full[0]
        return _why(
            about,
            f"{cap.used:g} of at most {cap.most:g} {cap.unit} of {cap.words} run already",
            next="geres quota" if "quota" in cap.words else f"geres tasks --state running --job {job.id}",
        )
    found = _why(about, _where(about, nodes, place), _in_line(facts, now_us))
    found.nodes = nodes
    if place is not None:
        found.satisfiable = True
    elif nodes:
        found.satisfiable = any(node.ever for node in nodes)
        found.next_command = (
            _remedy(about, nodes) if not found.satisfiable else f"geres tasks --node {nodes[0].node}"
        )
        if found.satisfiable and " and " in nodes[0].node:
            found.next_command = "geres nodes"
        elif out := _out_of_service(nodes):
            found.next_command = f"geres node show {out.node}"
    else:
        found.next_command = "geres nodes"
    return found


def _where(about: Task, nodes: list[WhyNode], place: str | None) -> str:
    if place is not None:
        return f"may start on {place}, in its turn"
    if not nodes:
        return f"no node of pool {about.pool} is connected"
    if not any(node.ever for node in nodes):
        return f"no node can ever run it: it {nodes[0].reason}" + (" (and others)" if len(nodes) > 1 else "")
    if out := _out_of_service(nodes):
        return f"no node is in service: {_of_start(out)}"
    later = [node for node in nodes if node.ever and node.in_service]
    return f"no node has room: {later[0].node}: {later[0].reason}"


def _out_of_service(nodes: list[WhyNode]) -> WhyNode | None:
    """One whose start task is not done, where that is so of all that could run it; one that failed first."""
    later = [node for node in nodes if node.ever]
    if any(node.in_service for node in later):
        return None
    return min(later, key=lambda node: ":" not in node.reason, default=None)


def _of_start(node: WhyNode) -> str:
    """`start task failed on n1: exit 1`."""
    what, colon, how = node.reason.partition(":")
    return f"{what.removeprefix('its ')} on {node.node}{colon}{how}"


def _in_line(facts: TaskFacts, now_us: int) -> list[str]:
    about = facts.task
    lines = [f"waits for {_since(about, now_us)}, with priority {about.priority}"]
    if facts.before:
        many = "1000 or more" if facts.before >= 1000 else str(facts.before)
        lines.append(f"{many} tasks like it start first")
    if about.reason is not None:
        lines.append(f"queued again: {about.message or _REASONS.get(about.reason, about.reason)}")
    return lines


def _remedy(about: Task, nodes: list[WhyNode]) -> str:
    """The edit that could make it fit, guessed from the first refusal."""
    reason = nodes[0].reason
    if "of memory" in reason:
        return f"geres edit {about.id} memory={reason.rpartition(' ')[2]}"
    if " cpus" in reason:
        return f"geres edit {about.id} cpus={reason.rpartition(' ')[2]}"
    return f"geres edit {about.id} match=" if "match" in reason else "geres nodes"


#: What becomes of a task whose node is away.
_AWAY = {
    "run": "it runs on there; when the lease of the node ends another node gets it too",
    "stop": "it is stopped there before the lease of the node ends; then another node gets it",
    "keep": "the task is kept for it (on_disconnect); `geres node remove {}` gives it to another",
}


def _on_node(facts: TaskFacts, now_us: int) -> Why:
    about = facts.task
    lines = []
    if about.state is TaskState.ASSIGNED:
        summary = f"given to node {about.node} {_since(about, now_us)} ago; it has not started it yet"
    else:
        started = parse_time(about.started_at or about.state_since)
        ran = (now_us - started) / 1e6
        summary = f"on node {about.node} for {show_duration(ran)}, attempt {about.attempt}"
        lines.append(_time_use(ran, about, facts))
        if about.memory_bytes:
            lines.append(f"may use {show_size(about.memory_bytes)} of memory")
    if facts.asked:
        word = facts.asked.partition(":")[0]
        lines.append(
            f"asked to {word} at {about.cancel_requested_at or 'its node'}; its node has not answered yet"
        )
    if about.node_connected is False:
        lines.append(f"node {about.node} is not connected: {_AWAY[facts.on_disconnect].format(about.node)}")
    force = facts.asked == "cancel" and about.node_connected is False
    return _why(
        about,
        summary,
        lines,
        next=f"geres cancel --force {about.id}" if force else f"geres logs -F {about.id}",
    )


def _time_use(ran: float, about: Task, facts: TaskFacts) -> str:
    limit = facts.task.spec.time_limit_seconds
    if limit is None:
        return f"runs for {show_duration(ran)}, with no time limit"
    return f"runs for {show_duration(ran)} of its limit of {show_duration(limit)}"


def _moment(text: str) -> str:
    """A moment for people: whole seconds, and the zone."""
    return f"{text[:19].replace('T', ' ')} UTC"


def _ended(facts: TaskFacts) -> Why:
    about = facts.task
    last = facts.task.attempts[-1] if facts.task.attempts else None
    if about.state is TaskState.SUCCEEDED:
        lines = _after_attempt(about, last) if last else []
        return _why(about, _success(last), lines, next=f"geres logs {about.id}")
    if about.state is not TaskState.FAILED or last is None:
        words = _REASONS.get(about.reason, str(about.reason)) if about.reason else "on request"
        text = f"{words}: {about.message}" if about.message else words
        again = None if about.reason == Reason.UP_TO_DATE else f"geres rerun {about.id}"
        return _why(about, text, _after_attempt(about, last) if last and last.attempt else (), next=again)
    retried = plural(about.retry_count, "retry", "retries")
    tries = f"attempt {last.attempt}" + (f", after {retried}" if about.retry_count else "")
    found = _why(about, f"{_how(last)} on node {last.node} ({tries})", _after_attempt(about, last))
    found.stderr_tail = facts.stderr_tail
    if not facts.stderr_tail and facts.stderr_path:
        found.lines.append(f"its stderr went to {facts.stderr_path} on node {last.node}")
    found.next_command = _after_failure(about)
    return found


def _success(last: Attempt | None) -> str:
    if last is None:
        return "ended well"
    return f"exit 0 on node {last.node} after {show_duration(last.usage.wall_seconds)}"


def _how(last: Attempt) -> str:
    """How an attempt ended, in a few words."""
    if last.reason == Reason.EXIT:
        return f"exit {last.exit_code}"
    if last.reason == Reason.SIGNAL:
        return f"signal {last.signal}" + (f" ({last.message})" if last.message else "")
    words = _REASONS.get(last.reason, str(last.reason)) if last.reason else "ended"
    return f"{last.reason}: it {words}" + (f" ({last.message})" if last.message else "")


def _after_attempt(about: Task, last: Attempt) -> list[str]:
    """Time and memory of an attempt, against what was asked for."""
    usage, lines = last.usage, []
    cpu = usage.user_seconds + usage.system_seconds
    limit = getattr(about, "spec", None)
    most = limit.time_limit_seconds if limit is not None else None
    of_limit = f" of its limit of {show_duration(most)}" if most is not None else ""
    lines.append(f"ran {show_duration(usage.wall_seconds)}{of_limit}, {show_duration(cpu)} of cpu")
    if usage.max_rss_bytes is not None:
        asked = f" of {show_size(about.memory_bytes)} asked for" if about.memory_bytes else ""
        lines.append(f"peak memory {show_size(usage.max_rss_bytes)}{asked}")
    elif about.memory_bytes:
        lines.append(f"asked for {show_size(about.memory_bytes)} of memory")
    return lines


def _after_failure(about: Task) -> str:
    """The command to type next."""
    if about.reason == Reason.OUT_OF_MEMORY and about.memory_bytes:
        return f"geres rerun {about.id} memory={show_size(2 * about.memory_bytes)}"
    if about.reason in (Reason.EXIT, Reason.SIGNAL):
        return f"geres logs {about.id}"
    if about.reason == Reason.NOT_FOUND and about.command:
        return f"geres run --nodelist {about.node} -- sh -c {shlex.quote('command -v ' + about.command[0])}"
    return f"geres rerun {about.id}"


def _because(reason: str | None) -> str:
    return f" ({reason})" if reason else ""


def _since(about: Task, now_us: int) -> str:
    return show_duration(max(0.0, (now_us - parse_time(about.state_since)) / 1e6))


async def job(context: Context, caller: Caller, job_id: int) -> Why:
    """Why a job is in its state: its tasks in groups.  Raises NotFound."""
    facts = await context.db.read(why.of_job, caller, job_id)
    about, counts = facts.job, facts.counts
    groups = [
        *_waiting_groups(context, caller.tenant_id, facts),
        *_live_groups(facts.live),
        *_end_groups(facts),
    ]
    if counts.not_yet:
        groups.append(WhyGroup(count=counts.not_yet, text="are not unfolded yet", example=f"{about.id}"))
    total, done = about.task_count, counts.succeeded + counts.failed + counts.cancelled + counts.skipped
    summary = f"{about.state}{_because(about.reason)}: {done} of {total} tasks have ended"
    if about.state is JobState.CANCELLED:
        _, _, reason = (about.reason or "").partition(": ")
        summary = f"{about.state}{_because(reason or None)}: {counts.succeeded} of {total} tasks succeeded"
    elif about.outcome is not None:
        summary = f"{about.state}: {about.outcome}, {counts.succeeded} of {total} tasks succeeded"
    return Why(
        id=about.id,
        state=about.state,
        summary=summary,
        lines=[f"since {_moment(about.state_since)}"],
        groups=groups,
        next_command=_next_of_job(facts),
    )


def _waiting_groups(context: Context, tenant_id: int, facts: JobFacts) -> list[WhyGroup]:
    groups: dict[str, WhyGroup] = {}
    for lane in facts.lanes:
        if facts.job.state is JobState.DISABLED:
            text = "wait: the job is disabled"
        elif full := [cap for cap in facts.caps if cap.full]:
            cap = full[0]
            text = f"wait: {cap.used:g} of at most {cap.most:g} {cap.unit} of {cap.words} run already"
        else:
            nodes, place = context.dispatcher.explain(tenant_id, lane.pool, lane.demand)
            text = _lane_text(lane.pool, nodes, place)
        group = groups.setdefault(text, WhyGroup(count=0, text=text, example=show_task(lane.first)))
        group.count += lane.tasks
    return list(groups.values())


def _lane_text(pool: str, nodes: list[WhyNode], place: str | None) -> str:
    if place is not None:
        return "wait for their turn"
    if not nodes:
        return f"wait for a node of pool {pool}"
    if out := _out_of_service(nodes):
        return f"wait for a node in service ({_of_start(out)})"
    later = [node for node in nodes if node.ever and node.in_service]
    if not later:
        return f"can never run: no node fits ({nodes[0].reason})"
    return f"wait for room ({later[0].reason})"


def _live_groups(live: Sequence[EndGroup]) -> list[WhyGroup]:
    words = {
        "blocked": "wait for other tasks or a time",
        "held": "are held",
        "assigned": "are about to start",
        "running": "run",
        "suspended": "are suspended",
    }
    return [
        WhyGroup(
            count=group.tasks,
            text=words[group.state] + (f" ({group.reason})" if group.reason else ""),
            example=show_task(group.first),
        )
        for group in live
    ]


def _end_groups(facts: JobFacts) -> list[WhyGroup]:
    groups: dict[str, WhyGroup] = {}
    for end in facts.ends:
        if end.reason == Reason.EXIT:
            cause = f"exit {end.exit_code}"
        elif end.reason == Reason.SIGNAL:
            cause = f"signal {end.signal}"
        elif end.reason in (Reason.REQUESTED, Reason.JOB_CANCELLED) and _was_cancelled(facts.job):
            cause = "with the job"
        else:
            cause = str(end.reason or "")
        text = f"{end.state}: {cause}" if cause else end.state
        group = groups.setdefault(text, WhyGroup(count=0, text=text, example=show_task(end.first)))
        group.count += end.tasks
    return list(groups.values())


def _was_cancelled(job: Job) -> bool:
    return (job.reason or "").startswith(Reason.JOB_CANCELLED)


def _next_of_job(facts: JobFacts) -> str | None:
    about, counts = facts.job, facts.counts
    if about.state is JobState.DISABLED:
        return f"geres job enable {about.id}"
    if counts.failed:
        return f"geres rerun --failed --job {about.id}"
    if facts.lanes:
        return f"geres why {show_task(facts.lanes[0].first)}"
    return None
