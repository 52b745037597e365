"""Quotas: counted from what is there, enforced in the turn and at the submit."""

from __future__ import annotations

import pytest

from geres.errors import Denied, Invalid, NotFound, OverQuota
from geres.model.jobs import ArraySpec
from geres.model.quotas import Amounts, SetQuota
from geres.model.tasks import TaskSpec
from geres.store import quotas, submit, why
from tests.store.world import FirstNode, World, ended, key

TRUE = TaskSpec(command=["true"])


class Within(FirstNode):
    """Reads no more than the caps let start."""

    def choose(self, lanes, caps):
        return [
            (
                lane.id,
                min([self.most, *(cap.most_of(lane.id, 99) for cap in caps if lane.id in cap.lane_ids)]),
            )
            for lane in lanes
        ]


@pytest.fixture
def planned(monkeypatch):
    """The world's turns keep to limits as the dispatcher does."""
    monkeypatch.setattr("tests.store.world.FirstNode", Within)


def quota(world: World, user=None, **limits):
    change = SetQuota(user=user, **limits)
    return world.db.call(quotas.set_quota, world.ann, change, now_us=world.now_us)


def shown(world, user=None):
    """(most, used) of the tenant or of a user."""
    found = world.db.call(quotas.list_quotas, world.ann, user)
    return next((one.most, one.used) for one in found if one.user == user)


def test_use_is_counted_and_limits_are_set_and_taken_away(world):
    world.add_user("bob")
    node = world.connect()
    ids = world.submit(3, cpus=1.5)
    world.assign(node, 1)
    world.job(task=TRUE, array=ArraySpec(range="1-2000"))
    quota(world, running=5, cpus=2.5)
    quota(world, running=None, jobs=0)

    assert shown(world) == (
        Amounts(cpus=2.5, jobs=0),
        Amounts(running=1, cpus=1.5, queued=2002, jobs=1),
    )
    assert shown(world, "ann")[1] == Amounts(running=1, cpus=1.5, queued=2002, jobs=1)
    assert shown(world, "bob")[1] == Amounts(running=0, cpus=0, queued=0, jobs=0)
    assert len(ids) == 3


def test_of_each_user_holds_where_there_is_no_own_limit(world):
    world.add_user("bob")
    quota(world, "*", running=5, jobs=1)
    quota(world, "ann", running=7)

    assert shown(world, "ann")[0] == Amounts(running=7, jobs=1)
    assert shown(world, "bob")[0] == Amounts(running=5, jobs=1)


def test_a_user_who_is_not_there_gets_a_limit_only_where_users_come_by_themselves(world):
    world.add_user("robert")
    with pytest.raises(NotFound, match=r"no user 'robret'; did you mean robert\?"):
        quota(world, "robret", running=1)
    with pytest.raises(NotFound, match="no user 'robret'"):
        shown(world, "robret")

    change = SetQuota(user="robret", running=1)
    world.db.call(quotas.set_quota, world.ann, change, now_us=world.now_us, users_come=True)

    assert shown(world, "robret")[0] == Amounts(running=1)
    taken = world.db.call(
        *(quotas.set_quota, world.ann, SetQuota(user="robret", running=None)),
        now_us=world.now_us,
        users_come=True,
    )
    assert taken[-1].most == Amounts()


@pytest.mark.parametrize("user", [None, "ann", "*"])
@pytest.mark.parametrize(("limits", "fit"), [({"running": 2}, 2), ({"cpus": 3.5}, 2), ({"running": 0}, 0)])
def test_beyond_what_may_run_tasks_wait_and_why_says_so(world, planned, user, limits, fit):
    node = world.connect()
    ids = world.submit(4, cpus=1.5)
    quota(world, user, **limits)

    started = world.assign(node)

    assert len(started) == fit
    assert world.assign(node) == []
    [cap] = world.db.call(why.of_task, world.ann, key(ids[-1])).caps
    assert cap.full
    assert cap.words == ("tenant default" if user is None else "user ann") + " (its quota)"
    if started:
        world.turn(node, 0, ended=[ended(*started[0])])
        assert len(world.assign(node)) == 1


@pytest.mark.parametrize("user", [None, "ann", "*"])
def test_beyond_the_queue_a_submit_is_refused_and_nothing_is_stored(world, user):
    world.submit(2)
    quota(world, user, queued=4, jobs=1)

    with pytest.raises(OverQuota, match="is 4 tasks waiting, there are 2, and this would add 3"):
        world.submit(3)
    with pytest.raises(OverQuota, match="is 4 tasks waiting, there are 2, and this would add 5000"):
        world.job(task=TRUE, array=ArraySpec(range="1-5000"))
    assert shown(world, "ann")[1].queued == 2
    world.submit(1)
    world.job()
    with pytest.raises(OverQuota, match="is 1 open jobs, there are 1"):
        world.job(name="one-too-many")
    assert world.row("SELECT COUNT(*) AS n FROM job")["n"] == 2


def test_what_runs_or_has_ended_is_not_in_the_queue(world):
    node = world.connect()
    world.submit(2)
    quota(world, queued=2)
    started = world.assign(node)
    world.turn(node, 0, ended=[ended(*started[0])])

    world.submit(2)

    with pytest.raises(OverQuota):
        world.submit(1)


def test_another_users_quota_is_not_touched(world):
    quota(world, "ann", queued=0, jobs=0)

    world.db.call(submit.create_tasks, world.bob, None, TRUE, [submit.TaskRow()], now_us=world.now_us)

    with pytest.raises(OverQuota):
        world.submit()


@pytest.mark.parametrize(
    ("user", "limits", "problem"),
    [
        (None, {}, "nothing to set"),
        ("", {"jobs": 1}, "user: '' is no name"),
        (None, {"running": -1}, "running: -1 is not between"),
        (None, {"cpus": float("nan")}, "cpus: nan is no number"),
    ],
)
def test_a_quota_that_cannot_be_meant_is_refused(world, user, limits, problem):
    with pytest.raises(Invalid, match=problem):
        quota(world, user, **limits)


def test_a_user_sets_none(world):
    with pytest.raises(Denied):
        world.db.call(quotas.set_quota, world.bob, SetQuota(running=1), now_us=world.now_us)
