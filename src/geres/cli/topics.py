"""What `geres help TOPIC` tells: short texts to look something up in, each also of use without a cluster."""

from __future__ import annotations

STATES = """\
A task waits, is on a node, or has ended:

  blocked     waits for other tasks (--after) or a time (--not-before)
  queued      may start now; waits for room on a node
  held        waits until `geres release`
  assigned    a node has it and is about to start it
  running     its process runs
  suspended   its process is frozen
  succeeded   ended with exit status 0
  failed      ended otherwise, and its retries are used up
  cancelled   someone asked for its end
  skipped     not run: up to date (a success), or what it waited for failed

`pending` means blocked, queued or held; `final` the last four.  The state says
where a task is, the reason says why: `geres help reasons`, `geres why ID`.

A job is active, disabled (starts nothing), closing (takes no more tasks), and
in the end completed or cancelled, with an outcome: ok, some_failed or failed.
"""

REASONS = """\
Why a task is in its state; `geres why ID` tells it in words.

  exit              ended with an exit status other than 0
  signal            ended by a signal that geres did not send
  timeout           over its time limit (-t)
  out_of_memory     over its memory limit (-m)
  disk_full         over its disk allowance, or the node's disk is full
  not_found         there is no such program
  not_executable    the program cannot be executed
  no_cwd            its working directory cannot be entered
  no_account        the account to run it as is missing or not allowed there
  staging           its files could not be brought or kept
  handler_load      its task type is unknown or does not load
  node_lost         its node was not heard of for too long; it is queued again
  node_rebooted     its node was started anew; it is queued again
  supervisor_lost   what ran it on the node is gone; it is queued again
  node_stopped      geres was stopped on its node, which ended it
  crash_limit       lost its node three times
  up_to_date        skipped: its outputs are newer than its inputs
  parent_failed     skipped: what it waited for did not succeed
  requested         cancelled, held or requeued by a person
  forced            cancelled with --force; its node had not confirmed
  job_cancelled     its job was cancelled
  retry             waits for its next try
  recalled          a node gave it back before it started
  internal          a fault of geres itself; see the service log
"""

FILTERS = """\
`--filter` takes comparisons of fields with values, joined by and, or, not:

  geres tasks --filter 'state == "failed" and exit_code != 1'
  geres tasks --filter 'cpus > 2 and memory_bytes > "1G"'
  geres tasks --filter 'meta.proj == "x" and "bwa" in name'
  geres history --filter 'usage.wall_seconds > "1h" or reason in ("timeout", "signal")'

  ==  !=  <  <=  >  >=      compare; `0 < exit_code < 3` works too
  in ("a", "b"), not in     one of a list
  "part" in name            a text that contains another
  name                      by itself: has a value

Values: texts in quotes, numbers as they are.  Sizes (memory_bytes,
usage.max_rss_bytes) are bytes, or "500M", "1.5G" in powers of 1024; times that
something takes (wait_seconds, usage.wall_seconds) are seconds, or "30s", "1h30m";
moments (created_at) are like "2026-03-01T12:00".  cpus may be a fraction.

What has no value (the exit_code of a task that runs) matches no comparison but
`== None`; only a text that is missing differs from every text.

Fields:

"""

PLACEHOLDERS = """\
In arrays (--array, --items, `CMD {} ::: a b c`) these are replaced in the
command, in -o and -e and in --id:

  {}        the item; in an array of a range the index
  {.}       the item without its extension: dir/a.txt gives dir/a
  {/}       the last part of the item: dir/a.txt gives a.txt
  {index}   the task's number in the job, from 1 (or as the range says)
  {task}    the task's id, like 12.7

An item is one argument, however many blanks it has.  Elsewhere braces stay as
they are.  `geres submit --dry-run ...` shows the first and the last command.
"""

ENVIRONMENT = """\
What a task finds in its environment:

  GERES_TASK_ID, GERES_TASK_NUMBER    its id, like 12.7, and its number in the job
  GERES_JOB_ID, GERES_JOB_NAME        its job
  GERES_ATTEMPT, GERES_RETRY_COUNT    which try this is, from 1, and how many retries there were
  GERES_ARRAY_INDEX, GERES_ITEM       in an array, its index and its item
  GERES_META_KEY                      the value of --meta key=value
  GERES_SUBMITTED_BY                  who submitted it
  GERES_CPUS, GERES_MEMORY_BYTES      what it asked for
  GERES_GPUS, CUDA_VISIBLE_DEVICES    which gpus it was given
  GERES_TASK_DIR, TMPDIR              a folder of its own, and one in it
  GERES_NODE_ID                       the name of its node
  GERES_NODE_SHARED_DIR               a folder that the tasks of the node share
  GERES_URL, GERES_HOME               the cluster, for commands of its own
  GERES_TOKEN                         a token that reaches what the task submits, and no more
  GERES_START_TASK, GERES_START_TRY   in the start task of a pool alone: its mark, and which try it is

Also HOME, USER, PATH and the like of its account, and what --env asks for.

What `geres` itself looks at:

  GERES_HOME                          the folder of a `geres up`
  GERES_URL, GERES_TOKEN              a cluster elsewhere
  GERES_SOCKET                        the socket of the machine's shared geres
  GERES_TENANT                        the tenant in which an admin works
  GERES_FINGERPRINT                   of its certificate, where no authority vouches for it
  NO_COLOR                            no colours
"""

TOPICS = {
    "states": STATES,
    "reasons": REASONS,
    "filters": FILTERS,
    "placeholders": PLACEHOLDERS,
    "environment": ENVIRONMENT,
}

#: What `--filter` of a list of tasks may name; the store's own table, which the command line cannot load.
FILTER_NAMES = (
    *("id", "job", "job_id", "job_name", "state", "reason", "name", "item", "user", "submitted_by", "pool"),
    *("node", "priority", "cpus", "memory_bytes", "gpus", "attempt", "exit_code", "signal", "retry_count"),
    *("requeue_count", "lost_count", "created_at", "started_at", "ended_at", "wait_seconds"),
    *("usage.wall_seconds", "usage.user_seconds", "usage.system_seconds", "usage.max_rss_bytes", "meta.KEY"),
)


def topic(name: str) -> str:
    """The text of a topic.  Raises KeyError."""
    text = TOPICS[name]
    if name == "filters":
        line = ""
        for field in FILTER_NAMES:
            if len(line) + len(field) > 76:
                text, line = f"{text}  {line.rstrip()}\n", ""
            line += field + "  "
        text += f"  {line.rstrip()}\n"
    return text
