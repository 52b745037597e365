"""Join tokens, credentials of nodes, and two agents of one name."""

from __future__ import annotations

import hashlib

import pytest
from msgspec.structs import replace

from geres.errors import Invalid, NameTaken, NotFound, Unauthenticated
from geres.model.callers import Caller
from geres.model.joining import CreateJoinToken, Join
from geres.model.wire import Hello
from geres.store import joining, nodes, tenants, tokens
from tests.store.world import LEASE_US, SECOND

TOKEN = "join_of-a-test"


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def make(world):
    def make(token=TOKEN, caller=None, **wanted):
        body = CreateJoinToken(**wanted)
        return world.db.call(joining.create, caller or world.ann, body, token, now_us=world.now_us)

    return make


@pytest.fixture
def join(world):
    def join(node="n1", credential="c1", token=TOKEN):
        body = Join(token=token, node=node, credential=digest(credential))
        return world.db.call(joining.join, body, address="198.51.100.7", now_us=world.now_us)

    return join


def who(world, credential):
    return world.db.call(tokens.find_caller, digest(credential), now_us=world.now_us)


def test_a_machine_gets_a_credential_that_is_good_for_its_own_node(world, make, join):
    make(pool="gpu")
    joined = join()
    assert (joined.node, joined.tenant, joined.pool) == ("n1", "default", "gpu")
    caller = who(world, "c1")
    assert (caller.role, caller.node, caller.pool, caller.tenant_id) == ("node", "n1", "gpu", world.tenant_id)


def test_only_hashes_are_stored(world, make, join):
    make()
    join()
    stored = str(world.rows("SELECT * FROM join_token") + world.rows("SELECT * FROM token"))
    assert TOKEN not in stored
    assert "'c1'" not in stored
    assert digest(TOKEN) in stored


def test_a_join_token_is_good_once(world, make, join):
    make()
    join()
    with pytest.raises(Unauthenticated, match=r"was used already \(1 of 1 times\): `geres node join-token`"):
        join("n2", "c2")
    with pytest.raises(Unauthenticated, match="not known here"):
        who(world, "c2")


def test_the_same_machine_may_ask_again_for_its_answer_may_be_lost(world, make, join):
    make(expires_seconds=60)
    first = join()
    world.now_us += 3600 * SECOND
    assert join() == first
    assert world.row("SELECT used FROM join_token")["used"] == 1
    with pytest.raises(Unauthenticated):
        join(credential="another")


def test_a_join_token_may_be_good_for_many(world, make, join):
    made = make(uses=2)
    join("n1", "c1")
    join("n2", "c2")
    with pytest.raises(Unauthenticated, match="2 of 2 times"):
        join("n3", "c3")
    (listed,) = world.db.call(joining.list_tokens, world.ann, now_us=world.now_us)
    assert (listed.id, listed.state, listed.used, listed.join) == (made.id, "used", 2, None)


def test_one_that_expired_was_revoked_or_never_was_is_refused(world, make, join):
    make("join_short", expires_seconds=60)
    revoked = make("join_revoked")
    world.db.call(joining.revoke, world.ann, revoked.id, now_us=world.now_us)
    world.db.call(joining.revoke, world.ann, revoked.id, now_us=world.now_us)
    world.now_us += 61 * SECOND
    with pytest.raises(Unauthenticated, match="was good until 1970"):
        join(token="join_short")
    with pytest.raises(Unauthenticated, match="was revoked at 1970"):
        join(token="join_revoked")
    with pytest.raises(Unauthenticated, match="is not known here"):
        join(token="join_never")
    assert world.rows("SELECT * FROM token WHERE role = 'node'") == []


def test_nobody_joins_a_disabled_tenant(world, make, join):
    admin = replace(world.ann, role="admin")
    world.db.call(tenants.create_tenant, admin, "guests", now_us=world.now_us)
    guests = world.row("SELECT id FROM tenant WHERE name = 'guests'")["id"]
    make(caller=Caller(guests, "guests", "gil", "operator"))
    world.db.call(tenants.disable_tenant, admin, "guests", True, now_us=world.now_us)
    with pytest.raises(Unauthenticated, match="tenant guests was disabled"):
        join()


def test_join_tokens_are_of_one_tenant(world, make, join):
    made = make()
    world.db.call(tenants.create_tenant, world.ann, "guests", now_us=world.now_us)
    guests = world.row("SELECT id FROM tenant WHERE name = 'guests'")["id"]
    gil = Caller(guests, "guests", "gil", "admin")
    assert world.db.call(joining.list_tokens, gil, now_us=world.now_us) == []
    with pytest.raises(NotFound):
        world.db.call(joining.revoke, gil, made.id, now_us=world.now_us)
    make("join_of-gil", caller=gil)
    join("n1", "c1")
    assert join("n1", "c2", "join_of-gil").tenant == "guests"  # another tenant's n1 is another node
    assert who(world, "c2").tenant_id == guests
    assert who(world, "c1").tenant_id == world.tenant_id


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"uses": 0}, "uses: 0 is not between"),
        ({"uses": 10**6}, "uses"),
        ({"expires_seconds": 0.0}, "expires_seconds: 0 is not"),
        ({"expires_seconds": float("nan")}, "expires_seconds"),
        ({"expires_seconds": 1e12}, "expires_seconds"),
        ({"pool": "a.b"}, "pool: 'a.b' cannot name a pool"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_stored(world, make, wanted, told):
    with pytest.raises(Invalid, match=told):
        make(**wanted)
    assert world.rows("SELECT * FROM join_token") == []


@pytest.mark.parametrize("number", ["0", "x", "", "9" * 30, "1.5", "²"])
def test_an_unknown_number_is_not_found(world, number):
    with pytest.raises(NotFound):
        world.db.call(joining.revoke, world.ann, number, now_us=world.now_us)


def test_names_and_credentials_that_cannot_be_are_refused(world, make, join):
    make()
    for name in ("a b\n", "-oProxyCommand=x", "$(id)", "n1;reboot", "n1`id`"):
        with pytest.raises(Invalid, match="cannot name a node"):
            join(name)
    body = Join(token=TOKEN, node="n1", credential="not a hash")
    with pytest.raises(Invalid, match="credential"):
        world.db.call(joining.join, body, address="", now_us=world.now_us)
    assert world.row("SELECT used FROM join_token")["used"] == 0


def test_a_name_is_taken_while_its_machine_is_there_and_free_once_it_is_gone(world, make, join):
    make(uses=9)
    join("n1", "c1")
    node = world.connect("n1")
    with pytest.raises(NameTaken, match="another machine has joined as n1 and is there"):
        join("n1", "c2")
    assert world.row("SELECT used FROM join_token")["used"] == 1
    assert who(world, "c1").node == "n1"

    world.now_us += LEASE_US + SECOND
    world.lose()
    join("n1", "c2")
    with pytest.raises(Unauthenticated, match="revoked"):
        who(world, "c1")
    assert who(world, "c2").node == "n1"
    assert node.node_id


def test_a_credential_is_renewed_and_the_old_one_is_no_good(world, make, join):
    make(pool="gpu")
    join()
    caller = who(world, "c1")
    for _ in range(2):  # the answer may be lost
        world.db.call(joining.renew, caller, digest("c2"), now_us=world.now_us)
        caller = who(world, "c2")
    assert (caller.node, caller.pool) == ("n1", "gpu")
    with pytest.raises(Unauthenticated):
        who(world, "c1")


def test_a_token_of_any_node_is_not_renewed_like_that(world):
    caller = Caller(world.tenant_id, "default", "node", "node")
    with pytest.raises(Invalid, match="did not join"):
        world.db.call(joining.renew, caller, digest("c2"), now_us=world.now_us)


def test_a_removed_node_is_let_in_no_more(world, make, join):
    make()
    join()
    assert world.db.call(joining.revoke_node, world.tenant_id, "n1", now_us=world.now_us) == 1
    with pytest.raises(Unauthenticated, match="revoked"):
        who(world, "c1")


def test_who_joined_and_who_let_them_stands_in_the_audit_log(world, make, join):
    make()
    join()
    noted = world.rows("SELECT subject, action, target, address FROM audit ORDER BY id")
    assert [(one["subject"], one["action"], one["target"]) for one in noted] == [
        ("ann", "join_token.create", "1"),
        ("node:n1", "node.join", "n1"),
    ]
    assert noted[1]["address"] == "198.51.100.7"


def test_join_tokens_are_forgotten_long_after(world, make):
    make(expires_seconds=60)
    assert world.db.call(joining.forget, before_us=world.now_us, limit=10) == 0
    later = world.now_us + 61 * SECOND
    assert world.db.call(joining.forget, before_us=later, limit=10) == 1


# two agents of one name


def hello_of(instance="a", boot="boot-1", host="host-1", name="n1"):
    hello = Hello(1, "0", name, boot, host, f"{host}.example", "x86_64", "linux", 1, "ann", 4.0, 1 << 33)
    hello.instance = instance
    return hello


@pytest.fixture
def connect(world):
    def connect(**facts):
        return world.db.call(
            nodes.hello,
            hello_of(**facts),
            tenant_id=world.tenant_id,
            server_id=1,
            lease_us=LEASE_US,
            now_us=world.now_us,
        )

    return connect


@pytest.mark.parametrize(
    "other",
    [{"instance": "b"}, {"host": "host-2"}, {"host": "host-2", "instance": ""}],
    ids=["another folder", "another machine", "another machine, the release before"],
)
def test_a_second_agent_of_a_name_is_refused_until_the_first_is_gone(world, connect, other):
    first = connect()
    for _ in range(3):
        with pytest.raises(NameTaken, match=r"connected as n1, from host-1\.example: give this one another"):
            connect(**other)
    again = connect()  # the first one comes and goes as it likes
    assert again.epoch == first.epoch + 1

    world.now_us += LEASE_US + SECOND
    world.lose()
    connect(**other)
    with pytest.raises(NameTaken, match="from host-"):
        connect()


def test_an_agent_that_said_good_bye_leaves_its_name_to_others(world, connect):
    first = connect()
    world.db.call(nodes.goodbye, first.node_id, first.epoch, now_us=world.now_us)
    connect(instance="b", host="host-2")


def test_an_agent_of_the_release_before_is_known_by_its_machine(connect):
    connect(instance="")
    connect(instance="")
    connect(instance="a")  # it was upgraded
    with pytest.raises(NameTaken):
        connect(instance="b")
    connect(instance="")  # and is taken back
    with pytest.raises(NameTaken):
        connect(instance="b")


def test_a_machine_that_was_started_again_takes_its_node_back_at_once(connect):
    connect(boot="boot-1")
    connect(boot="boot-2")
    connect(boot="boot-3")
    connect(boot="boot-3")


def test_a_copied_machine_does_not_take_turns_with_its_original(connect):
    connect(boot="original")
    connect(boot="copy")  # looks like a restart
    for _ in range(3):
        with pytest.raises(NameTaken):
            connect(boot="original")
        connect(boot="copy")
