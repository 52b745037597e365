"""States of tasks, jobs and nodes, the legal moves between them, and the reasons.

The state says where a thing stands, the reason says why: new causes become reasons, never states.
The database repeats these lists as CHECKs, and a test compares.
"""

from __future__ import annotations

from enum import StrEnum


class TaskState(StrEnum):
    """Where a task stands.  `MOVES` lists every legal change."""

    BLOCKED = "blocked"  #: waits for other tasks or for a time
    QUEUED = "queued"  #: may start now; waits for room on a node
    HELD = "held"  #: waits on purpose until it is released
    ASSIGNED = "assigned"  #: promised to a node that has not yet reported a start
    RUNNING = "running"  #: its process was reported started
    SUSPENDED = "suspended"  #: frozen on its node
    SUCCEEDED = "succeeded"  #: final: exit status 0
    FAILED = "failed"  #: final: retries are used up; see the reason
    CANCELLED = "cancelled"  #: final: someone asked for it to stop
    SKIPPED = "skipped"  #: final: up to date, or a parent failed

    @property
    def final(self) -> bool:
        return self in FINAL

    @property
    def on_node(self) -> bool:
        """True where the task takes room on a node."""
        return self in ON_NODE

    @property
    def waiting(self) -> bool:
        """True before a node has it."""
        return self in WAITING


FINAL = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED, TaskState.SKIPPED})
ON_NODE = frozenset({TaskState.ASSIGNED, TaskState.RUNNING, TaskState.SUSPENDED})
WAITING = frozenset({TaskState.BLOCKED, TaskState.QUEUED, TaskState.HELD})

#: Every legal change of a task's state.  Out of a final state leads only a rerun (or, for a task
#: that was skipped, the rerun of its parent).
MOVES: dict[TaskState, frozenset[TaskState]] = {
    TaskState.BLOCKED: frozenset(
        {TaskState.QUEUED, TaskState.HELD, TaskState.CANCELLED, TaskState.SKIPPED, TaskState.FAILED}
    ),
    TaskState.QUEUED: frozenset(
        {
            TaskState.ASSIGNED,
            TaskState.HELD,
            TaskState.BLOCKED,
            TaskState.CANCELLED,
            TaskState.SKIPPED,
            TaskState.FAILED,
        }
    ),
    TaskState.HELD: frozenset(
        {TaskState.QUEUED, TaskState.BLOCKED, TaskState.CANCELLED, TaskState.SKIPPED, TaskState.FAILED}
    ),
    TaskState.ASSIGNED: frozenset(
        {TaskState.RUNNING, TaskState.QUEUED, TaskState.HELD, TaskState.BLOCKED, *FINAL}
    ),
    TaskState.RUNNING: frozenset({TaskState.SUSPENDED, TaskState.QUEUED, TaskState.BLOCKED, *FINAL}),
    TaskState.SUSPENDED: frozenset({TaskState.RUNNING, TaskState.QUEUED, TaskState.BLOCKED, *FINAL}),
    TaskState.SUCCEEDED: frozenset({TaskState.QUEUED}),
    TaskState.FAILED: frozenset({TaskState.QUEUED}),
    TaskState.CANCELLED: frozenset({TaskState.QUEUED}),
    TaskState.SKIPPED: frozenset({TaskState.QUEUED, TaskState.BLOCKED}),
}


class JobState(StrEnum):
    ACTIVE = "active"  #: takes tasks and starts them
    DISABLED = "disabled"  #: takes tasks and starts none
    CLOSING = "closing"  #: takes none; what it has still runs
    COMPLETED = "completed"  #: all of its tasks have ended
    CANCELLED = "cancelled"  #: cancelled as a whole

    @property
    def final(self) -> bool:
        return self in (JobState.COMPLETED, JobState.CANCELLED)


class Outcome(StrEnum):
    """How an ended job went."""

    OK = "ok"
    SOME_FAILED = "some_failed"
    FAILED = "failed"


class NodeState(StrEnum):
    CREATING = "creating"  #: a provider was asked for it
    STARTING = "starting"  #: connected; the start task of its pool runs, and it takes no tasks
    IDLE = "idle"
    RUNNING = "running"
    DRAINING = "draining"  #: takes no new tasks
    OFFLINE = "offline"  #: said good-bye
    LOST = "lost"  #: its lease ended without a word
    START_FAILED = "start_failed"  #: connected; its start task failed, and it takes no tasks
    LEAVING = "leaving"  #: a provider takes it away


class Reason(StrEnum):
    """Why a task is in its state; None where there is nothing to say."""

    EXIT = "exit"  #: ended with an exit code other than 0
    SIGNAL = "signal"  #: ended by a signal that we did not send
    TIMEOUT = "timeout"  #: over its wall-clock limit
    OUT_OF_MEMORY = "out_of_memory"  #: over its memory limit
    DISK_FULL = "disk_full"  #: over its disk allowance, or the node's disk is full
    NOT_FOUND = "not_found"  #: no such program
    NOT_EXECUTABLE = "not_executable"
    NO_CWD = "no_cwd"  #: the working directory cannot be entered
    NO_ACCOUNT = "no_account"  #: the account to run it as is missing on the node, or not allowed there
    STAGING = "staging"  #: its files could not be brought or kept
    HANDLER_LOAD = "handler_load"  #: its task type is unknown or does not load
    NODE_LOST = "node_lost"
    NODE_REBOOTED = "node_rebooted"
    SUPERVISOR_LOST = "supervisor_lost"
    NODE_STOPPED = "node_stopped"  #: geres was stopped on its node, or a spot node was taken away
    CRASH_LIMIT = "crash_limit"  #: lost its node three times
    UP_TO_DATE = "up_to_date"  #: skipped: its outputs are newer than its inputs
    PARENT_FAILED = "parent_failed"  #: skipped: what it waited for did not succeed
    REQUESTED = "requested"  #: cancelled, held or requeued by a person
    FORCED = "forced"  #: cancelled in the store alone; its node had not confirmed
    JOB_CANCELLED = "job_cancelled"
    RETRY = "retry"  #: waits for its next try
    RECALLED = "recalled"  #: given back before it started
    INTERNAL = "internal"  #: a fault of geres itself; see the service log
