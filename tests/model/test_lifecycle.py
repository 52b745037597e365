"""What follows when an attempt ends."""

from __future__ import annotations

import pytest

from geres.model.lifecycle import Before, Next, after_end, retry_delay_us
from geres.model.states import TaskState
from geres.model.tasks import Retry, TaskSpec
from geres.model.wire import Ended

PLAIN = TaskSpec(command=["x"])


def then(
    outcome: str, reason: str | None = None, *, asked=None, tried=0, lost=0, spec=PLAIN, on_lost=None
) -> Next:
    return after_end(Ended(1, 1, outcome, reason), Before(asked, tried, lost), spec, on_lost, now_us=0)


def test_success_is_success_even_where_a_cancel_came_too_late() -> None:
    assert then("succeeded", asked="cancel").state is TaskState.SUCCEEDED


def test_a_task_on_a_node_that_was_stopped_goes_back_to_the_queue_and_is_charged_for_nothing() -> None:
    after = then("failed", "node_stopped", lost=2)

    assert (after.state, after.requeue, after.lost, after.retry) == (TaskState.QUEUED, 1, 0, 0)
    assert then("failed", "node_stopped", on_lost="fail").state is TaskState.FAILED
    assert then("failed", "node_stopped", asked="cancel").state is TaskState.CANCELLED


@pytest.mark.parametrize(
    ("lost", "state"), [(0, TaskState.QUEUED), (1, TaskState.QUEUED), (2, TaskState.FAILED)]
)
def test_the_third_loss_of_a_node_is_one_too_many(lost: int, state: TaskState) -> None:
    assert then("failed", "node_lost", lost=lost).state is state


def test_retries_are_counted_and_minus_one_never_ends() -> None:
    twice, ever = TaskSpec(retry=Retry(most=2)), TaskSpec(retry=Retry(most=-1))

    assert [then("failed", "exit", tried=n, spec=twice).final for n in (0, 1, 2)] == [False, False, True]
    assert not then("failed", "exit", tried=10_000, spec=ever).final


def test_the_delay_doubles_up_to_its_most() -> None:
    retry = Retry(most=-1, delay_seconds=1, most_delay_seconds=5)

    assert [retry_delay_us(retry, n) for n in (0, 1, 2, 3, 1000)] == [
        1_000_000,
        2_000_000,
        4_000_000,
        5_000_000,
        5_000_000,
    ]
