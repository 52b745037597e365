"""Tasks run as the account of their submitter, with its rights and no others."""

from __future__ import annotations

import os
import stat
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from geres.agent.accounts import Account, Accounts, Refused, account_of, decide, group_of
from geres.agent.ends import Unreadable
from geres.agent.link import socket_path
from geres.agent.named import open_named
from geres.agent.process import explain_note, spawn_as
from tests.agent.world import Agent, Server, until
from tests.conftest import missing

ROOT = Account("root", 0, 0)
ANN = Account("ann", 1001, 1001, (1001, 50))
BOB = Account("bob", 1002, 1002, (1002,))
SVC = Account("svc", 200, 200, (200,))
KNOWN = {one.name: one for one in (ROOT, ANN, BOB, SVC)}
GROUPS = {"ann": 1001, "staff": 50, "bob": 1002, "svc": 200, "wheel": 10}


def choose(
    subject: str, own: Account = ROOT, user: str | None = None, group: str | None = None, **accounts: str
):
    everybody = accounts.pop("everybody", None)
    listed = accounts | ({"*": everybody} if everybody else {})
    return decide(subject, user, group, listed, own, KNOWN.get, GROUPS.get)


def refusal(*words: str, **options) -> str:
    with pytest.raises(Refused) as caught:
        choose(*words, **options)
    return str(caught.value)


def test_a_root_agent_takes_the_account_of_the_same_name() -> None:
    assert choose("ann") == ANN


def test_the_map_wins_over_the_name_and_a_star_is_for_all_others() -> None:
    assert choose("ann", ann="bob") == BOB
    assert choose("ann@site", everybody="svc") == SVC
    assert choose("bob", everybody="svc", bob="bob") == BOB


def test_root_and_unknown_accounts_are_refused_unless_the_map_names_them() -> None:
    assert "do not run as root" in refusal("root")
    assert "no account 'zoe'" in refusal("zoe")
    assert "no account 'none'" in refusal("ann", ann="none")
    assert choose("root", root="root") is None
    assert choose("ann", everybody="root") is None


def test_a_user_is_no_account_of_a_part_of_the_name_or_of_its_number() -> None:
    numbered = KNOWN | {str(one.uid): one for one in KNOWN.values()}
    for subject in ("ann lee", "1001", "0"):
        for own in (ROOT, ANN):
            with pytest.raises(Refused):
                decide(subject, None, None, {}, own, numbered.get, GROUPS.get)
    assert decide("zoe", None, None, {"zoe": "1001"}, ROOT, numbered.get, GROUPS.get) == ANN
    assert decide("zoe", None, None, {"*": "1001"}, ANN, numbered.get, GROUPS.get) is None
    assert choose("ann lee", **{"ann lee": "bob"}) == BOB


def test_another_account_is_given_only_where_the_map_lists_it_or_to_root() -> None:
    assert choose("ann", user="ann") == ANN
    assert choose("ann", user="svc", ann="ann svc") == SVC
    assert choose("ann", ann="ann svc") == ANN
    assert choose("root", user="bob", root="root") == BOB
    assert "may not run tasks as bob" in refusal("ann", user="bob")
    assert "may not run tasks as root" in refusal("ann", user="root")
    assert "do not run as root" in refusal("root", user="bob")


def test_a_group_must_be_one_of_the_accounts_own() -> None:
    chosen = choose("ann", group="staff")
    assert chosen is not None
    assert (chosen.uid, chosen.gid) == (1001, 50)
    assert "not in the group" in refusal("ann", group="wheel")
    assert "no group" in refusal("ann", group="nowhere")
    assert choose("root", group="wheel", root="root") == ROOT._replace(gid=10)


def test_an_agent_that_is_not_root_runs_tasks_of_its_own_account_only() -> None:
    assert choose("svc", own=SVC) is None
    assert choose("ann", own=SVC, everybody="svc") is None
    assert "its own account svc only" in refusal("ann", own=SVC)
    assert "its own account svc only" in refusal("svc", own=SVC, user="ann", everybody="svc ann")
    assert choose("svc", own=SVC, user="svc", group="svc") is None
    assert "cannot change to 'wheel'" in refusal("svc", own=SVC, group="wheel")


def test_the_system_is_asked_again_after_a_while() -> None:
    now = [0.0]
    accounts = Accounts({"*": "nobody"}, own=ROOT, clock=lambda: now[0])
    try:
        first = accounts.of("ann")
        assert first == account_of("nobody")
        with pytest.raises(Refused):
            accounts.of("ann", group="no-such-group")
        now[0] += 3600
        assert accounts.of("ann") == first  # what was known, while it is asked anew
    finally:
        accounts.close()


# What follows needs root: real processes of other accounts.


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that other accounts can pass through, as /var/lib is; pytest closes its own to them."""
    if os.geteuid() != 0:
        missing("only root can run tasks as other accounts")
    with tempfile.TemporaryDirectory(prefix="geres-test-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
async def agent(place: Path, server: Server) -> AsyncIterator[Agent]:
    """An agent that is root and runs each task as its submitter; the world's own tasks as root."""
    made = Agent(place / "home", server.url, GERES_AGENT__ACCOUNTS="root=root")
    try:
        await server.connected()
        yield made
    finally:
        made.end()
    assert "Traceback" not in made.log + made.supervisor_log


async def run_as(server: Server, number: int, subject: str, *command: str, **fields):
    await server.assign(server.spec(*command, **fields), number, submitted_by=subject)
    return await server.end_of(number)


async def test_a_task_has_the_account_its_groups_and_its_environment(server: Server, agent: Agent) -> None:
    script = 'id -u; id -g; id -G; umask; echo "$HOME $USER $LOGNAME $SHELL"; pwd; echo $GERES_TASK_DIR'
    end = await run_as(server, 1, "games", "sh", "-c", script)

    games = account_of("games")
    assert games is not None
    uid, gid, groups, umask, names, cwd, folder = end.stdout.decode().splitlines()
    assert end.stderr == b""
    assert (int(uid), int(gid)) == (games.uid, games.gid)
    assert {int(one) for one in groups.split()} == {games.gid, *games.groups}
    assert umask == "0022"
    assert names == f"{games.home} games games {games.shell}"
    assert cwd == folder


async def test_it_has_no_capability_left(server: Server, agent: Agent) -> None:
    end = await run_as(server, 1, "games", "grep", "-E", "^Cap(Inh|Prm|Eff|Amb)", "/proc/self/status")

    assert [int(line.split()[1], 16) for line in end.stdout.decode().splitlines()] == [0, 0, 0, 0]


async def test_root_and_strangers_are_refused_in_words(server: Server, agent: Agent) -> None:
    for number, subject, user, words in (
        (1, "zoe-of-nowhere", None, "no account 'zoe-of-nowhere'"),
        (2, "games", "root", "may not run tasks as root"),
        (3, "games", "nobody", "may not run tasks as nobody"),
    ):
        end = await run_as(server, number, subject, "true", user=user)
        assert (end.outcome, end.reason) == ("failed", "no_account")
        assert words in (end.message or "")


async def test_the_accounts_own_files_are_its_own_and_closed_to_others(
    server: Server, agent: Agent, place: Path
) -> None:
    script = 'echo mine > "$GERES_TASK_DIR/kept"; echo t > "$TMPDIR/t"; echo e >/dev/stderr; cat /dev/stdin'
    end = await run_as(server, 1, "games", "sh", "-c", script)
    assert (end.outcome, end.stderr) == ("succeeded", b"e\n"), end
    assert end.folder is not None
    kept = Path(end.folder)
    games = account_of("games")
    assert games is not None
    assert (kept / "wd").stat().st_uid == games.uid
    assert stat.S_IMODE((kept / "wd").stat().st_mode) == 0o700

    wanted = f"cat {kept}/wd/kept; ls {kept.parent.parent}; ls {kept}/wd"
    other = await run_as(server, 2, "nobody", "sh", "-c", wanted)
    assert other.stdout == b""
    assert other.stderr.count(b"ermission denied") == 3


async def test_it_cannot_read_what_is_the_agents(server: Server, agent: Agent) -> None:
    secrets = [agent.home / "agent.token", agent.home / "logs" / "supervisor.log"]
    secrets += [agent.home / "agent" / name for name in ("journal", "agent.lock", "supervisor.lock")]
    assert all(path.exists() for path in secrets)
    socket = socket_path(agent.home / "agent")
    connect = f"import socket; socket.socket(socket.AF_UNIX).connect({socket!r})"
    connecting = f'/usr/bin/python3 -S -c "{connect}" 2>&1 | grep -o PermissionError'
    script = "\n".join(
        [
            *(f"cat {path} && echo LEAK" for path in secrets),
            f"ls {agent.home}/agent && echo LEAK",
            connecting,
        ]
    )
    end = await run_as(server, 1, "games", "sh", "-c", script)

    assert end.exit_code == 0, end.stderr.decode()
    assert end.stdout == b"PermissionError\n"


async def test_the_working_directory_is_entered_as_the_account(
    server: Server, agent: Agent, place: Path
) -> None:
    closed, ours = place / "closed", place / "ours"
    closed.mkdir(mode=0o700)
    ours.mkdir()
    games = account_of("games")
    assert games is not None
    os.chown(ours, games.uid, games.gid)

    barred = await run_as(server, 1, "games", "true", cwd=str(closed))
    assert (barred.outcome, barred.reason) == ("failed", "no_cwd")

    fields = {"cwd": str(ours), "stdout": "out", "umask": 0o027}
    assert (await run_as(server, 2, "games", "id", "-un", **fields)).outcome == "succeeded"
    assert (ours / "out").read_text() == "games\n"
    assert (ours / "out").stat().st_uid == games.uid
    assert stat.S_IMODE((ours / "out").stat().st_mode) == 0o640

    denied = await run_as(server, 3, "nobody", "true", cwd="/", stdout=str(ours / "out"))
    assert (denied.outcome, denied.reason) == ("failed", "staging")


async def test_memory_limits_hold_for_other_accounts_too(server: Server, agent: Agent) -> None:
    end = await run_as(server, 1, "games", "sh", "-c", "id -un; cat /dev/stdin", memory_bytes=256 << 20)

    assert (end.outcome, end.stdout) == ("succeeded", b"games\n")


async def test_a_group_of_the_account_is_taken(server: Server, agent: Agent) -> None:
    games = account_of("games")
    assert games is not None
    end = await run_as(server, 1, "games", "id", "-g", group=str(games.gid))
    assert end.stdout.decode().strip() == str(games.gid)
    refused = await run_as(server, 2, "games", "id", "-g", group="daemon")
    assert group_of("daemon") not in games.groups
    assert refused.reason == "no_account"


async def test_links_that_a_task_lays_do_not_lead_us_astray(
    server: Server, agent: Agent, place: Path
) -> None:
    secret = place / "secret"
    secret.write_text("not for games\n")
    secret.chmod(0o600)
    script = f"cd ..; ln -s {secret} .retain; mkdir out; ln -s {secret} out/stdout; head -c 100000 /dev/zero"
    end = await run_as(server, 1, "games", "sh", "-c", script)

    assert end.outcome == "succeeded", end
    assert secret.read_text() == "not for games\n"
    assert b"not for games" not in end.stdout
    assert all(b"not for games" not in blob for blob in server.blobs.values())


async def test_output_and_folders_are_not_shared_between_accounts(server: Server, agent: Agent) -> None:
    for number, subject in enumerate(("games", "nobody", "games", "nobody", "games"), start=1):
        end = await run_as(server, number, subject, "sh", "-c", 'id -un; stat -c %U . "$TMPDIR"')
        assert end.stdout.decode().split() == [subject] * 3


async def test_tasks_of_all_accounts_are_ended(server: Server, agent: Agent) -> None:
    await server.assign(server.spec("sleep", "1000", grace_seconds=0.1), 1, submitted_by="games")
    await server.start_of(1)
    await server.ask(1, "cancel")
    assert (await server.end_of(1)).outcome == "cancelled"
    until(lambda: not agent.supervisor()["running"])


async def test_no_library_of_the_account_is_loaded_with_our_rights(
    server: Server, agent: Agent, place: Path
) -> None:
    """The loader, which LD_DEBUG makes talk, is the first to see a task's environment."""
    said = place / "said"
    said.mkdir()
    said.chmod(0o777)
    traps = {
        "LD_DEBUG": "files",
        "LD_DEBUG_OUTPUT": str(said / "by"),
        "ENV": "/nowhere",
        "BASH_ENV": "/nowhere",
    }
    for memory in (0, 256 << 20):
        end = await run_as(server, 1 + (memory > 0), "games", "true", env=traps, memory_bytes=memory)
        assert end.outcome == "succeeded", end
    games = account_of("games")
    assert games is not None
    writers = {path.stat().st_uid for path in said.iterdir()}
    assert writers == {games.uid}


async def test_what_an_account_writes_among_the_launchers_notes_harms_only_its_own_task(
    server: Server, agent: Agent, place: Path
) -> None:
    """A library of its own, loaded into the launcher, has the notes open, and may pass them on."""

    async def blocked_notes(number: int, subject: str) -> tuple[int, Path]:
        """The notes of a launcher that waits for a reader of its output file, and that file."""
        account = account_of(subject)
        assert account is not None
        fifo = place / f"{subject}.fifo"
        os.mkfifo(fifo)
        os.chown(fifo, account.uid, account.gid)
        await server.assign(server.spec("true", stdout=str(fifo)), number, submitted_by=subject)
        await server.start_of(number)
        pids = {task & 0xFFFFFFFF: pid for task, _, pid, *_ in agent.supervisor()["running"]}
        notes = f"/proc/{pids[number]}/fd/3"
        until(lambda: os.stat(notes).st_uid == 0 and Path(f"/proc/{pids[number]}/comm").read_text() == "sh\n")
        return os.open(notes, os.O_RDWR | os.O_APPEND), fifo

    notes, fifo = await blocked_notes(1, "games")
    os.write(notes, b"\xff\xfe\no 99999999999999999999999\nx 1\ne -7\no\n")
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    assert (await server.end_of(1)).outcome == "succeeded"

    others, fifo = await blocked_notes(2, "nobody")
    assert os.fstat(others).st_ino != os.fstat(notes).st_ino
    second = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    assert (await server.end_of(2)).outcome == "succeeded"
    for fd in (notes, reader, others, second):
        os.close(fd)


def test_what_is_no_file_of_the_account_is_not_even_opened(tmp_path: Path) -> None:
    """To open a device may set it off; a FIFO shows whether it was opened."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: os.close(os.open(fifo, os.O_WRONLY)), daemon=True)
    writer.start()
    until(lambda: _state_of(writer) == "S")
    for owner in (None, os.getuid()):
        with pytest.raises(Unreadable):
            open_named(os.fsencode(fifo), owner)
    writer.join(0.3)
    assert writer.is_alive()
    os.close(os.open(fifo, os.O_RDONLY))
    writer.join(10)
    file = tmp_path / "file"
    file.write_text("mine\n")
    os.close(open_named(os.fsencode(file), os.getuid()))
    with pytest.raises(Unreadable):
        open_named(os.fsencode(file), os.getuid() + 1)


def _state_of(thread: threading.Thread) -> str:
    time.sleep(0.01)
    return Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()[0]


def test_an_account_that_cannot_be_taken_is_no_end_of_the_task(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        missing("only root can run tasks as other accounts")
    with (tmp_path / "notes").open("wb") as notes:
        account = (2**32 - 1, 0, ())  # -1 means no change to the system
        pid = spawn_as(account, [b"sh", b"-c", b"exit 7"], {}, [(notes.fileno(), 3)], b"", 100)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 125
    assert (tmp_path / "notes").read_text() == "become"
    assert explain_note("become", [b"x"], None, None, None).reason == "no_account"
