"""What a server believes of leases and of clocks, at times that a test sets."""

from __future__ import annotations

import time

import pytest

from geres.server.clock import Clock
from geres.server.leases import Watch
from geres.store.nodes import Lease

SECOND = 1_000_000
LEASE_US = 15 * SECOND
START_US = 1_000_000 * SECOND


class Stopwatch:
    """Stands for what the machine counts; the wall clock is another matter."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.seconds)
        monkeypatch.setattr(time, "monotonic_ns", lambda: int(self.seconds * 1e9))


@pytest.fixture
def stopwatch(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    return Stopwatch(monkeypatch)


def lease(at_us: int, *, length_us: int = LEASE_US) -> Lease:
    return Lease(at_us + length_us, at_us)


def ends_after(watch: Watch, one: Lease, stopwatch: Stopwatch, most: int = 200) -> int:
    """Looks each second; how many pass until it has ended."""
    for passed in range(most):
        if watch.ended([one]):
            return passed
        stopwatch.seconds += 1
    raise AssertionError(f"it has not ended after {most} s")


@pytest.mark.parametrize("set_by", [0, -3600, -60, -3, 3, 60, 3600])
def test_a_lease_lasts_its_length_by_whatever_clock_it_was_written(stopwatch: Stopwatch, set_by: int) -> None:
    watch = Watch(LEASE_US, lambda: START_US)
    assert ends_after(watch, lease(START_US + set_by * SECOND), stopwatch) == 15


@pytest.mark.parametrize("set_by", [0, -3600, -3, 3, 3600])
def test_a_renewal_by_a_clock_that_was_set_is_a_renewal(stopwatch: Stopwatch, set_by: int) -> None:
    watch = Watch(LEASE_US, lambda: START_US)
    for _ in range(14):
        assert not watch.ended([lease(START_US)])
        stopwatch.seconds += 1
    assert ends_after(watch, lease(START_US + (14 + set_by) * SECOND), stopwatch) == 15


def test_a_server_with_longer_leases_is_believed_also_while_its_clock_is_ahead(stopwatch: Stopwatch) -> None:
    for ahead in (0, 3600 * SECOND):
        watch = Watch(LEASE_US, lambda: START_US)
        one = lease(START_US + ahead, length_us=4 * LEASE_US)
        assert ends_after(watch, one, stopwatch) == 60


def test_an_end_in_the_far_future_is_not_believed(stopwatch: Stopwatch) -> None:
    """It was written by a server that died before its clock was set back."""
    watch = Watch(LEASE_US, lambda: START_US)
    assert ends_after(watch, Lease(START_US + 3600 * SECOND, START_US - SECOND), stopwatch) == 60


def test_who_said_good_bye_has_one_lease_more(stopwatch: Stopwatch) -> None:
    watch = Watch(LEASE_US, lambda: START_US)
    assert ends_after(watch, Lease(None, START_US - 3600 * SECOND, 7, "offline"), stopwatch) == 15


def test_who_looks_away_for_half_a_lease_begins_anew(stopwatch: Stopwatch) -> None:
    watch = Watch(LEASE_US, lambda: START_US)
    for _ in range(10):
        watch.ended([lease(START_US)])
        stopwatch.seconds += 1
    stopwatch.seconds += 8
    assert ends_after(watch, lease(START_US), stopwatch) == 15


def test_a_clock_goes_back_by_a_jump_only(stopwatch: Stopwatch) -> None:
    clock = Clock(START_US)
    clock.follow(-SECOND)
    assert clock() == START_US - SECOND  # nobody has seen a later time
    clock.follow(-SECOND)
    assert [clock() - START_US + SECOND for _ in range(3)] == [1, 2, 3]  # no renewal looks like another
    stopwatch.seconds += 3
    assert clock() == START_US + SECOND
    clock.jump(-3600 * SECOND)
    assert clock() == START_US - 3599 * SECOND
    stopwatch.seconds += 1
    assert clock() == START_US - 3598 * SECOND


def test_a_slow_answer_is_no_jump(stopwatch: Stopwatch) -> None:
    clock = Clock(START_US)
    stopwatch.seconds += 10
    now_us = START_US + 10 * SECOND
    assert clock.behind_us(now_us - 4 * SECOND) == -4 * SECOND
    assert clock.behind_us(now_us - 4 * SECOND, waited_us=5 * SECOND) == 0
    assert clock.behind_us(now_us - 60 * SECOND, waited_us=5 * SECOND) == -55 * SECOND
    assert clock.behind_us(now_us + 60 * SECOND, waited_us=5 * SECOND) == 60 * SECOND
