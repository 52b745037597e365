"""Set-up and joining: a server host, machines that join with one command, through tunnels, over TLS."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time
import tomllib
from pathlib import Path

import psutil
import pytest

from tests.acceptance.acts import eventually, shown
from tests.acceptance.harm import assert_refused
from tests.cluster import GERES, Cluster, clean_environment, free_port
from tests.conftest import missing
from tests.server.certificates import Authority


@pytest.fixture
def machine():
    """Call it for a new machine: a home of its own.  What is started there ends with the test."""
    with contextlib.ExitStack() as stack:

        def make():
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="geres-test-"))
            made = Machine(Path(folder))
            stack.callback(made.end)
            return made

        yield make


class Machine:
    """Another machine, as far as geres can tell: it has nothing of the cluster but what is typed there."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.log = folder / "log"
        self.env = clean_environment(self.home)
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            self._processes.append(
                subprocess.Popen(
                    [str(GERES), *words],
                    env=self.env | (env or {}),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.home.parent,
                )
            )
        return self._processes[-1]

    def run(self, *words: str, input: str = "", env: dict[str, str] | None = None):
        return subprocess.run(
            [str(GERES), *words],
            input=input,
            env=self.env | (env or {}),
            cwd=self.home.parent,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    @property
    def listening(self) -> list[psutil.Process]:
        """What of this machine listens on a port."""
        return [
            one for one in self.processes() if any(c.status == "LISTEN" for c in one.net_connections("tcp"))
        ]

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                if process.environ().get("GERES_HOME") == str(self.home):
                    found.append(process)
        return found

    def end(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for left in self.processes():  # the supervisor outlives its agent
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        assert "Traceback" not in self.said, self.said


@pytest.fixture
def secure(make_cluster) -> Cluster:
    """A cluster with TLS and no node."""
    return make_cluster(flags=("--certificate", "self-made", "--no-agent"))


def command(cluster, *words):
    """The words behind `geres` that `geres node join-token` says to type on the new machine."""
    done = cluster.run("node", "join-token", *words, check=True)
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("geres agent --join https://")
    return done.stdout.split()[1:]


def names(cluster):
    return sorted(node["name"] for node in shown(cluster, "nodes") if node["connected"])


def test_u147_a_new_machine_joins_with_one_command(secure, machine):
    new = machine()
    new.start(*command(secure), "--name", "new", "--trust-submitters")
    eventually(lambda: names(secure), lambda found: found == ["new"])

    assert secure.run("run", "--", "sh", "-c", "echo hello from $GERES_NODE_ID", check=True).stdout == (
        "hello from new\n"
    )
    big = secure.run("run", "--", "sh", "-c", "yes | head -c 3000000", check=True).stdout
    assert len(big) == 3_000_000  # more than an end report holds: it is uploaded
    assert "this machine is the node new of https://" in new.said
    credential = new.home / "node.json"
    assert credential.stat().st_mode & 0o777 == 0o600
    assert not (new.home / "token").exists()


def test_u147_two_lines_of_settings_are_enough(secure, machine):
    new = machine()
    join = command(secure)[-1]
    place = Path(new.env["XDG_CONFIG_HOME"]) / "geres"
    place.mkdir(parents=True)
    (place / "geres.toml").write_text(f'[agent]\njoin = "{join}"\n')
    first = new.start("agent")
    eventually(lambda: names(secure), lambda found: len(found) == 1)

    first.send_signal(signal.SIGTERM)  # the token is used up by now; the two lines stay
    first.wait(20)
    eventually(lambda: names(secure), lambda found: not found)
    new.start("agent")
    eventually(lambda: names(secure), lambda found: len(found) == 1)


def test_u147_a_join_token_is_good_once_and_for_its_time(secure, machine):
    words = command(secure)
    first, second = machine(), machine()
    first.start(*words, "--name", "first")
    eventually(lambda: names(secure), lambda found: found == ["first"])

    again = second.run(*words, "--name", "second")
    assert_refused(again, "was used already", "geres node join-token", status=3, code="unauthenticated")
    short = command(secure, "--expires", "1s")
    eventually(lambda: shown(secure, "node", "join-tokens")[0]["state"], lambda state: state == "expired")
    late = second.run(*short, "--name", "second")
    assert_refused(late, "was good until", status=3, code="unauthenticated")
    revoked = command(secure)
    secure.run("node", "revoke-join-token", shown(secure, "node", "join-tokens")[0]["id"], check=True)
    assert_refused(second.run(*revoked), "was revoked", status=3, code="unauthenticated")
    cut = [*words[:-1], words[-1][:-9]]
    assert_refused(second.run(*cut), "only a part of one")
    unknown = re.sub("/join_.{8}", "/join_AAAAAAAA", words[-1])
    assert_refused(second.run(*words[:-1], unknown), "is not known here", status=3, code="unauthenticated")

    log = dict(secure.logs())["server.log"]
    for told in ("was used already", "was good until", "was revoked"):
        assert told in log
    assert names(secure) == ["first"]
    audit = shown(secure, "audit")
    noted = [one["action"] for one in audit]
    assert noted.count("node.join") == 1
    refused = [one for one in audit if one["result"] == "unauthenticated" and "node:second" in str(one)]
    assert len(refused) >= 2  # by its name, in the tenant whose join token it was
    assert noted.count("join_token.create") == 3


def test_u147_the_second_of_a_name_is_told_and_the_first_stays(secure, machine):
    join = command(secure, "--uses", "9")
    first, second = machine(), machine()
    first.start(*join, "--name", "twin")
    eventually(lambda: names(secure), lambda found: found == ["twin"])
    epoch = shown(secure, "node", "show", "twin")["history"]

    refused = second.run(*join, "--name", "twin")
    assert_refused(refused, "another machine has joined as twin", "--name", status=5, code="name_taken")
    assert shown(secure, "node", "show", "twin")["history"] == epoch
    second.start(*join, "--name", "twin-2")
    eventually(lambda: names(secure), lambda found: found == ["twin", "twin-2"])


def test_u147_a_credential_is_renewed_and_revoked(secure, machine):
    new = machine()
    new.start(*command(secure), "--name", "n1", "--trust-submitters")
    eventually(lambda: names(secure), lambda found: found == ["n1"])
    before = json.loads((new.home / "node.json").read_text())["token"]

    done = new.run("agent", "--renew")
    assert done.returncode == 0, done.stderr
    after = json.loads((new.home / "node.json").read_text())["token"]
    assert before != after
    secure.run("run", "--", "true", check=True)  # it is at work all the while
    assert names(secure) == ["n1"]

    secure.run("node", "remove", "n1", check=True)
    eventually(lambda: names(secure), lambda found: not found)
    eventually(lambda: new.said, lambda said: "revoked" in said)
    assert f"remove {new.home}/node.json and join again" in new.said


def test_u147_init_sets_up_a_host_and_never_overwrites(machine):
    host = machine()
    file = Path(host.env["XDG_CONFIG_HOME"]) / "geres" / "geres.toml"
    port = free_port()
    words = ("init", "--host", "127.0.0.1", "--certificate", "self-made", "--port", str(port))
    words += ("--address", "https://head.example:4470", "--file", str(file))

    dry = host.run(*words, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert not file.exists()
    assert not host.home.exists()

    done = host.run(*words)
    assert done.returncode == 0, done.stderr
    assert file.read_text().strip() == dry.stdout.strip()
    assert tomllib.loads(file.read_text())["server"] == {
        "host": "127.0.0.1",
        "port": port,
        "url": "https://head.example:4470",
        "certificate": "self-made",
    }
    assert (host.home / "token").stat().st_mode & 0o777 == 0o600
    start, join = done.stdout.splitlines()
    assert join == "geres node join-token"

    token = (host.home / "token").read_text()
    assert host.run(*words).returncode == 0
    assert (host.home / "token").read_text() == token
    other = host.run(*words, "--port", "4999")
    assert_refused(other, str(file), "server.port", status=5, code="conflict")
    assert f"port = {port}" in file.read_text()

    up = host.run("up", "--detach")
    try:
        assert up.returncode == 0, up.stderr
        assert f"https://127.0.0.1:{port}" in up.stdout
        assert "sha256:" in up.stderr
        told = host.run(*join.split()[1:])
        assert told.stdout.startswith("geres agent --join https://head.example:4470/join/")
    finally:
        host.run("down", "--now")
    assert start.startswith("geres ")


@pytest.mark.parametrize(
    ("words", "told", "status", "code"),
    [
        (("--store", "mysql:x"), "'mysql:x' is no store", 2, "invalid"),
        (("--store", "postgresql://nobody@127.0.0.1:1/x"), "cannot be used", 7, "store_unavailable"),
        (("--certificate", "/no/such.pem"), "/no/such.pem cannot be used", 2, "invalid"),
        (("--certificate", "here.pem"), "is relative", 2, "invalid"),
        (("--insecure", "--certificate", "self-made"), "contradicts", 2, "invalid"),
        (("--address", "head.example"), "is no address", 2, "invalid"),
    ],
)
def test_init_refuses_what_would_not_work_and_writes_nothing(machine, words, told, status, code):
    host = machine()
    file = host.home.parent / "geres.toml"
    done = host.run("init", "--file", str(file), *words)
    assert_refused(done, told, status=status, code=code)
    assert not file.exists()
    assert not host.home.exists()


def test_u144_with_a_certificate_for_a_host_name_this_machine_is_a_node_too(
    make_cluster, tmp_path, monkeypatch
):
    """It is of an authority, so nobody pins it, and 127.0.0.1 does not stand in it."""
    authority = Authority(tmp_path)
    files = authority.sign("head")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    cluster = make_cluster(flags=("--certificate", str(files[0]), "--key", str(files[1])))
    assert cluster.run("run", "--", "echo", "hi", check=True).stdout == "hi\n"
    before = cluster.pid("server")
    cluster.run("restart", check=True)
    assert cluster.pid("server") != before
    assert cluster.run("status", check=True).stdout.count(f"https://localhost:{cluster.port}") >= 1


def test_init_looks_at_the_postgres_that_it_is_given(machine, fresh_postgres):
    host = machine()
    url = fresh_postgres()
    done = host.run("init", "--store", url, "--file", str(host.home.parent / "geres.toml"), "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert re.match(r"PostgreSQL 1\d\.\d+ at postgresql://.*, empty", said["store"])
    assert tomllib.loads((host.home.parent / "geres.toml").read_text())["server"]["store"] == url


class Forwarder:
    """What `ssh -L` does: a port of this machine is another's."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.count = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._open: list[socket.socket] = []
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target), 10)
            except OSError:
                return
            far.settimeout(None)
            self.count += 1
            self._open += [near, far]
            for source, target in ((near, far), (far, near)):
                self._threads.append(threading.Thread(target=self._pass_on, args=(source, target)))
                self._threads[-1].start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        for one in self._open:
            one.close()


def test_u144_an_agent_behind_a_tunnel_runs_tasks_and_listens_nowhere(secure, machine):
    far = machine()
    with contextlib.closing(Forwarder(secure.port)) as tunnel:
        address = f"https://127.0.0.1:{tunnel.port}"
        far.start(*command(secure, "--address", address), "--name", "far", "--trust-submitters")
        eventually(lambda: names(secure), lambda found: found == ["far"])
        done = secure.run(
            "run", "--", "sh", "-c", "read line; echo got $line; yes | head -c 2000000", input="in\n"
        )
        assert done.stdout.startswith("got in\ny\ny\n")
        assert len(done.stdout) == len("got in\n") + 2_000_000
        assert tunnel.count >= 2  # the channel, and the stream of the task
        assert far.listening == []
        assert len(far.processes()) >= 2


def test_u144_the_address_to_listen_on_is_chosen(make_cluster):
    if not _has_ipv6():
        missing("this machine has no IPv6 loopback")
    cluster = make_cluster(flags=("--host", "::1", "--certificate", "self-made"))
    assert cluster.url == f"https://[::1]:{cluster.port}"
    assert cluster.run("nodes", check=True).stdout
    with socket.socket() as other:
        other.settimeout(5)
        assert other.connect_ex(("127.0.0.1", cluster.port)) != 0


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


# clients elsewhere


def test_u144_a_client_elsewhere_pins_the_certificate(secure, machine):
    client = machine()
    pin = secure.address["fingerprint"]

    stranger = client.run("login", secure.url, input=secure.token)
    assert_refused(stranger, "no authority", "--fingerprint", status=3, code="untrusted")
    wrong = client.run("login", secure.url, "--fingerprint", "sha256:" + "0" * 64, input=secure.token)
    assert_refused(wrong, "someone may be listening", pin, status=3, code="untrusted")
    odd = client.run("login", secure.url, "--fingerprint", "sha1:00", input=secure.token)
    assert_refused(odd, "is no fingerprint")
    profile = Path(client.env["XDG_CONFIG_HOME"]) / "geres" / "login.json"
    assert not profile.exists()

    done = client.run("login", secure.url, "--fingerprint", pin, input=secure.token)
    assert done.returncode == 0, done.stderr
    assert profile.stat().st_mode & 0o777 == 0o600
    assert client.run("summary").returncode == 0

    env = {"GERES_URL": secure.url, "GERES_TOKEN": secure.token}
    assert client.run("logout").returncode == 0
    assert_refused(client.run("summary", env=env), "no authority", status=3, code="untrusted")
    assert client.run("summary", env=env | {"GERES_FINGERPRINT": pin}).returncode == 0


class Terminal:
    """A person at a terminal who types `geres WORDS` and reads what it says."""

    def __init__(self, machine: Machine, *words: str) -> None:
        self._ours, theirs = pty.openpty()
        self._said = b""
        self.status: int | None = None
        self._process = subprocess.Popen(
            [str(GERES), *words],
            env=machine.env,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self._process.kill()
        self.status = self._process.wait(30)
        os.close(self._ours)

    def until(self, text: str) -> None:
        """Read until it has said this; what it asks for without an echo is asked for by then."""
        deadline = time.monotonic() + 30
        while text.encode() not in self._said:
            assert time.monotonic() < deadline, self._said
            if select.select([self._ours], [], [], 0.1)[0]:
                self._said += os.read(self._ours, 4096)

    def type(self, line: str) -> None:
        os.write(self._ours, f"{line}\n".encode())


@pytest.mark.parametrize("trusts", [True, False])
def test_u144_a_person_is_shown_the_fingerprint_and_asked(secure, machine, trusts):
    client = machine()
    client.home.parent.mkdir(exist_ok=True)
    with Terminal(client, "login", secure.url) as typed:
        typed.until(secure.address["fingerprint"])
        typed.until("trusted from now on")
        typed.type("y" if trusts else "n")
        if trusts:
            typed.until("Token")
            typed.type(secure.token)
    assert typed.status == (0 if trusts else 3)
    assert (client.run("summary").returncode == 0) == trusts


def test_u144_a_certificate_that_was_made_anew_is_noticed_by_everybody(secure, machine):
    client, node = machine(), machine()
    pin = secure.address["fingerprint"]
    node.start(*command(secure), "--name", "n1")
    eventually(lambda: names(secure), lambda found: found == ["n1"])
    client.run("login", secure.url, "--fingerprint", pin, input=secure.token)

    # as if somebody else answered there: another store, another certificate, the same port
    secure.run("down", "--now", check=True)
    for name in ("tls.pem", "geres.db", "geres.db-wal", "geres.db-shm"):
        (secure.home / name).unlink(missing_ok=True)
    secure.start()
    assert secure.address["fingerprint"] != pin

    assert_refused(client.run("summary"), "someone may be listening", status=3, code="untrusted")
    eventually(lambda: node.said, lambda said: "someone may be listening" in said)
    assert "node join-token" in node.said
    assert secure.run("summary").returncode == 0  # who finds it by its home is not misled
    assert os.waitpid(node._processes[0].pid, os.WNOHANG) == (0, 0)  # it goes on trying


def test_u144_all_servers_of_a_store_show_one_certificate_and_trust_each_other(make_cluster, machine):
    first = make_cluster(store="postgres", flags=("--certificate", "self-made"))
    second, elsewhere = machine(), machine()
    port = free_port()
    words = ("--store", first._store or "", "--certificate", "self-made", "--port", str(port))
    second.start("server", *words)
    address = second.home / "address.json"
    eventually(lambda: address.exists() or second.said)
    assert address.exists(), second.said
    url = f"https://127.0.0.1:{port}"
    assert json.loads(address.read_text())["fingerprint"] == first.address["fingerprint"]

    env = {"GERES_URL": url, "GERES_TOKEN": first.token, "GERES_FINGERPRINT": first.address["fingerprint"]}
    # The node is connected to the first server: the second one passes the stream on, over TLS too.
    done = elsewhere.run("run", "--", "sh", "-c", "read line; echo got $line", input="in\n", env=env)
    assert (done.returncode, done.stdout) == (0, "got in\n"), done.stderr


def test_u109_a_node_that_joined_at_one_server_goes_on_with_another(make_cluster, machine):
    """Servers tell their nodes of each other; what a node was told it also knows after a restart."""
    first = make_cluster(store="postgres", flags=("--certificate", "self-made", "--no-agent"))
    second, node, client = machine(), machine(), machine()
    port = free_port()
    second.start("server", "--store", first._store, "--certificate", "self-made", "--port", str(port))
    url = f"https://127.0.0.1:{port}"
    pin = first.address["fingerprint"]
    env = {"GERES_URL": url, "GERES_TOKEN": first.token, "GERES_FINGERPRINT": pin}
    agent = node.start(*command(first), "--name", "n1")
    eventually(lambda: names(first), lambda found: found == ["n1"])
    known = node.home / "agent" / "servers"
    eventually(lambda: known.exists() and known.read_text() == f"{url}\n")

    first.stop()
    done = client.run("run", "--", "echo", "at the second", env=env)
    assert (done.returncode, done.stdout) == (0, "at the second\n"), done.stderr

    agent.kill()
    agent.wait()
    node.start("agent", "--name", "n1")
    done = client.run("run", "--", "echo", "again", env=env)
    assert (done.returncode, done.stdout) == (0, "again\n"), done.stderr
