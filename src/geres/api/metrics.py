"""Prometheus text, written by hand: gauges by state and a few facts need no client library.

The counts come from the store, not from this process, so that every server tells the same.
"""

from __future__ import annotations

from geres.api.context import Context
from geres.model.nodes import Summary


def text(counts: Summary, context: Context) -> str:
    """All metrics, each with its help and type."""
    lines = [
        *_by_state("geres_tasks", "Tasks by state.", counts.tasks),
        *_by_state("geres_jobs", "Jobs by state.", counts.jobs),
        *_by_state("geres_nodes", "Nodes by state.", counts.nodes),
        *_one("geres_quarantined_records", "Records set aside as unreadable.", counts.quarantined),
        *_one("geres_schedules_active", "Schedules that make jobs.", counts.schedules_active),
        "# HELP geres_build_info The version that this server runs.",
        "# TYPE geres_build_info gauge",
        f'geres_build_info{{version="{context.version}"}} 1',
    ]
    return "\n".join(lines) + "\n"


def _by_state(name: str, about: str, counts: dict[str, int]) -> list[str]:
    rows = [f'{name}{{state="{state}"}} {count}' for state, count in counts.items()]
    return [f"# HELP {name} {about}", f"# TYPE {name} gauge", *rows]


def _one(name: str, about: str, value: int) -> list[str]:
    return [f"# HELP {name} {about}", f"# TYPE {name} gauge", f"{name} {value}"]
