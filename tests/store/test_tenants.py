"""Tenants, users, tokens and the audit log: who may manage whom, and what is written down."""

from __future__ import annotations

import msgspec
import pytest

from geres.errors import Conflict, Denied, GeresError, Invalid, NameTaken, NotFound, Unauthenticated
from geres.model.callers import Caller, Role
from geres.model.tenants import (
    AuditQuery,
    CreateToken,
    CreateUser,
    EditUser,
    MadeToken,
    RotateToken,
    TokenQuery,
)
from geres.store import audit, tenants, tokens
from geres.store.audit import Note
from tests.store.world import SECOND, World, key


def caller(world: World, role: Role, subject: str = "root") -> Caller:
    return Caller(world.tenant_id, "default", subject, role, "10.0.0.1")


def user(world: World, name: str, role: str) -> None:
    spec = msgspec.convert({"name": name, "role": role}, CreateUser)
    world.db.call(tenants.create_user, caller(world, "admin"), spec, now_us=world.now_us)


def token(world: World, by: Caller, **spec: object) -> MadeToken:
    return world.db.call(tokens.create, by, msgspec.convert(spec, CreateToken), now_us=world.now_us)


def who(world: World, secret: str) -> Caller:
    return world.db.call(tokens.find_caller, tokens.token_hash(secret), now_us=world.now_us)


def entries(world: World, **query: object) -> list[tuple[str, str, str | None]]:
    page = world.db.call(audit.list_audit, caller(world, "admin"), msgspec.convert(query, AuditQuery))
    return [(entry.user, entry.action, entry.target) for entry in reversed(page.items)]


def refused(kind: type[GeresError], world: World, function: object, *words: object, **more: object) -> str:
    """The message; nothing was written."""
    before = entries(world)
    with pytest.raises(kind) as caught:
        world.db.call(function, *words, now_us=world.now_us, **more)  # type: ignore[arg-type]
    assert entries(world) == before
    return str(caught.value)


def test_a_token_is_its_users_and_only_its_hash_is_kept(world: World) -> None:
    user(world, "mia", "user")
    made = token(world, caller(world, "admin"), user="mia", name="laptop", expires_seconds=60)

    found = who(world, made.token)
    assert (found.subject, found.role, found.tenant, found.token_id) == (
        "mia",
        "user",
        "default",
        int(made.id),
    )
    assert made.token.startswith(made.prefix or "?")
    assert made.token not in str(world.rows("SELECT * FROM token"))
    world.now_us += 61 * SECOND
    with pytest.raises(Unauthenticated, match="was good until") as over:
        who(world, made.token)
    assert over.value.whose.subject == "mia"
    with pytest.raises(Unauthenticated, match="not known"):
        who(world, "geres_other")


def test_a_role_holds_for_tokens_that_there_are(world: World) -> None:
    user(world, "mia", "operator")
    root = caller(world, "admin")
    full, less = token(world, root, user="mia"), token(world, root, user="mia", role="viewer")
    edit = tenants.edit_user

    assert [who(world, one.token).role for one in (full, less)] == ["operator", "viewer"]
    world.db.call(edit, root, "mia", EditUser(role="admin"), now_us=world.now_us)
    assert [who(world, one.token).role for one in (full, less)] == ["admin", "viewer"]
    world.db.call(edit, root, "mia", EditUser(role="viewer"), now_us=world.now_us)
    assert [who(world, one.token).role for one in (full, less)] == ["viewer", "viewer"]
    world.db.call(edit, root, "mia", EditUser(disabled=True), now_us=world.now_us)
    with pytest.raises(Unauthenticated, match="the user mia was disabled"):
        who(world, full.token)
    world.db.call(edit, root, "mia", EditUser(disabled=False), now_us=world.now_us)
    assert who(world, full.token).role == "viewer"


def test_rotation_leaves_the_old_one_good_for_a_while(world: World) -> None:
    user(world, "mia", "user")
    mia = caller(world, "user", "mia")
    old = token(world, mia, name="ci", expires_seconds=1000)
    world.now_us += 400 * SECOND

    new = world.db.call(tokens.rotate, mia, "ci", RotateToken(overlap_seconds=100), now_us=world.now_us)

    assert (new.name, new.user, new.role) == ("ci", "mia", "user")
    assert who(world, old.token).subject == who(world, new.token).subject == "mia"
    world.now_us += 101 * SECOND
    with pytest.raises(Unauthenticated):
        who(world, old.token)
    world.now_us += 890 * SECOND  # the new one lives as long as the old one was made for
    assert who(world, new.token)
    world.now_us += 20 * SECOND
    with pytest.raises(Unauthenticated):
        who(world, new.token)
    words = refused(Conflict, world, tokens.rotate, mia, new.id, RotateToken())
    assert "geres token create" in words


def test_nobody_manages_those_who_may_more(world: World) -> None:
    for name, role in (("op", "operator"), ("mia", "user"), ("boss", "admin")):
        user(world, name, role)
    root, op, mia = caller(world, "admin"), caller(world, "operator", "op"), caller(world, "user", "mia")
    bosses = token(world, root, user="boss", name="bosses")
    mias = token(world, root, user="mia")

    refused(Denied, world, tenants.create_user, op, CreateUser(name="x", role="admin"))
    refused(Denied, world, tenants.edit_user, op, "mia", EditUser(role="admin"))
    refused(Denied, world, tenants.edit_user, op, "boss", EditUser(disabled=True))
    refused(Denied, world, tokens.create, op, CreateToken(user="boss"))
    refused(Denied, world, tokens.revoke, op, bosses.id)
    refused(Denied, world, tokens.rotate, op, "bosses", RotateToken())
    refused(Denied, world, tokens.create, mia, CreateToken(user="op"))
    refused(Invalid, world, tokens.create, mia, CreateToken(role="operator"))
    refused(NotFound, world, tokens.revoke, mia, bosses.id)
    refused(
        Conflict, world, tenants.edit_user, caller(world, "admin", "boss"), "boss", EditUser(disabled=True)
    )
    refused(NotFound, world, tokens.create, op, CreateToken(user="nobody"))
    refused(NameTaken, world, tenants.create_user, op, CreateUser(name="mia"))
    refused(Invalid, world, tenants.create_user, op, CreateUser(name="a\nb"))
    with pytest.raises(Denied):
        world.db.call(tokens.list_tokens, mia, TokenQuery(user="op"), now_us=world.now_us)
    listed = world.db.call(tokens.list_tokens, mia, TokenQuery(), now_us=world.now_us)
    assert [one.id for one in listed] == [mias.id]
    world.db.call(tokens.revoke, op, mias.prefix, now_us=world.now_us)
    with pytest.raises(Unauthenticated, match="revoked"):
        who(world, mias.token)


def test_no_user_has_the_name_of_a_node(world: World) -> None:
    told = refused(Invalid, world, tenants.create_user, caller(world, "admin"), CreateUser(name="node:n1"))
    assert told.startswith("name: ")


def test_a_user_has_so_many_good_tokens_and_no_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_MOST", 2)
    user(world, "mia", "user")
    first, _ = (token(world, caller(world, "admin"), user="mia") for _ in range(2))

    told = refused(Conflict, world, tokens.create, caller(world, "user", "mia"), CreateToken())
    assert "mia has 2 tokens" in told
    refused(Conflict, world, tokens.rotate, caller(world, "user", "mia"), first.id, RotateToken())
    world.db.call(tokens.revoke, caller(world, "user", "mia"), first.id, now_us=world.now_us)
    token(world, caller(world, "user", "mia"))


def test_a_lesser_token_makes_none_that_may_more(world: World) -> None:
    user(world, "boss", "admin")
    less = caller(world, "user", "boss")  # a token of role user of somebody who is an admin
    theirs = token(world, caller(world, "admin", "boss"), name="full")

    assert who(world, theirs.token).role == "admin"
    assert who(world, token(world, less).token).role == "user"
    refused(Denied, world, tokens.rotate, less, "full", RotateToken())


def test_tenants_are_apart_and_can_be_shut_out(world: World) -> None:
    root = caller(world, "admin")
    made = world.db.call(tenants.create_tenant, root, "beta", now_us=world.now_us)
    beta_id = world.db.call(tokens.tenant_id_of, "beta")
    assert beta_id is not None
    there = Caller(beta_id, "beta", "root", "admin", home="default")
    world.db.call(tenants.create_user, there, CreateUser(name="bob", role="operator"), now_us=world.now_us)
    bobs = world.db.call(tokens.create, there, CreateToken(user="bob"), now_us=world.now_us)
    bob = who(world, bobs.token)
    user(world, "mia", "user")
    mias = token(world, root, user="mia", name="mias")

    assert made.name == bob.tenant == "beta"
    assert [one.name for one in world.db.call(tenants.list_tenants, bob)] == ["beta"]
    assert {one.name for one in world.db.call(tenants.list_tenants, root)} == {"beta", "default"}
    assert [one.name for one in world.db.call(tenants.list_users, bob, now_us=world.now_us)] == ["bob"]
    for function, words in (
        (tokens.revoke, (bob, mias.id)),
        (tokens.revoke, (bob, "mias")),
        (tenants.edit_user, (bob, "mia", EditUser(role="viewer"))),
        (tokens.create, (bob, CreateToken(user="mia"))),
    ):
        refused(NotFound, world, function, *words)
    with pytest.raises(NotFound):
        world.db.call(tenants.get_tenant, bob, "default")
    refused(NameTaken, world, tenants.create_tenant, root, "beta")
    refused(Conflict, world, tenants.disable_tenant, root, "default", True)
    world.db.call(tenants.disable_tenant, root, "beta", True, now_us=world.now_us)
    with pytest.raises(Unauthenticated, match="the tenant beta was disabled"):
        who(world, bobs.token)
    world.db.call(tenants.disable_tenant, root, "beta", False, now_us=world.now_us)
    assert who(world, bobs.token)


def test_a_tenant_that_was_disabled_is_closed_to_the_accounts_of_the_machine_too(world: World) -> None:
    admin = Caller(1, "elsewhere", "zoe", "admin")
    world.db.call(tokens.find_account, "mia", role="user", now_us=world.now_us)
    world.db.call(tenants.disable_tenant, admin, "default", True, now_us=world.now_us)

    for name in ("mia", "tom"):
        with pytest.raises(Unauthenticated, match="tenant default was disabled"):
            world.db.call(tokens.find_account, name, role="user", now_us=world.now_us)
    root = world.db.call(tokens.find_account, "root", role="admin", now_us=world.now_us)  # may enable it
    assert (root.subject, root.role, root.tenant_id) == ("root", "admin", world.tenant_id)


def test_the_audit_log_is_written_with_the_change_or_not_at_all(world: World) -> None:
    (task,) = world.submit()
    note = Note("task.test", audit.tasks([key(task)]), world.now_us)

    def fail(tx: object, caller: Caller) -> None:
        raise Invalid("no")

    def work(tx: object, caller: Caller) -> str:
        return "done"

    assert world.db.call(audit.noted, note, work, world.ann) == "done"
    with pytest.raises(Invalid):
        world.db.call(audit.noted, note, fail, world.ann)
    assert entries(world) == [("ann", "task.test", task)]


def test_the_audit_log_is_paged_filtered_bounded_and_of_one_tenant(world: World) -> None:
    def write(who: Caller, action: str, target: str, result: str = "ok") -> None:
        def do(tx: object) -> None:
            audit.write(tx, who, action, target, now_us=world.now_us, result=result)  # type: ignore[arg-type]

        world.db.call(do)
        world.now_us += SECOND

    start = world.now_us
    stranger = Caller(world.tenant_id + 1, "beta", "bob", "operator")
    for number in range(5):
        write(world.ann, "job.cancel", str(number))
    write(world.bob, "job.close", "9")
    write(world.bob, "task.cancel", "x" * 10_000, result="denied")
    write(stranger, "job.cancel", "77")

    def page(who: Caller, **query: object) -> tuple[list[str | None], str | None]:
        found = world.db.call(audit.list_audit, who, msgspec.convert(query, AuditQuery))
        return [entry.target for entry in found.items], found.next_cursor

    operator = caller(world, "operator")
    first, cursor = page(operator, limit=2, action="job.cancel")
    assert first == ["4", "3"]
    assert page(operator, limit=2, action="job.cancel", cursor=cursor)[0] == ["2", "1"]
    assert page(operator, action="job.")[0] == ["9", "4", "3", "2", "1", "0"]
    assert page(operator, user="bob", result="ok")[0] == ["9"]
    assert "77" not in page(operator, limit=100)[0]
    assert "77" in page(caller(world, "admin"), limit=100)[0]
    assert page(stranger)[0] == ["77"]
    assert page(operator, since="1970-01-01T00:16:44Z", until="1970-01-01T00:16:45Z")[0] == ["4"]
    assert len(page(operator, action="task.cancel")[0][0] or "") == 500
    for bad in ({"limit": 0}, {"cursor": "x"}, {"cursor": "9" * 30}, {"since": "x"}):
        with pytest.raises(Invalid):
            page(operator, **bad)
    assert world.db.call(audit.forget, before_us=start + 3 * SECOND) == 3
    assert page(operator, action="job.cancel")[0] == ["4", "3"]


def test_ids_that_follow_each_other_are_written_as_ranges() -> None:
    keys = [key(one) for one in ("12.3", "12.4", "12.5", "12.9", "13.1")]

    assert audit.tasks(keys) == "12.3-5,9 13.1"
    assert audit.tasks([]) == ""


def test_last_uses_are_noted_and_old_tokens_forgotten(world: World) -> None:
    user(world, "mia", "user")
    mia = caller(world, "user", "mia")
    old, kept = token(world, mia, expires_seconds=10), token(world, mia)
    world.db.call(tokens.mark_used, {int(kept.id): world.now_us, 999: 1})
    world.now_us += 100 * SECOND

    assert world.db.call(tokens.forget, before_us=world.now_us) == 1
    listed = world.db.call(tokens.list_tokens, mia, TokenQuery(all=True), now_us=world.now_us)
    assert [(one.id, one.last_used_at is not None) for one in listed] == [(kept.id, True)]
    assert old.id != kept.id


def test_the_token_of_a_home_makes_its_user_and_is_good_again_after_a_start(world: World) -> None:
    def start() -> None:
        world.db.call(
            tokens.ensure_token,
            "s" * 43,
            tenant_id=world.tenant_id,
            subject="eve",
            role="admin",
            now_us=world.now_us,
        )

    start()
    start()
    found = who(world, "s" * 43)
    assert (found.subject, found.role) == ("eve", "admin")
    users = world.db.call(tenants.list_users, found, now_us=world.now_us)
    assert [(one.name, one.role, one.token_count) for one in users] == [("eve", "admin", 1)]
    assert world.row("SELECT count(*) AS n FROM token WHERE hash LIKE '%sss%'") == {"n": 0}
    world.db.call(tokens.revoke, found, str(found.token_id), now_us=world.now_us)
    with pytest.raises(Unauthenticated, match="revoked"):
        who(world, "s" * 43)
    start()
    assert who(world, "s" * 43).role == "admin"
