"""Who goes first, and how much is sent ahead."""

from __future__ import annotations

from typing import NamedTuple

from geres.scheduling.credit import MOST_AHEAD, credit, mean
from geres.scheduling.order import Queue, decayed, interleave


class Waits(NamedTuple):
    priority: int
    seq: int


def order(*queues: Queue[Waits], use: dict[str, float] | None = None) -> list[int]:
    return [lane for lane, _ in interleave(queues, use or {})]


def queue(lane: int, who: str, n: int, *, priority: int = 0, seq: int = 0, cost: float = 1.0) -> Queue[Waits]:
    return Queue(lane, who, cost, [Waits(priority, seq + i) for i in range(n)])


def test_higher_priority_goes_first_whoever_asks() -> None:
    assert order(queue(1, "ann", 2), queue(2, "ann", 2, priority=5, seq=9)) == [2, 2, 1, 1]


def test_equal_submitters_take_turns() -> None:
    assert order(queue(1, "ann", 3), queue(2, "bob", 3, seq=50)) == [1, 2, 1, 2, 1, 2]


def test_who_has_used_less_goes_first_until_even() -> None:
    assert order(queue(1, "ann", 3), queue(2, "bob", 3, seq=50), use={"ann": 2.0}) == [2, 2, 1, 2, 1, 1]


def test_lanes_of_one_submitter_go_by_age() -> None:
    assert order(queue(1, "ann", 2, seq=10), queue(2, "ann", 2, seq=0)) == [2, 2, 1, 1]


def test_without_costs_it_is_first_in_first_out() -> None:
    first, second = queue(1, "ann", 2, seq=0, cost=0), queue(2, "bob", 2, seq=1, cost=0)
    assert order(first, second) == [1, 1, 2, 2] or order(first, second) == [1, 2, 1, 2]


def test_use_fades() -> None:
    assert decayed(8.0, 600, 600) == 4.0


def test_only_short_tasks_are_sent_ahead() -> None:
    assert credit(None, 2, 0) == 0
    assert credit(1.0, 2, 0) == 0
    assert credit(0.001, 2, 0) == 500
    assert credit(0.001, 2, 480) == 20
    assert credit(0.00001, 8, 0) == MOST_AHEAD
    assert credit(0.001, 0, 0) == 0


def test_the_mean_follows_slowly() -> None:
    assert mean(None, 2.0) == 2.0
    assert mean(1.0, 2.0) == 1.1
