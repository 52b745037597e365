"""What no sequence of commands, crashes and cut connections may break."""

from __future__ import annotations

from collections import Counter

import msgspec

from geres.model.doctor import Finding
from geres.model.ids import show_task
from geres.store import show
from geres.store.database import Tx

_MOST = 50  #: findings of one kind

#: Statement, whether its id is a task's, and the sentence about what it finds.
_INVARIANTS = (
    ("jobs_miscounted", False, "job {0} counts {2} tasks and has {1}"),
    (
        "jobs_with_wrong_ends",
        False,
        "job {0} counts {2} ended tasks and has {1}, or miscounts their states",
    ),
    ("tasks_without_one_result", True, "task {0} is {2} and has {1} results of its last round"),
    ("rounds_with_two_results", True, "task {0} has {2} accepted results in its round {1}"),
    ("tasks_unlike_their_results", True, "task {0} is {1}, and its accepted result says {2}"),
    ("attempts_without_task", True, "attempt {1} is of task {0}, which does not exist"),
    ("attempts_from_nowhere", True, "task {0} has ended attempt {1}, and its last was {2}"),
    (
        "tasks_miscounting_tries",
        True,
        "task {0} counts {1} retries, {2} requeues, {3} losses; {4} attempts ended before, {5} of them lost",
    ),
    ("jobs_with_gaps", False, "the results of job {0} should go from {3} to {2} and are {1}"),
    ("sleeping_lanes", False, "lane {0} of job {1} sleeps and has {2} queued tasks"),
    ("lanes_ranked_too_low", False, "lane {0} of job {1} has priority {2} and a queued task of priority {3}"),
    ("tasks_miscounting_parents", True, "task {0} waits for {1} others and has {2} that have not ended"),
    ("children_of_ended_parents", True, "task {0} still waits for {1}, which is {2}"),
    ("tasks_blocked_by_nothing", True, "task {0} is blocked, and nothing will ever wake it"),
    ("wishes_of_nobody", True, "task {0} is asked to {1}, and as it is {2} no node will answer"),
    ("tasks_on_no_node", True, "task {0} is {1} on node {2}, which does not exist"),
)
_WITH_PARENT = ("children_of_ended_parents",)


class _Info(msgspec.Struct):
    """What is read of a node's Hello."""

    resources: dict[str, int] = {}
    slots: int = 0


def check_invariants(tx: Tx) -> list[Finding]:
    """Every fact that contradicts another; none where all is well.  Reads everything: not for every second.

    No task is lost and each is counted once; each that ended has one accepted result in each of its rounds,
    which says the same; results are numbered without a gap; tries are charged to whom they belong; what is
    queued can be seen by a turn, what is blocked will be woken; no node runs more than it has room for.
    """
    return [found for one in _INVARIANTS for found in _broken(tx, *one)] + _overbooked(tx)


def _broken(tx: Tx, statement: str, is_task: bool, sentence: str) -> list[Finding]:
    found = []
    for key, *facts in tx.rows(statement, limit=_MOST):
        name = show_task(key) if is_task else str(key)
        if statement in _WITH_PARENT:
            facts[0] = show_task(facts[0])
        found.append(_finding(name, sentence.format(name, *facts)))
    return found


def _overbooked(tx: Tx) -> list[Finding]:
    """Nodes whose started tasks ask for more than the node has, or which one task should have alone."""
    use: dict[int, Counter[str]] = {}
    alone: set[int] = set()
    for node_id, body, count in tx.rows("started_classes_on_nodes"):
        asks = show.demand(body)
        amounts = {"cpus": asks.cpus_milli, "memory": asks.memory_bytes, "gpus": asks.gpus, "slots": 1}
        amounts |= {f"the resource {name}": amount for name, amount in asks.counts}
        mine = use.setdefault(node_id, Counter())
        for word, amount in amounts.items():
            mine[word] += amount * count
        if asks.exclusive:
            alone.add(node_id)
    found = []
    for node_id, name, info, cpus, memory, gpus in tx.rows("capacities_of_nodes"):
        if node_id not in use:
            continue
        facts = msgspec.json.decode(info, type=_Info)
        has = {"cpus": cpus, "memory": memory, "gpus": gpus, "slots": facts.slots or use[node_id]["slots"]}
        has |= {f"the resource {word}": most for word, most in facts.resources.items()}
        for word, taken in use[node_id].items():
            most = has.get(word, 0)
            if taken > most:
                found.append(_finding(name, f"node {name} has {most} of {word} and runs tasks with {taken}"))
        if node_id in alone and use[node_id]["slots"] > 1:
            text = f"node {name} runs {use[node_id]['slots']} tasks, and one of them should have it alone"
            found.append(_finding(name, text))
    return found


def _finding(about: str, text: str) -> Finding:
    return Finding(kind="invariant", id=about, text=text, next="this is a fault of geres: please report it")
