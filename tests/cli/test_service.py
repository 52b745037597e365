"""Units for systemd: what they say, and that their commands work with the sockets that systemd hands over."""

from __future__ import annotations

import configparser
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys

import pytest

import geres
from geres.cli import service
from geres.cli.keeper import end_supervisor
from geres.errors import Conflict, Invalid
from tests.acceptance.acts import eventually
from tests.cluster import GERES, clean_environment, free_port
from tests.conftest import missing

#: Runs a command as systemd does: the socket as descriptor 3, with the process number of who is to take it.
_ACTIVATE = (
    "import os, sys; fd = int(sys.argv[1]); os.dup2(fd, 3); os.set_inheritable(3, True);"
    " os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid())); os.execv(sys.argv[2], sys.argv[2:])"
)


def geres_(*words, home, **more):
    env = clean_environment(home) | {"XDG_CONFIG_HOME": str(home / "config")} | more
    return subprocess.run([GERES, *words], env=env, capture_output=True, text=True, timeout=60)


def units(home, *words):
    """File name to sections of what --print shows."""
    done = geres_("service", "install", "--print", *words, home=home)
    assert done.returncode == 0, done.stderr
    found, path = {}, None
    for line in done.stdout.splitlines(keepends=True):
        if line.startswith("# /"):
            path = line[2:].strip()
            found[path] = ""
        elif path:
            found[path] += line
    return {os.path.basename(path): (path, text, parsed(text)) for path, text in found.items()}


def parsed(text):
    parser = configparser.RawConfigParser(strict=True, comment_prefixes=("#",))
    parser.optionxform = str
    parser.read_string(text)
    return parser


def test_units_for_the_machine_are_printed_and_nothing_is_changed(tmp_path):
    made = units(tmp_path, "--account", "batch", "--port", "4999", "--store", "postgresql://db/geres")

    assert set(made) == {"geres-server.socket", "geres-server.service", "geres-agent.service"}
    assert {path for path, _, _ in made.values()} == {f"/etc/systemd/system/{name}" for name in made}
    server, agent = made["geres-server.service"][2], made["geres-agent.service"][2]
    assert made["geres-server.socket"][2]["Socket"]["ListenStream"] == "127.0.0.1:4999"
    assert server["Unit"]["Requires"] == "geres-server.socket"
    assert server["Service"]["Type"] == "notify"
    assert server["Service"]["User"] == agent["Service"]["User"] == "batch"
    assert shlex.split(server["Service"]["ExecStart"])[1:] == [
        *("-m", "geres", "server", "--store", "postgresql://db/geres")
    ]
    assert agent["Service"]["KillMode"] == "process"  # else the tasks would go with the agent
    assert "--leave-tasks" in agent["Service"]["ExecStart"]
    assert server["Install"]["WantedBy"] == "multi-user.target"
    assert list(tmp_path.rglob("*.service")) == []


def test_units_of_a_user_need_no_account_and_no_root(tmp_path):
    made = units(tmp_path, "agent", "--user")
    [(path, _, unit)] = made.values()
    assert path == str(tmp_path / "config" / "systemd" / "user" / "geres-agent.service")
    assert unit["Install"]["WantedBy"] == "default.target"
    assert unit["Service"]["Environment"] == f"GERES_HOME={tmp_path}"

    refused = geres_("service", "install", "--user", "--account", "x", home=tmp_path)
    assert refused.returncode == 2
    assert "--account" in refused.stderr


def test_neither_a_long_outage_nor_a_long_migration_makes_systemd_give_up(tmp_path):
    made = units(tmp_path)
    for name in ("geres-server.service", "geres-agent.service"):
        assert made[name][2]["Unit"]["StartLimitIntervalSec"] == "0"
        assert made[name][2]["Service"]["Restart"] == "always"
    assert made["geres-server.service"][2]["Service"]["TimeoutStartSec"] == "infinity"


@pytest.mark.parametrize(
    ("words", "settings", "url"),
    [
        ((), "", "http://127.0.0.1:4470"),
        ((), 'certificate = "self-made"', None),  # the agent reads where the server is, and its fingerprint
        (("--host", "0.0.0.0"), "", None),
        (("--host", "0.0.0.0", "--insecure"), "", "http://0.0.0.0:4470"),
    ],
)
def test_the_agent_goes_where_the_server_answers(tmp_path, words, settings, url):
    (tmp_path / "config" / "geres").mkdir(parents=True)
    (tmp_path / "config" / "geres" / "geres.toml").write_text(f"[server]\n{settings}\n")
    said = shlex.split(units(tmp_path, *words)["geres-agent.service"][2]["Service"]["ExecStart"])
    assert (said[said.index("--url") + 1] if "--url" in said else None) == url


@pytest.mark.parametrize("store", ["postgresql://g:secret@db/g", "postgresql://db/g?user=g&password=secret"])
def test_a_password_gets_into_no_unit(tmp_path, store):
    done = geres_("service", "install", "--print", "--store", store, home=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "geres.toml" in done.stderr
    assert "secret" not in done.stderr


def test_the_home_belongs_to_the_account_of_the_units(tmp_path):
    if os.geteuid() != 0:
        missing("only root gives a folder away")
    home = tmp_path / "home"
    service.make_home(home, "nobody")
    assert home.stat().st_uid == pwd.getpwnam("nobody").pw_uid
    assert home.stat().st_mode & 0o777 == 0o700
    service.make_home(home, "nobody")
    (home / "token").touch()
    with pytest.raises(Conflict, match="chown"):
        service.make_home(home, "daemon")
    with pytest.raises(Invalid, match="no account 'nosuch'"):
        service.make_home(home, "nosuch")


def test_a_home_with_blanks_and_percent_signs_is_quoted(tmp_path):
    home = tmp_path / "50% of it"
    home.mkdir()
    [(_, _, unit)] = units(home, "agent", "--user").values()
    assert unit["Service"]["Environment"] == f'"GERES_HOME={tmp_path}/50%% of it"'


def test_systemd_finds_nothing_wrong_with_them(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        missing("there is no systemd-analyze here")
    assert analyze is not None
    for name, (_, text, _) in units(tmp_path).items():
        (tmp_path / name).write_text(text)
    done = subprocess.run([analyze, "verify", *tmp_path.glob("geres-*")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_systemd_it_says_so_and_writes_nothing(tmp_path):
    done = geres_("service", "install", "--user", home=tmp_path, PATH="/nowhere")
    assert done.returncode == 7
    assert "--print" in done.stderr
    assert list(tmp_path.rglob("geres-*")) == []
    assert geres_("service", "uninstall", "--user", "--yes", home=tmp_path).returncode == 4


def test_install_and_uninstall_call_systemctl_and_leave_other_units_alone(tmp_path):
    """With a systemctl that only notes how it was called: tests must not touch the machine's own."""
    tools, home = tmp_path / "bin", tmp_path / "home"
    tools.mkdir()
    home.mkdir()
    (tools / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    (tools / "systemctl").chmod(0o755)
    folder = home / "config" / "systemd" / "user"

    assert geres_("service", "install", "--user", home=home, PATH=str(tools)).returncode == 0
    names = ["geres-server.socket", "geres-server.service", "geres-agent.service"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    assert (tmp_path / "calls").read_text().splitlines() == [
        "--user daemon-reload",
        f"--user enable --now {' '.join(names)}",
    ]
    (folder / "geres-agent.service").write_text("[Unit]\nDescription=mine\n")
    assert geres_("service", "install", "--user", home=home, PATH=str(tools)).returncode == 5
    assert geres_("service", "uninstall", "--user", "--yes", home=home, PATH=str(tools)).returncode == 0
    assert [path.name for path in folder.iterdir()] == ["geres-agent.service"]


def test_the_server_takes_the_socket_of_systemd_and_tells_when_it_is_ready(tmp_path):
    port = free_port()
    made = units(tmp_path, "server", "--port", str(port))
    command = shlex.split(made["geres-server.service"][2]["Service"]["ExecStart"])
    with (
        socket.create_server(("127.0.0.1", port)) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
    ):
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(30)
        env = clean_environment(tmp_path) | {"NOTIFY_SOCKET": str(tmp_path / "notify")}

        def start():
            fd = str(listener.fileno())
            words = [sys.executable, "-c", _ACTIVATE, fd, *command]
            return subprocess.Popen(words, env=env, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL)

        server = start()
        try:
            assert notified.recv(100) == b"READY=1"
            with geres.Client(home=tmp_path) as client:
                assert client.url == f"http://127.0.0.1:{port}"
                task = client.submit(["true"])
                # As `systemctl restart` does it: meanwhile requests wait in the socket.
                server.send_signal(signal.SIGTERM)
                assert server.wait(30) == 0
                assert notified.recv(100) == b"STOPPING=1"
                server = start()
                assert eventually(lambda: client.task_info(task.id).state.value) == "queued"
                assert notified.recv(100) == b"READY=1"
        finally:
            server.terminate()
            assert server.wait(30) == 0


def test_a_descriptor_that_is_no_listening_socket_is_refused(tmp_path):
    done = geres_("server", "--listen-fd", "2", home=tmp_path)
    assert done.returncode == 2
    assert "no listening socket" in done.stderr


def test_the_agent_leaves_its_tasks_when_systemd_stops_it(tmp_path, make_cluster):
    cluster = make_cluster(flags=("--no-agent",))
    home = tmp_path / "node"
    home.mkdir()
    shutil.copy2(cluster.home / "agent.token", home)
    [(_, _, unit)] = units(home, "agent").values()
    command = [*shlex.split(unit["Service"]["ExecStart"]), "--url", cluster.url, "--name", "n1"]
    env = clean_environment(home)

    def start():
        with (tmp_path / "log").open("a") as log:
            return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    agent, client = start(), cluster.client()
    try:
        task = client.submit(["sh", "-c", f"until [ -e {tmp_path}/go ]; do sleep 0.02; done"])
        eventually(lambda: client.task_info(task.id).state.value, lambda state: state == "running")
        attempt = client.task_info(task.id).attempt
        agent.terminate()
        assert agent.wait(30) == 0
        agent = start()
        assert client.submit(["true"]).wait(timeout=60).succeeded
        (tmp_path / "go").touch()
        assert task.wait(timeout=60).succeeded
        assert client.task_info(task.id).attempt == attempt
    finally:
        (tmp_path / "go").touch()
        agent.kill()
        agent.wait()
        end_supervisor(home)
