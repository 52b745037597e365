"""Tasks run as accounts of the machine, and one geres for all of its users.

Only root can become other accounts, so only root can play two users; two of the system's own accounts do.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import geres
from tests.acceptance.acts import PATIENCE_SECONDS, Gate, eventually
from tests.cluster import Cluster, clean_environment
from tests.conftest import missing

_PATH = "/usr/local/bin:/usr/bin:/bin"


def need_root() -> None:
    if os.geteuid() != 0:
        missing("only root can play two users of a machine")


class User:
    """An account of this machine that types `geres`."""

    def __init__(self, name: str, folder: Path, **environment: str) -> None:
        entry = pwd.getpwnam(name)
        self.name, self.uid, self.gid = name, entry.pw_uid, entry.pw_gid
        self.groups = [group.gr_gid for group in grp.getgrall() if name in group.gr_mem]
        self.folder = folder / f"of-{name}"
        self.folder.mkdir()
        self.folder.chmod(0o755)  # whatever the umask is
        os.chown(self.folder, self.uid, self.gid)
        self._environment = {
            "HOME": str(self.folder),
            "PATH": _PATH,
            "PYTHONPATH": os.pathsep.join([str(Path(geres.__file__).parents[1]), *_packages()]),
            "LANG": "C.UTF-8",
            **environment,
        }

    def popen(self, *words: str, **more: Any) -> subprocess.Popen[str]:
        return self.start(_python(self), "-m", "geres", *words, **more)

    def start(self, *command: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            user=self.uid,
            group=self.gid,
            extra_groups=self.groups,
            env=self._environment | (env or {}),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, check: bool = False, env: dict[str, str] | None = None) -> Any:
        """`geres WORDS` to its end: (status, stdout, stderr)."""
        with self.popen(*words, env=env) as process:
            out, err = process.communicate(timeout=PATIENCE_SECONDS)
        if check:
            assert process.returncode == 0, f"geres {' '.join(words)}: {process.returncode}\n{out}{err}"
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def shown(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json", check=True).stdout)


def _packages() -> list[str]:
    return [path for path in sys.path if path.endswith("site-packages")]


def _python(user: User) -> str:
    """A Python that the account may run: ours may lie in a folder of root's."""
    for program in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}", "/usr/bin/python3"):
        if not os.path.exists(program):
            continue
        try:  # sh, because what setuid starts itself is found with root's rights
            with user.start(
                "/bin/sh", "-c", f"{program} -c 'import sys; print(*sys.version_info[:2])'"
            ) as one:
                out, _ = one.communicate(timeout=PATIENCE_SECONDS)
        except OSError:
            continue
        if out.split() == [str(part) for part in sys.version_info[:2]]:
            return program
    missing(f"the account {user.name} may run no Python like ours")
    raise AssertionError


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that every account may pass through."""
    need_root()
    with tempfile.TemporaryDirectory(prefix="geres-test-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


class Shared:
    """A `geres up --shared`, and two users of its machine."""

    def __init__(self, place: Path) -> None:
        self.home, self.socket = place / "home", place / "run" / "geres.sock"
        found = {"GERES_SOCKET": str(self.socket)}
        self.env = clean_environment(self.home, **found)
        self.env.pop("GERES_AGENT__ACCOUNTS")
        self.one, self.other = User("games", place, **found), User("nobody", place, **found)

    def root(self, *words: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "geres", *words],
            env=self.env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("GERES_HOME") == str(self.home):
                    yield process


@pytest.fixture(scope="module")
def machine(place: Path) -> Iterator[Shared]:
    shared = Shared(place)
    shared.root("up", "--shared", "--detach", "--cpus", "4", check=True)
    yield shared
    shared.root("down", "--now", check=True)
    assert not [process for process in shared.processes() if process.pid != os.getpid()]
    assert not shared.socket.exists()
    for log in (shared.home / "logs").glob("*.log"):
        assert "Traceback" not in log.read_text(), log.read_text()


def test_u015_everybody_finds_the_shared_geres_and_runs_as_themselves(machine: Shared) -> None:
    for user in (machine.one, machine.other):
        who = user.shown("whoami")
        assert (who["subject"], who["role"]) == (user.name, "user")
        script = 'id -un; id -gn; echo "$HOME"; umask; pwd'
        done = user.run("run", "--", "sh", "-c", script, check=True)
        entry = pwd.getpwnam(user.name)
        wanted = [user.name, grp.getgrgid(entry.pw_gid).gr_name, entry.pw_dir, "0022", str(user.folder)]
        assert done.stdout.splitlines() == wanted
    assert json.loads(machine.root("whoami", "--json", check=True).stdout)["role"] == "admin"


def test_u015_nothing_runs_as_root_or_as_somebody_else(machine: Shared) -> None:
    refused = machine.root("run", "--", "id", "-un")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "do not run as root" in refused.stderr
    for name in ("root", machine.other.name):
        done = machine.one.run("run", "--user", name, "--", "id", "-un")
        assert (done.returncode, done.stdout) == (1, "")
        assert f"may not run tasks as {name}" in done.stderr
    task = machine.one.run("submit", "--user", "root", "--", "true", check=True).stdout.strip()
    machine.one.run("wait", task)
    ended = machine.one.shown("task", "show", task)
    assert (ended["state"], ended["reason"]) == ("failed", "no_account")
    assert "may not run tasks as root" in machine.one.run("why", task, check=True).stdout


def test_u015_files_belong_to_the_user_and_others_cannot_read_them(machine: Shared) -> None:
    one, other = machine.one, machine.other
    script = 'echo kept > "$GERES_TASK_DIR/file"; echo printed'
    task = one.run(
        "submit", "-o", "out.txt", "--umask", "077", "--", "sh", "-c", script, check=True
    ).stdout.strip()
    one.run("wait", task, check=True)
    written = one.folder / "out.txt"
    assert (written.read_text(), written.stat().st_uid) == ("printed\n", one.uid)
    assert written.stat().st_mode & 0o777 == 0o600
    kept = next(path for path in (machine.home / "agent" / "tasks").glob("*/*/wd/file"))
    assert kept.stat().st_uid == one.uid
    with other.start("/bin/sh", "-c", f"cat {kept} {written}; ls {kept.parent} {machine.home}") as looking:
        out, err = looking.communicate(timeout=PATIENCE_SECONDS)
    assert (out, err.count("ermission denied")) == ("", 4)


def test_u015_one_user_cannot_see_change_or_be_the_other(machine: Shared, place: Path) -> None:
    one, other = machine.one, machine.other
    gate = Gate(place)
    job = one.run("job", "create", "secret-job", check=True).stdout.strip()
    script = f"echo secret-out; echo secret-err >&2; {gate.words[2]}; exit 3"
    task = one.run(
        "submit", "-J", job, "--name", "secret-name", "--", "sh", "-c", script, check=True
    ).stdout.strip()
    eventually(lambda: one.run("logs", task).stdout, lambda out: "secret-out" in out)

    for words in (
        *(("task", "show", task), ("why", task), ("logs", task), ("attach", task), ("result", task)),
        *(("job", "show", job), ("why", job), ("wait", task), ("cancel", task), ("hold", task)),
        *(("edit", task, "priority=1"), ("rerun", task), ("job", "cancel", job), ("job", "disable", job)),
        *(("submit", "-J", job, "--", "true"), ("submit", "--after", task, "--", "true")),
        *(
            ("submit", "-J", "secret-job", "--", "true"),
            ("cancel", job),
            ("cancel", "--signal", "KILL", task),
        ),
    ):
        done = other.run(*words)
        assert done.returncode in (1, 4, 125), (words, done.returncode, done.stdout, done.stderr)
        assert "there is no" in done.stderr, (words, done.stderr)
        assert "secret-" not in (done.stdout + done.stderr).replace("secret-job", "")
    for words in (("tasks", "--all"), ("tasks", "--user", one.name), ("jobs", "--all"), ("history", "--all")):
        assert "secret" not in other.run(*words).stdout
    assert other.run("tasks", "--all", "--grep", "secret").stdout.count("\n") <= 1
    name = next(node["name"] for node in other.shown("nodes"))
    assert other.shown("node", "show", name)["task_ids"] == []

    assert one.shown("task", "show", task)["state"] == "running"
    assert "secret-name" in machine.root("tasks", "--all", check=True).stdout
    gate.open()
    assert one.run("wait", task).returncode == 3
    assert other.run("rerun", task).returncode == 4


def test_u015_a_made_up_token_and_the_operators_words_are_refused(machine: Shared) -> None:
    other = machine.other
    assert other.run("whoami", env={"GERES_TOKEN": "made-up"}).returncode == 3
    name = other.shown("nodes")[0]["name"]
    for words in (
        ("node", "drain", name),
        ("node", "logs", name),
        ("node", "remove", name),
        ("user", "list"),
    ):
        done = other.run(*words)
        assert (done.returncode == 3) or words == ("user", "list"), (words, done.stderr)
    assert other.run("user", "set-role", other.name, "admin").returncode == 3
    token = other.run("token", "create", check=True).stdout.strip()
    one_task = machine.one.run("submit", "--hold", "--", "true", check=True).stdout.strip()
    url = f"unix://{machine.socket}"
    seen = other.run("task", "show", one_task, env={"GERES_TOKEN": token, "GERES_URL": url})
    assert seen.returncode == 4
    machine.one.run("cancel", one_task, check=True)


def test_u015_an_operator_of_a_shared_machine_is_not_root(machine: Shared, place: Path) -> None:
    machine.one.run("whoami", check=True)
    machine.root("user", "set-role", "games", "operator", check=True)
    try:
        eventually(lambda: machine.one.shown("whoami")["role"] == "operator")
        marker = place / "run-by-root"
        refused = machine.one.run("pool", "set", "default", "--", "touch", str(marker))
        assert refused.returncode != 0
        assert "only root sets" in refused.stderr, refused.stderr
        assert machine.root("pool", "set", "default", "--dry-run", "--", "true").returncode == 0
        assert not marker.exists()
    finally:
        machine.root("user", "set-role", "games", "user", check=True)
        eventually(lambda: machine.one.shown("whoami")["role"] == "user")


def test_u015_no_port_is_opened(machine: Shared) -> None:
    for process in machine.processes():
        listening = [one for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
        assert not listening, (process.cmdline(), listening)


def test_u015_root_sees_and_ends_what_users_run(machine: Shared) -> None:
    task = machine.one.run("submit", "--", "sleep", "1000", check=True).stdout.strip()
    eventually(lambda: machine.one.shown("task", "show", task)["state"], lambda state: state == "running")
    machine.root("cancel", task, check=True)
    machine.one.run("wait", task)
    assert machine.one.shown("task", "show", task)["state"] == "cancelled"


def test_u015_only_root_starts_a_shared_one_and_only_one(machine: Shared) -> None:
    done = machine.one.run("up", "--shared")
    assert (done.returncode, "only root" in done.stderr) == (3, True)
    again = subprocess.run(
        [sys.executable, "-m", "geres", "up", "--shared", "--detach"],
        env=machine.env | {"GERES_HOME": str(machine.home.parent / "second")},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert (again.returncode, "listens at" in again.stderr) == (5, True)
    assert machine.root("up", "--shared", "--port", "4470").returncode == 2


def test_u015_a_map_names_the_account_of_a_private_cluster(place: Path) -> None:
    """`geres run -- id -un` shows the mapped account, never root."""
    folder = place / "mapped"
    folder.mkdir()
    folder.chmod(0o755)
    with Cluster(folder, flags=("--account", "*=games")) as cluster:
        assert cluster.run("run", "--cwd", "/", "--", "id", "-un", check=True).stdout == "games\n"
        assert cluster.run("run", "--cwd", "/", "--user", "nobody", "--", "id", "-un").returncode == 1


def test_u015_two_users_have_a_private_one_each_side_by_side(place: Path) -> None:
    users = [
        User(name, place / "private", GERES_SOCKET=str(place / "none")) for name in _made(place / "private")
    ]
    homes = {user.name: str(user.folder / "home") for user in users}
    try:
        for user in users:
            mine = {"GERES_HOME": homes[user.name]}
            user.run("up", "--detach", "--cpus", "1", check=True, env=mine)
        urls = set()
        for user in users:
            mine = {"GERES_HOME": homes[user.name]}
            assert user.run("run", "--", "id", "-un", check=True, env=mine).stdout == f"{user.name}\n"
            urls.add(json.loads(user.run("status", "--json", check=True, env=mine).stdout)["url"])
        assert len(urls) == 2
        theirs = users[0].run("tasks", env={"GERES_HOME": homes[users[1].name]})
        assert theirs.returncode != 0
        assert "another account" in theirs.stderr
        without = users[0].run("tasks", env={"GERES_URL": urls.pop(), "GERES_TOKEN": "guess"})
        assert without.returncode == 3
    finally:
        for user in users:
            user.run("down", "--now", env={"GERES_HOME": homes[user.name]})


def _made(folder: Path) -> tuple[str, str]:
    folder.mkdir()
    folder.chmod(0o755)
    return "games", "nobody"
