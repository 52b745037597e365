"""Settings as a user meets them."""

from __future__ import annotations

import json

import pytest


def test_u140_settings_come_in_layers_and_tell_where_from(cluster, tmp_path):
    project = tmp_path / "project" / "deep"
    project.mkdir(parents=True)
    (tmp_path / "project" / "geres.toml").write_text(
        'include = "more.toml"\n[agent]\n'
        'name = "${env:WHO}-${server.port}"\nlabels = { site = "${file:site}" }\n'
    )
    (tmp_path / "project" / "more.toml").write_text("[server]\nport = 7001\nlease_seconds = 20\n")
    (tmp_path / "project" / "site").write_text("north\n")

    done = cluster.run(
        *("config", "show", "--origin", "--json"),
        cwd=project,
        env={"WHO": "me", "GERES_SERVER__LEASE_SECONDS": "30"},
        check=True,
    )

    shown = {row["key"]: (row["value"], row["origin"]) for row in json.loads(done.stdout)}
    assert shown["server.port"] == (7001, str(tmp_path / "project" / "more.toml"))
    assert shown["server.lease_seconds"] == (30, "environment GERES_SERVER__LEASE_SECONDS")
    assert shown["agent.name"] == ("me-7001", str(tmp_path / "project" / "geres.toml"))
    assert shown["agent.labels"] == ({"site": "north"}, str(tmp_path / "project" / "geres.toml"))
    assert shown["server.host"] == ("127.0.0.1", "default")

    table = cluster.run("config", "show", "--origin", cwd=project, env={"WHO": "me"}, check=True).stdout
    assert str(tmp_path / "project" / "more.toml") in table


def test_what_is_wrong_in_the_settings_is_told_all_at_once(cluster, tmp_path):
    (tmp_path / "geres.toml").write_text('[server]\nprot = 1\nport = 99999\nstore = "mysql:"\n')

    done = cluster.run("config", "show", cwd=tmp_path)

    assert done.returncode == 2
    for part in ("server.prot", "did you mean server.port", "99999 is no port", "'mysql:' is no store"):
        assert part in done.stderr


@pytest.mark.parametrize("value", ["70000", "-1", "many"])
def test_a_cluster_does_not_start_with_a_bad_setting(cluster, tmp_path, value):
    home = tmp_path / "home"
    done = cluster.run("up", "--detach", env={"GERES_HOME": str(home), "GERES_SERVER__PORT": value})

    assert done.returncode == 2
    assert "server.port" in done.stderr
    assert not home.exists()
