"""The one shape of every loop: an outage is waited out with growing, uneven pauses; a fault ends it."""

from __future__ import annotations

import logging
import re

import anyio
import pytest

from geres.aio import Doorbell, Pulse, run_loop
from geres.errors import StoreUnavailable


class Step:
    """Raises what it is given, in order, then stops the loop by cancelling it."""

    def __init__(self, *outcomes):
        self.outcomes, self.calls = list(outcomes), 0
        self.scope = anyio.CancelScope()

    async def __call__(self):
        self.calls += 1
        if not self.outcomes:
            self.scope.cancel()
            return False
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


async def run(step, pulse=None):
    with step.scope:
        await run_loop("this", step, every=60.0, bell=Doorbell(), pulse=pulse)


async def test_an_outage_is_waited_out_with_growing_pauses(caplog):
    caplog.set_level(logging.WARNING)
    step = Step(*[StoreUnavailable("away") for _ in range(3)], True, True)
    pulse = Pulse()
    await run(step, pulse)
    assert step.calls == 6
    pauses = [
        float(re.search(r"next try in ([\d.]+) s", record.getMessage())[1]) for record in caplog.records
    ]
    assert pauses == [0.1, 0.2, 0.4]
    assert (pulse.rounds, pulse.error) == (6, "away")


async def test_pauses_are_uneven_so_that_loops_do_not_come_back_together(monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(anyio, "sleep", sleep)
    for _ in range(20):
        await run(Step(StoreUnavailable("away")))
    assert len(set(slept)) > 15
    assert all(0.08 <= seconds <= 0.12 for seconds in slept)


async def test_another_error_ends_the_loop():
    step = Step(ValueError("a fault"), True)
    with pytest.raises(ValueError, match="a fault"):
        await run(step)
    assert step.calls == 1


def test_a_loop_that_hangs_or_does_not_come_round_is_late():
    pulse = Pulse(every=0.0)
    assert pulse.late_seconds() == 0.0
    pulse.begin()
    assert pulse.began_at is not None
    pulse.began_at -= 90
    assert pulse.late_seconds() >= 90
    pulse.end()
    assert (pulse.rounds, pulse.late_seconds() < 1) == (1, True)
    assert pulse.longest_seconds >= 90
    pulse.ended_at -= 70
    assert 70 <= pulse.late_seconds() < 80
