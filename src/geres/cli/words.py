"""The commands with where they live and what they do, and the words of other systems that people type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from geres.model.nearest import nearest


class Entry(NamedTuple):
    place: str  #: module:attribute below geres.cli
    section: str
    help: str


_WORK, _LOOK, _CHANGE, _CLUSTER, _PARTS = "Work", "Look", "Change", "Cluster", "Parts and help"
SECTIONS = (_WORK, _LOOK, _CHANGE, _CLUSTER, _PARTS)

COMMANDS: dict[str, dict[str, Entry]] = {
    "": {
        "run": Entry("run:run", _WORK, "Run a command and wait: its output, its exit status."),
        "submit": Entry("submit:submit", _WORK, "Queue a command and print its id."),
        "wait": Entry("wait:wait", _WORK, "Wait for tasks or jobs to end."),
        "attach": Entry("attach:attach", _WORK, "Follow a running task as if by `run`."),
        "logs": Entry("logs:logs", _WORK, "Print what tasks wrote."),
        "result": Entry("logs:result", _WORK, "Print the value that a task left."),
        "why": Entry("why:why", _LOOK, "Why a task or job is in its state."),
        "tasks": Entry("tasks:tasks", _LOOK, "List tasks."),
        "jobs": Entry("jobs:jobs", _LOOK, "List jobs."),
        "nodes": Entry("nodes:nodes", _LOOK, "List nodes."),
        "pools": Entry("pools:pools", _LOOK, "List pools."),
        "servers": Entry("servers:servers", _LOOK, "List servers."),
        "history": Entry("tasks:history", _LOOK, "List ended tasks, the latest first."),
        "dead-letter": Entry("tasks:dead_letter", _LOOK, "List failed tasks whose retries are used up."),
        "summary": Entry("nodes:summary", _LOOK, "Count tasks, jobs and nodes by state."),
        "top": Entry("top:top", _LOOK, "Watch the cluster."),
        "task": Entry("tasks:task", _LOOK, "Show one task, or list them."),
        "job": Entry("jobs:job", _LOOK, "Make, show and change jobs."),
        "node": Entry("nodes:node", _LOOK, "Show one node, or list them."),
        "cancel": Entry("act:cancel", _CHANGE, "End tasks or jobs, or send a signal."),
        "hold": Entry("act:hold", _CHANGE, "Keep queued tasks from starting."),
        "release": Entry("act:release", _CHANGE, "Let held tasks go on."),
        "edit": Entry("act:edit", _CHANGE, "Change what waiting tasks ask for."),
        "rerun": Entry("act:rerun", _CHANGE, "Run ended tasks again."),
        "init": Entry("init:init", _CLUSTER, "Set up a server on this host."),
        "up": Entry("up:up", _CLUSTER, "Start a cluster on this machine."),
        "down": Entry("up:down", _CLUSTER, "Stop it."),
        "restart": Entry("restart:restart", _CLUSTER, "Replace its parts by new processes, without a gap."),
        "status": Entry("status:status", _CLUSTER, "Tell whether it runs, and where."),
        "demo": Entry("demo_command:demo", _CLUSTER, "Watch real work run, be measured and be checked."),
        "login": Entry("login:login", _CLUSTER, "Use a cluster elsewhere from now on."),
        "logout": Entry("login:logout", _CLUSTER, "Forget it."),
        "whoami": Entry("tenants:whoami", _CLUSTER, "Tell who the cluster takes you for."),
        "token": Entry("tenants:token", _CLUSTER, "Make, list, replace and revoke tokens."),
        "user": Entry("tenants:user", _CLUSTER, "Make and change users."),
        "tenant": Entry("tenants:tenant", _CLUSTER, "Make and change tenants."),
        "quota": Entry("quotas:quota", _CLUSTER, "Show and set how much may be had at once."),
        "pool": Entry("pools:pool", _CLUSTER, "Show pools, and set what their nodes run first."),
        "webhook": Entry("webhooks:webhook", _CLUSTER, "Tell other programs when tasks and jobs end."),
        "audit": Entry("tenants:audit", _CLUSTER, "List who changed what."),
        "doctor": Entry("status:doctor", _CLUSTER, "Look for what is wrong."),
        "config": Entry("settings:config", _CLUSTER, "Show the settings and where they come from."),
        "store": Entry("store:store", _CLUSTER, "Back up, check and move a store."),
        "service": Entry("service:service", _CLUSTER, "Run server and agent under systemd."),
        "debug": Entry("debug:debug", _CLUSTER, "Look into the running server."),
        "server": Entry("parts:server", _PARTS, "Run one server."),
        "agent": Entry("parts:agent", _PARTS, "Run one agent: this machine becomes a node."),
        "completion": Entry("help:completion", _PARTS, "Print the completion script of a shell."),
        "help": Entry("help:help_", _PARTS, "Help on a command or a topic."),
        "version": Entry("help:version", _PARTS, "Print the version."),
    },
    "task": {
        "show": Entry("tasks:task_show", _LOOK, "All about one task."),
        "list": Entry("tasks:tasks", _LOOK, "List tasks."),
    },
    "job": {
        "create": Entry("jobs:job_create", _CHANGE, "Make a job and print its id."),
        "show": Entry("jobs:job_show", _LOOK, "All about one job."),
        "list": Entry("jobs:jobs", _LOOK, "List jobs."),
        "close": Entry("jobs:job_close", _CHANGE, "Take no more tasks; what is queued still runs."),
        "cancel": Entry("jobs:job_cancel", _CHANGE, "End all its tasks, and the job."),
        "disable": Entry("jobs:job_disable", _CHANGE, "Start no more of its tasks."),
        "enable": Entry("jobs:job_enable", _CHANGE, "Start its tasks again."),
        "edit": Entry("jobs:job_edit", _CHANGE, "Change its priority, cap or metadata."),
    },
    "node": {
        "show": Entry("nodes:node_show", _LOOK, "All about one node."),
        "list": Entry("nodes:nodes", _LOOK, "List nodes."),
        "drain": Entry("node_actions:node_drain", _CHANGE, "Start no new tasks on nodes."),
        "undrain": Entry("node_actions:node_undrain", _CHANGE, "Start tasks on nodes again."),
        "remove": Entry("node_actions:node_remove", _CHANGE, "Take nodes out of the cluster."),
        "reboot": Entry("node_actions:node_reboot", _CHANGE, "Start nodes' machines again."),
        "logs": Entry("node_actions:node_logs", _CLUSTER, "Print what a node's agent has logged."),
        "ssh": Entry("node_actions:node_ssh", _CLUSTER, "Log in to a node's machine."),
        "join-token": Entry("joining:join_token", _CLUSTER, "Print the command by which a machine joins."),
        "join-tokens": Entry("joining:join_tokens", _CLUSTER, "List join tokens."),
        "revoke-join-token": Entry("joining:revoke_join_token", _CLUSTER, "Let nobody join with it."),
    },
    "pool": {
        "show": Entry("pools:pool_show", _LOOK, "All about one pool."),
        "list": Entry("pools:pools", _LOOK, "List pools."),
        "set": Entry("pools:pool_set", _CHANGE, "Set what its nodes run before they take tasks."),
    },
    "tenant": {
        "create": Entry("tenants:tenant_create", _CLUSTER, "Make a tenant."),
        "list": Entry("tenants:tenant_list", _CLUSTER, "List tenants."),
        "show": Entry("tenants:tenant_show", _CLUSTER, "Show one tenant."),
        "disable": Entry("tenants:tenant_disable", _CLUSTER, "Refuse all its tokens."),
        "enable": Entry("tenants:tenant_enable", _CLUSTER, "Take them again."),
    },
    "quota": {
        "show": Entry("quotas:quota_show", _LOOK, "What may be had at once, and what is."),
        "set": Entry("quotas:quota_set", _CHANGE, "Limit a user, each user or the tenant."),
    },
    "webhook": {
        "add": Entry("webhooks:webhook_add", _CHANGE, "Tell an address of ends."),
        "list": Entry("webhooks:webhook_list", _LOOK, "List webhooks, and what fails."),
        "show": Entry("webhooks:webhook_show", _LOOK, "All about one webhook."),
        "test": Entry("webhooks:webhook_test", _LOOK, "Send a message now and tell the answer."),
        "remove": Entry("webhooks:webhook_remove", _CHANGE, "Send nothing more to it."),
    },
    "user": {
        "create": Entry("tenants:user_create", _CLUSTER, "Make a user."),
        "list": Entry("tenants:user_list", _CLUSTER, "List users."),
        "set-role": Entry("tenants:user_set_role", _CLUSTER, "Give a user another role."),
        "disable": Entry("tenants:user_disable", _CLUSTER, "Refuse all the user's tokens."),
        "enable": Entry("tenants:user_enable", _CLUSTER, "Take them again."),
    },
    "token": {
        "create": Entry("tenants:token_create", _CLUSTER, "Make a token and print it."),
        "list": Entry("tenants:token_list", _CLUSTER, "List tokens."),
        "rotate": Entry("tenants:token_rotate", _CLUSTER, "Make one in place of another."),
        "revoke": Entry("tenants:token_revoke", _CLUSTER, "Refuse tokens from now on."),
    },
    "store": {
        "backup": Entry("store:backup", _CLUSTER, "Write a backup to a file; the cluster may be up."),
        "restore": Entry("store:restore", _CLUSTER, "Unpack one into this home."),
        "check": Entry("store:check", _LOOK, "Look for damage."),
        "move": Entry("store:move", _CLUSTER, "Move from SQLite to PostgreSQL."),
    },
    "service": {
        "install": Entry("service:service_install", _CLUSTER, "Write, enable and start systemd units."),
        "uninstall": Entry("service:service_uninstall", _CLUSTER, "Stop and remove them."),
    },
    "debug": {
        "state": Entry("debug:debug_state", _LOOK, "What the server does at this moment."),
    },
    "config": {
        "show": Entry("settings:config_show", _LOOK, "The settings, with --origin where each comes from."),
    },
}

#: What people type who come from elsewhere, and ours.
MEANT = {
    "sbatch": "geres submit",
    "srun": "geres run",
    "salloc": "geres run",
    "squeue": "geres tasks",
    "scancel": "geres cancel",
    "sacct": "geres history",
    "sinfo": "geres nodes",
    "scontrol": "geres task show",
    "sstat": "geres task show",
    "seff": "geres task show",
    "sattach": "geres attach",
    "qsub": "geres submit",
    "bsub": "geres submit",
    "qstat": "geres tasks",
    "bjobs": "geres tasks",
    "qdel": "geres cancel",
    "bkill": "geres cancel",
    "qhold": "geres hold",
    "qrls": "geres release",
    "qalter": "geres edit",
    "qacct": "geres history",
    "qhost": "geres nodes",
    "ps": "geres tasks",
    "ls": "geres tasks",
    "list": "geres tasks",
    "queue": "geres tasks",
    "kill": "geres cancel",
    "rm": "geres cancel",
    "delete": "geres cancel",
    "stop": "geres down",
    "start": "geres up",
    "show": "geres task show",
    "info": "geres task show",
    "log": "geres logs",
    "tail": "geres logs -F",
    "output": "geres logs",
    "retry": "geres rerun",
    "requeue": "geres rerun",
    "resubmit": "geres rerun",
    "pause": "geres hold",
    "resume": "geres release",
    "exec": "geres run",
    "add": "geres submit",
    "queue-stats": "geres summary",
    "stats": "geres summary",
    "info-nodes": "geres nodes",
    "workers": "geres nodes",
    "hosts": "geres nodes",
    "serve": "geres server",
    "daemon": "geres up --detach",
}

#: Options of other systems, and ours.
_OPTIONS_MEANT = {
    "--mem": "-m / --memory",
    "--mem-per-cpu": "-m / --memory",
    "--ntasks": "-a / --array for many tasks, -c / --cpus for more cpus",
    "--ntasks-per-node": "-c / --cpus",
    "--cpus-per-task": "-c / --cpus",
    "--cores": "-c / --cpus",
    "--threads": "-c / --cpus",
    "--partition": "-p / --pool",
    "--queue": "-p / --pool",
    "--time": "-t / --time-limit",
    "--timeout": "-t / --time-limit",
    "--walltime": "-t / --time-limit",
    "--job-name": "--name",
    "--output": "-o / --stdout",
    "--error": "-e / --stderr",
    "--dependency": "--after",
    "--gres": "-G / --gpus, or -r NAME=N",
    "--gpu": "-G / --gpus",
    "--gpus-per-task": "-G / --gpus",
    "--chdir": "--cwd",
    "--workdir": "--cwd",
    "--export": "--env",
    "--wait": "`geres run`, or `geres wait ID`",
    "--wrap": "--shell",
    "--constraint": "--match",
    "--nodelist-exclude": "--match 'node.name != \"NAME\"'",
    "--exclude": "--match 'node.name != \"NAME\"'",
    "--licenses": "-r / --resource NAME=N",
    "--nice": "--priority",
    "--requeue": "--retries",
    "--begin": "--not-before",
    "--comment": "--meta comment=TEXT",
    "--follow": "-F / --follow",
    "--lines": "-n",
    "--states": "--state",
}


def option_hint(option: str, known: Sequence[str]) -> str | None:
    """The option that was meant, in words: one of these, or ours for one of another system."""
    if option in _OPTIONS_MEANT:
        return _OPTIONS_MEANT[option]
    ours = {name: meant for name, meant in _OPTIONS_MEANT.items() if any(one in meant for one in known)}
    names = {name.lstrip("-"): name for name in (*ours, *known)}
    near = nearest(option.lstrip("-"), names)
    return None if near is None else ours.get(names[near], names[near])
