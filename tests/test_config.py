"""Settings: layers, includes, expressions, origins, and every problem told at once."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from geres import config
from geres.errors import Invalid


@pytest.fixture
def load(tmp_path):
    """Load with the files given as texts; `system`, `user` and `project` name their layer."""

    def load(*, system="", user="", project="", env=None, flags=None, extra=None):
        project_folder = tmp_path / "project" / "deep" / "deeper"
        project_folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "system.toml").write_text(system)
        (tmp_path / "user.toml").write_text(user)
        (tmp_path / "project" / "geres.toml").write_text(project)
        for name, text in (extra or {}).items():
            (tmp_path / name).write_text(text)
        return config.load(
            flags,
            env=env or {},
            cwd=project_folder,
            system_file=tmp_path / "system.toml",
            user_file=tmp_path / "user.toml",
        )

    return load


def test_without_any_source_the_defaults_hold_and_nothing_is_wrong(load):
    settings = load()

    assert settings.check() == []
    assert settings.server.lease_seconds == 15
    assert {origin for _, _, origin in settings.items()} == {"default"}


def test_each_layer_wins_over_the_ones_before_it_and_names_itself(load, tmp_path):
    port = "[server]\nport = {}\n"
    layers = {
        "system": ({"system": port.format(1)}, str(tmp_path / "system.toml")),
        "user": ({"user": port.format(2)}, str(tmp_path / "user.toml")),
        "project": ({"project": port.format(3)}, str(tmp_path / "project" / "geres.toml")),
        "env": ({"env": {"GERES_SERVER__PORT": "4"}}, "environment GERES_SERVER__PORT"),
        "flags": ({"flags": {"server.port": 5}}, "flag --port"),
    }
    given = {}
    for number, (source, origin) in enumerate(layers.values(), start=1):
        given |= source

        settings = load(**given)

        assert settings.server.port == number
        assert settings.origins == {"server.port": origin}


def test_a_flag_that_was_not_given_hides_nothing(load):
    assert load(user="[server]\nport = 7\n", flags={"server.port": None}).server.port == 7


def test_the_nearest_file_upwards_is_read_and_no_farther_one(load, tmp_path):
    (tmp_path / "project" / "deep").mkdir(parents=True)
    (tmp_path / "project" / "deep" / ".geres.toml").write_text('[agent]\npool = "near"\n')

    settings = load(project='[agent]\npool = "far"\nslots = 3\n')

    assert (settings.agent.pool, settings.agent.slots) == ("near", 0)


def test_a_file_upwards_of_another_account_is_not_read(load, tmp_path, monkeypatch):
    monkeypatch.setattr("os.getuid", lambda: 12345)
    monkeypatch.setattr("pathlib.Path.stat", another_owner(tmp_path / "project" / "geres.toml"))

    settings = load(project='[agent]\nwrap = "evil"\n')

    assert settings.agent.wrap == ""
    assert "belongs to another account" in settings.check()[0]


def another_owner(path):
    stat = Path.stat

    def changed(self, **options):
        found = stat(self, **options)
        if self == path:
            return os.stat_result((*found[:4], 54321, *found[5:10]))
        return found

    return changed


def test_people_s_units_are_understood_in_files_and_in_the_environment(load):
    settings = load(
        user='[server]\nretention_seconds = "7d"\n[agent]\ndisk_bytes = "1.5G"\n',
        env={
            "GERES_AGENT__MEMORY_BYTES": "500M",
            "GERES_AGENT__LABELS": "site=north, rack=7",
            "GERES_AGENT__RESOURCES": "licence=3",
            "GERES_AGENT__SHARED_PATHS": "/data,/scratch",
            "GERES_CLIENT__REFUSE_ROOT": "yes",
        },
    )

    assert settings.check() == []
    assert settings.server.retention_seconds == 7 * 86400
    assert settings.agent.disk_bytes == 1610612736
    assert settings.agent.memory_bytes == 500 << 20
    assert settings.agent.labels == {"site": "north", "rack": "7"}
    assert settings.agent.resources == {"licence": 3}
    assert settings.agent.shared_paths == ("/data", "/scratch")
    assert settings.client.refuse_root is True


def test_what_a_file_says_wins_over_what_it_includes(load, tmp_path):
    settings = load(
        user='include = ["common.toml", "more-*.toml"]\n[server]\nport = 1\n',
        extra={
            "common.toml": '[server]\nport = 2\nlease_seconds = 20\n[agent]\npool = "a"\n',
            "more-1.toml": '[agent]\npool = "b"\n',
        },
    )

    assert settings.check() == []
    assert (settings.server.port, settings.server.lease_seconds, settings.agent.pool) == (1, 20.0, "b")
    assert settings.origins["agent.pool"] == str(tmp_path / "more-1.toml")


def test_an_include_in_a_circle_or_of_nothing_is_told(load):
    settings = load(user='include = ["a.toml", "gone.toml"]\n', extra={"a.toml": 'include = "user.toml"\n'})

    circle, gone = settings.check()
    assert "goes in a circle" in circle
    assert "include names gone.toml, which is not there" in gone


def test_expressions_look_into_files_the_environment_and_other_settings(load):
    settings = load(
        user=(
            '[server]\nstore = "postgresql://geres:${file:password}@db/geres"\n'
            'host = "${env:ADDRESS}"\ninsecure = true\n'
            '[agent]\nname = "${server.host}-${server.port}"\nwrap = "echo $${HOME}"\n'
            'slots = "${env:SLOTS}"\nlabels = { at = "${server.host}" }\n'
        ),
        env={"ADDRESS": "10.0.0.7", "SLOTS": "4"},
        extra={"password": "s3cret\n"},
    )

    assert settings.check() == []
    assert settings.server.store == "postgresql://geres:s3cret@db/geres"
    assert settings.agent.name == "10.0.0.7-4470"
    assert settings.agent.wrap == "echo ${HOME}"
    assert settings.agent.slots == 4
    assert settings.agent.labels == {"at": "10.0.0.7"}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("${env:NOT_SET}", "the environment has no NOT_SET"),
        ("${file:not-there}", "cannot be read"),
        ("${agent.pool}", "leads back to itself"),
        ("${agent.name}", "leads back to itself"),
        ("${nonsense}", "write ${env:NAME}"),
    ],
)
def test_an_expression_that_leads_nowhere_is_told(load, value, told):
    settings = load(user=f'[agent]\npool = "{value}"\nname = "${{agent.pool}}"\n')

    assert any(told in problem for problem in settings.check())


@pytest.mark.parametrize(
    ("text", "certificate"),
    [
        ("insecure = true", ("none",)),
        ("insecure = false", ()),
        ('certificate = "self-made"', ("self-made",)),
        ('certificate = "/c.pem"', ("/c.pem",)),
        ('certificate = ["/c.pem", "/c.key"]', ("/c.pem", "/c.key")),
    ],
)
def test_the_certificate_is_one_setting_and_an_older_one_still_counts(load, text, certificate):
    settings = load(user=f"[server]\n{text}\n")

    assert settings.check() == []
    assert settings.server.certificate == certificate
    assert settings.server.insecure == (certificate == ("none",))


@pytest.mark.parametrize("text", ['["a", "b", "c"]', '["none", "a"]', '["self-made", "none"]'])
def test_a_certificate_that_makes_no_sense_is_named(load, text):
    (problem,) = load(user=f"[server]\ncertificate = {text}\n").check()

    assert problem.startswith("server.certificate")
    assert "is neither one or two files, nor self-made, nor none" in problem


def test_all_problems_come_at_once_with_the_key_and_its_source(load, tmp_path):
    settings = load(
        user='stray = 1\n[server]\nlease_secnds = 3\nport = 70000\ncertificate = "a,none"\nstore = "my:"\n',
        env={"GERES_AGENT__CPUS": "many", "GERES_LOG__LEVEL": "loud", "GERES_NONE__SUCH": "1"},
    )

    problems = "\n".join(settings.check())

    assert "stray stands outside of a section" in problems
    assert (
        f"server.lease_secnds ({tmp_path / 'user.toml'}): there is no such setting; did you mean" in problems
    )
    assert f"server.port ({tmp_path / 'user.toml'}): 70000 is no port" in problems
    assert "server.certificate" in problems
    assert "server.store" in problems
    assert "agent.cpus (environment GERES_AGENT__CPUS): 'many' is no number" in problems
    assert "log.level (environment GERES_LOG__LEVEL): 'loud' is none of" in problems
    assert "none.such (environment GERES_NONE__SUCH)" in problems
    with pytest.raises(Invalid, match="70000 is no port"):
        settings.checked()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[server]\nport = "x"\n', "'x' is no whole number"),
        ("[server]\nport = true\n", "True is no whole number"),
        ("[server]\nstore = 7\n", "7 is no text"),
        ('[client]\nrefuse_root = "perhaps"\n', "neither true nor false"),
        ("[server]\nlease_seconds = [1]\n", "is no number"),
        ('[server]\nlease_seconds = "soon"\n', "'soon' is no duration"),
        ('[agent]\ndisk_bytes = "1X"\n', "'1X' is no size"),
        ("[agent]\nshared_paths = [1]\n", "is no list of texts"),
        ('[agent]\nlabels = "a"\n', "is no list of NAME=VALUE"),
        ("[agent]\nlabels = [1]\n", "is no table"),
        ('[agent]\nresources = { a = "b" }\n', "'b' is no whole number"),
        ("[server\n", "cannot be read"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_value_of_the_wrong_kind_is_told_and_the_default_stays(tmp_path, text, told):
    path = tmp_path / "geres.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))

    settings = config.load(env={}, cwd=tmp_path, system_file=tmp_path / "no", user_file=tmp_path / "no")

    [problem] = settings.check()
    assert told in problem
    assert str(path) in problem
    assert settings.server == config.ServerConfig()


def test_the_home_is_asked_for_or_the_platform_s(monkeypatch, tmp_path):
    monkeypatch.setenv("GERES_HOME", str(tmp_path))
    assert config.home() == tmp_path

    monkeypatch.delenv("GERES_HOME")
    assert config.home().name == "geres"


def test_every_process_of_a_machine_names_it_alike():
    program = "from geres.config import host_id; print(host_id())"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert other.stdout.strip() == config.host_id()


def test_there_are_fewer_than_forty_settings():
    assert len(config.KINDS) < 40


def test_the_module_starts_fast():
    program = "import geres.config, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    slow = {"psutil", "anyio", "asyncio", "platformdirs", "tomllib", "dataclasses"}
    assert not slow & set(loaded.stdout.split())


@pytest.mark.parametrize("key", list(config.KINDS))
def test_every_setting_is_read_by_some_program(key):
    name = key.partition(".")[2]
    programs = [path for path in Path(config.__file__).parent.rglob("*.py") if path.name != "config.py"]

    # Settings arrive as an object of their section, so that reading one is an attribute of its name.
    assert any(re.search(rf"\.{name}\b", path.read_text()) for path in programs)
