"""Counts over all that a caller may see."""

from __future__ import annotations

import msgspec

from geres.model.callers import Caller
from geres.model.nodes import Summary
from geres.model.states import JobState, NodeState
from geres.store.database import Tx
from geres.store.job_counts import count_states


def summary(tx: Tx, caller: Caller) -> Summary:
    """Tasks, jobs and nodes by state; every state is there, with 0 where nothing is in it."""
    jobs = {row["state"]: row["n"] for row in tx.all("jobs_by_state", tenant_id=caller.tenant_id)}
    nodes = {row["state"]: row["n"] for row in tx.all("nodes_by_state", tenant_id=caller.tenant_id)}
    return Summary(
        tasks=msgspec.structs.asdict(count_states(tx, caller.tenant_id)),
        jobs={state.value: jobs.get(state, 0) for state in JobState},
        nodes={state.value: nodes.get(state, 0) for state in NodeState},
        schedules_active=int(tx.value("active_schedules", tenant_id=caller.tenant_id) or 0),
        quarantined=int(tx.value("count_quarantine") or 0),
    )
