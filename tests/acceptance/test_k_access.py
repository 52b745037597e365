"""U142 and U143: who gets in and what they reach, with the installed command and over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.acceptance.acts import Gate, eventually, fresh_job, own_cluster, shown, submit
from tests.cluster import GERES, Cluster


def ask(cluster: Cluster, path: str, token: str | None) -> tuple[int, Any]:
    """Status and JSON of a GET."""
    request = urllib.request.Request(cluster.url + path)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def make_token(cluster: Cluster, *words: str, tenant: str = "default") -> str:
    """The secret that `geres token create` prints."""
    return cluster.run("--tenant", tenant, "token", "create", *words, check=True).stdout.strip()


def as_user(token: str) -> dict[str, str]:
    return {"GERES_TOKEN": token}


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with own_cluster(request, cpus=4) as made:
        made.wait_until_ready()
        yield made


def test_u142_no_token_and_a_wrong_one_get_401_and_are_noted(cluster: Cluster) -> None:
    for token, words in (
        (None, "a token is needed"),
        ("geres_wrong", "not known here"),
        (cluster.token[:-1], "not known here"),
    ):
        status, body = ask(cluster, "/v1/tasks", token)
        assert (status, body["error"]["code"]) == (401, "unauthenticated")
        assert words in body["error"]["message"]
    done = cluster.run("tasks", env=as_user("geres_wrong"))
    assert (done.returncode, done.stdout) == (3, "")
    assert "geres: unauthenticated: the token is not known here" in done.stderr
    assert cluster.run("run", "--", "echo", "on").stdout == "on\n"
    noted = shown(cluster, "audit", "--result", "unauthenticated")
    assert {entry["target"] for entry in noted} >= {"GET /v1/tasks"}


def test_u142_expired_revoked_and_rotated_tokens(cluster: Cluster) -> None:
    cluster.run("user", "create", "mia", check=True)
    short = make_token(cluster, "--user", "mia", "--expires", "1s", "--name", "short")
    first = make_token(cluster, "--user", "mia", "--name", "laptop", "--expires", "30d")
    assert shown(cluster, "whoami") != json.loads(cluster.run("whoami", "--json", env=as_user(first)).stdout)

    second = json.loads(
        cluster.run("token", "rotate", "laptop", "--json", "--overlap", "1h", env=as_user(first)).stdout
    )
    for token in (first, second["token"]):
        assert ask(cluster, "/v1/whoami", token)[0] == 200
    listed = shown(cluster, "token", "list", "--user", "mia")
    assert {one["name"] for one in listed} >= {"laptop"}
    assert all("token" not in one and first not in json.dumps(one) for one in listed)
    cluster.run("token", "revoke", second["id"], "--yes", check=True)
    status, body = ask(cluster, "/v1/whoami", second["token"])
    assert (status, body["error"]["message"]) == (401, "the token was revoked: ask your administrator")
    eventually(lambda: ask(cluster, "/v1/whoami", short)[0], lambda status: status == 401)
    assert "was good until" in ask(cluster, "/v1/whoami", short)[1]["error"]["message"]
    cluster.run("user", "disable", "mia", "--yes", check=True)
    assert ask(cluster, "/v1/whoami", first)[0] == 401
    cluster.run("user", "enable", "mia", check=True)
    assert ask(cluster, "/v1/whoami", first)[0] == 200


def test_u142_roles_bound_what_one_may_do(cluster: Cluster) -> None:
    mine = submit(cluster, "--hold", "true")
    tokens = {}
    for role in ("operator", "user", "viewer"):
        cluster.run("user", "create", f"a-{role}", "--role", role, check=True)
        tokens[role] = make_token(cluster, "--user", f"a-{role}")

    def status(role: str, *words: str) -> int:
        return cluster.run(*words, env=as_user(tokens[role])).returncode

    assert [status(role, "task", "show", mine) for role in tokens] == [0, 0, 0]
    assert [status(role, "cancel", mine) for role in ("viewer", "user")] == [3, 3]
    assert [status(role, "submit", "true") for role in tokens] == [0, 0, 3]
    assert [status(role, "user", "create", f"by-{role}") for role in tokens] == [0, 3, 3]
    assert [status(role, "tenant", "create", f"by-{role}") for role in tokens] == [3, 3, 3]
    assert status("operator", "user", "create", "boss", "--role", "admin") == 3
    assert status("operator", "cancel", mine) == 0
    changes = shown(cluster, "audit", "--action", "task.cancel", "--limit", "10")
    assert {(entry["user"], entry["result"]) for entry in changes} >= {
        ("a-operator", "ok"),
        ("a-user", "denied"),
    }
    cluster.run("user", "set-role", "a-user", "viewer", check=True)
    assert status("user", "submit", "true") == 3


def test_u142_the_token_of_a_task_reaches_what_it_made_and_no_other_job(
    cluster: Cluster, tmp_path: Any
) -> None:
    other = fresh_job(cluster)
    submit(cluster, "--job", other, "--hold", "echo", "secret")
    gate = Gate(tmp_path)
    script = (
        f'echo "$GERES_TOKEN" > {tmp_path}/token; {GERES} whoami; '
        f"id=$({GERES} submit echo child); {GERES} wait $id && {GERES} logs $id; "
        f"{GERES} job show {other}; echo status $?; {GERES} cancel {other}.1; echo status $?; "
        f"{GERES} task show {other}.1; echo status $?"
    )
    task = submit(cluster, "-c", "0.1", "--shell", f"{script}; {gate.words[2]}")
    eventually(lambda: cluster.run("logs", task).stdout, lambda text: text.count("status") == 3)

    lines = cluster.run("logs", task, check=True).stdout.splitlines()
    assert "(task) of tenant default" in lines[0]
    assert lines[1:] == ["child", "status 4", "status 4", "status 4"]
    token = (tmp_path / "token").read_text().strip()
    assert ask(cluster, f"/v1/tasks/{task}", token)[0] == 200
    assert ask(cluster, f"/v1/jobs/{other}", token)[0] == 404
    assert ask(cluster, f"/v1/tasks/{other}.1/logs", token)[0] == 404
    assert ask(cluster, "/v1/users", token)[0] == 403
    gate.open()
    cluster.run("wait", task, check=True)
    eventually(lambda: ask(cluster, f"/v1/tasks/{task}", token)[0], lambda status: status == 401)
    assert "is over" in ask(cluster, f"/v1/tasks/{task}", token)[1]["error"]["message"]


def test_u143_a_user_of_one_tenant_gets_404_for_a_task_of_another(cluster: Cluster) -> None:
    task = submit(cluster, "--name", "hidden", "echo", "hidden")
    cluster.run("wait", task, check=True)
    cluster.run("tenant", "create", "beta", check=True)
    cluster.run("--tenant", "beta", "user", "create", "bob", "--role", "operator", check=True)
    bob = make_token(cluster, "--user", "bob", tenant="beta")

    for path in (f"/v1/tasks/{task}", f"/v1/tasks/{task}/logs", f"/v1/tasks/{task}/why", "/v1/jobs/1"):
        status, body = ask(cluster, path, bob)
        assert (status, body["error"]["code"]) == (404, "not_found")
        assert "hidden" not in json.dumps(body)
    for words in (("task", "show", task), ("logs", task), ("cancel", task), ("rerun", task), ("why", task)):
        done = cluster.run(*words, env=as_user(bob))
        assert done.returncode == 4, (words, done)
    for words in (("tasks", "--all"), ("jobs", "--all"), ("history", "--all"), ("nodes",), ("user", "list")):
        assert "hidden" not in cluster.run(*words, env=as_user(bob), check=True).stdout
    assert cluster.run("nodes", "--json", env=as_user(bob)).stdout.strip() == "[]"
    own = cluster.run("submit", "true", env=as_user(bob), check=True).stdout.strip()
    assert cluster.run("task", "show", own).returncode == 4  # of the admin's own tenant there is no such task
    assert shown(cluster, "--tenant", "beta", "task", "show", own)["submitted_by"] == "bob"
    cluster.run("tenant", "disable", "beta", "--yes", check=True)
    assert ask(cluster, "/v1/whoami", bob)[0] == 401
    assert shown(cluster, "task", "show", task)["state"] == "succeeded"
