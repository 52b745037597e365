"""Backup, restore, check, and the move from SQLite to PostgreSQL."""

from __future__ import annotations

import contextlib
import hashlib
import resource
import signal
import sqlite3
import subprocess
import tarfile
import time

import psycopg

from tests.acceptance.acts import eventually, shown, submit, wait_for_state
from tests.cluster import GERES, Cluster, clean_environment, free_port


def fill(cluster):
    """Some history: small and large outputs, a failure, a named job, queued and held tasks."""
    cluster.run("run", "--", "echo", "first", check=True)
    large = submit(cluster, "--", "sh", "-c", "yes | head -c 200000")
    wrong = submit(cluster, "--retries", "1", "--", "sh", "-c", "echo bad >&2; exit 3")
    cluster.run("job", "create", "sweep", check=True)
    lines = "".join(f'{{"command": ["echo", "{n}"]}}\n' for n in range(30))
    cluster.run("submit", "--job", "sweep", "--from", "-", input=lines, check=True)
    cluster.run("wait", large, "sweep", check=True)
    cluster.run("wait", wrong)
    submit(cluster, "--hold", "--", "echo", "later")
    return large


def facts(cluster):
    """What must be the same before and after: tasks, jobs, results with their numbers, outputs."""
    jobs = shown(cluster, "jobs", "--all")
    client = cluster.client()
    return {
        "jobs": [(job["id"], job["name"], job["state"], job["counts"]) for job in jobs],
        "tasks": shown(cluster, "tasks", "-n", "0"),
        "history": shown(cluster, "history", "-n", "0"),
        "results": [
            [
                (one.finish_no, one.task_id, one.attempt, one.state)
                for one in client.results_page(job["id"], limit=10_000).items
            ]
            for job in jobs
        ],
    }


def geres_(home, *words, **options):
    done = subprocess.run(
        [GERES, *map(str, words)],
        env=clean_environment(home),
        capture_output=True,
        text=True,
        timeout=100,
        **options,
    )
    return done


def test_u141_a_backup_of_a_busy_cluster_is_restored_elsewhere(make_cluster, gate, tmp_path):
    cluster = make_cluster()
    large = fill(cluster)
    running = submit(cluster, "--", *gate.words)
    wait_for_state(cluster, running, "running")
    before = facts(cluster)

    file = tmp_path / "geres.tar"
    cluster.run("store", "backup", str(file), check=True)
    assert file.stat().st_mode & 0o777 == 0o600
    after = submit(cluster, "--", "echo", "after the backup")
    cluster.run("wait", after, check=True)
    assert cluster.run("store", "backup", str(file)).returncode == 5  # never over another one
    assert cluster.run("store", "check", check=True).stdout == ""
    token = cluster.token
    cluster.stop()

    with contextlib.ExitStack() as stack:
        (tmp_path / "b").mkdir()
        other = Cluster(tmp_path / "b", flags=("--no-agent",))
        assert geres_(other.home, "store", "restore", file).returncode == 0
        assert geres_(other.home, "store", "restore", file).returncode == 5
        stack.enter_context(other)
        assert other.token == token
        assert facts(other) == before
        assert len(other.run("logs", large, check=True).stdout) == 200000
        assert other.run("store", "check", check=True).stdout == ""


def test_u141_what_is_no_backup_is_refused_and_nothing_is_unpacked(tmp_path):
    home = tmp_path / "home"
    (tmp_path / "text").write_text("hello")
    with tarfile.open(tmp_path / "other.tar", "w") as archive:
        archive.add(tmp_path / "text", "geres.db")
        archive.add(tmp_path / "text", "../escaped")
    for name, status in (("text", 2), ("other.tar", 2), ("nothing", 4)):
        done = geres_(home, "store", "restore", tmp_path / name)
        assert done.returncode == status, done
        assert done.stderr.count("\n") == 1
    assert not (home / "geres.db").exists()
    assert not (tmp_path / "escaped").exists()


def test_u141_nothing_of_a_database_that_was_moved_away_comes_into_a_restored_one(make_cluster, tmp_path):
    """What SQLite had not yet moved from the log into the file would be replayed over the backup."""
    cluster = make_cluster(flags=("--no-agent",))
    file = tmp_path / "geres.tar"
    cluster.run("store", "backup", str(file), check=True)
    submit(cluster, "--", "echo", "after the backup")
    for part in ("up", "server"):
        cluster.kill(part)
    log = cluster.home / "geres.db-wal"
    assert log.stat().st_size
    (cluster.home / "geres.db").rename(tmp_path / "broken.db")

    refused = geres_(cluster.home, "store", "restore", file)
    assert refused.returncode == 5
    assert "geres.db-wal exists already" in refused.stderr
    assert not (cluster.home / "geres.db").exists()

    log.rename(tmp_path / "broken.db-wal")
    assert geres_(cluster.home, "store", "restore", file).returncode == 0
    cluster.start()
    assert shown(cluster, "tasks") == []


def test_u141_a_restored_home_is_for_its_owner_alone(make_cluster, tmp_path):
    cluster = make_cluster()
    fill(cluster)
    file, home = tmp_path / "geres.tar", tmp_path / "other"
    cluster.run("store", "backup", str(file), check=True)
    home.mkdir(mode=0o755)
    with tarfile.open(file) as archive:
        assert {one.mode & 0o077 for one in archive.getmembers()} == {0}
    assert geres_(home, "store", "restore", file, umask=0o022).returncode == 0
    there = [path for path in home.rglob("*") if "blobs" in path.parts or path.name != "logs"]
    assert {path for path in there if path.stat().st_mode & 0o077} == set()


def test_u141_a_restore_that_does_not_fit_leaves_no_database_and_can_be_repeated(make_cluster, tmp_path):
    cluster = make_cluster(flags=("--no-agent",))
    file, home = tmp_path / "geres.tar", tmp_path / "other"
    cluster.run("store", "backup", str(file), check=True)

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))

    refused = geres_(home, "store", "restore", file, preexec_fn=small_files)
    assert refused.returncode == 7
    assert f"{file} could not be restored into {home}: File too large" in refused.stderr
    assert not list(home.glob("geres.db*[!k]"))  # but for the lock

    refused = geres_(cluster.home, "store", "backup", tmp_path / "b.tar", preexec_fn=small_files)
    assert refused.returncode == 7
    assert f"cannot be copied into {tmp_path}" in refused.stderr
    assert [path.name for path in tmp_path.iterdir() if "b.tar" in path.name or "backup" in path.name] == []

    assert geres_(home, "store", "restore", file).returncode == 0
    assert geres_(home, "store", "check").returncode == 0


def test_u141_a_home_in_use_is_not_restored_into(make_cluster, fresh_postgres, tmp_path):
    source = make_cluster(flags=("--no-agent",))
    file = tmp_path / "geres.tar"
    source.run("store", "backup", str(file), check=True)
    cluster = make_cluster(store="postgres", flags=("--no-agent",))
    token = cluster.token
    refused = cluster.run("store", "restore", str(file))
    assert refused.returncode == 5
    assert "geres down" in refused.stderr
    assert cluster.token == token


def test_u141_check_finds_damage_and_outputs_that_are_gone(make_cluster, tmp_path):
    cluster = make_cluster()
    fill(cluster)
    cluster.stop()
    assert geres_(cluster.home, "store", "check").returncode == 0

    for path in (cluster.home / "blobs").rglob("*.stdout"):
        path.unlink()
    done = geres_(cluster.home, "store", "check")
    assert done.returncode == 1
    assert "blob: the output outputs/" in done.stdout
    with contextlib.closing(sqlite3.connect(cluster.home / "geres.db")) as connection:
        connection.execute("UPDATE job SET finish_seq = finish_seq + 1 WHERE id = 1")
        connection.commit()
    assert "invariant" in geres_(cluster.home, "store", "check").stdout
    with (cluster.home / "geres.db").open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 4096)
    assert "damage" in geres_(cluster.home, "store", "check").stdout


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_u141_a_store_moves_to_postgresql_with_ids_and_history(make_cluster, fresh_postgres, tmp_path):
    cluster = make_cluster()
    large = fill(cluster)
    before = facts(cluster)
    source, target = f"sqlite:{cluster.home}/geres.db", fresh_postgres()
    refused = cluster.run("store", "move", source, target)
    assert refused.returncode == 5
    assert "another server uses" in refused.stderr
    cluster.stop()
    sums = {path.name: digest(path) for path in cluster.home.glob("geres.db*") if path.suffix != ".lock"}

    planned = geres_(cluster.home, "store", "move", source, target, "--dry-run")
    assert planned.returncode == 0, planned
    with psycopg.connect(target) as connection:
        assert connection.execute(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        ).fetchone() == (0,)
    done = geres_(cluster.home, "store", "move", source, target)
    assert done.returncode == 0, done
    again = geres_(cluster.home, "store", "move", source, target)
    assert again.returncode == 5
    assert "holds data already" in again.stderr
    assert {name: digest(cluster.home / name) for name in sums} == sums
    # As after a reboot, when somebody types `geres up` as ever: the tasks would be in two places.
    refused = geres_(cluster.home, "up", "--detach", "--port", str(cluster.port))
    assert refused.returncode == 7
    assert f"geres.db was moved to {target}" in refused.stderr
    assert "--store" in refused.stderr

    moved = Cluster(cluster.home.parent, store=target)
    with moved:
        assert facts(moved) == before
        assert len(moved.run("logs", large, check=True).stdout) == 200000
        assert moved.run("store", "check", "--store", target, check=True).stdout == ""
        assert moved.run("doctor", check=True).stdout == ""
        held = next(task["id"] for task in before["tasks"] if task["state"] == "held")
        moved.run("release", held, check=True)
        moved.run("wait", held, check=True)
        newest = max(int(job["id"]) for job in shown(moved, "jobs", "--all"))
        assert int(moved.run("job", "create", check=True).stdout) > newest
        assert moved.run("run", "echo", "on", check=True).stdout == "on\n"


def test_u141_a_move_that_was_killed_goes_on_where_it_was(make_cluster, fresh_postgres):
    cluster = make_cluster(flags=("--no-agent",))
    array = cluster.run("submit", "--array", "1-40000", "--", "true", check=True).stdout.strip()
    eventually(lambda: shown(cluster, "job", "show", array)["counts"]["not_yet"], lambda left: left == 0)
    cluster.stop()
    source, target = f"sqlite:{cluster.home}/geres.db", fresh_postgres()
    command = [GERES, "store", "move", source, target]
    env = clean_environment(cluster.home)

    moving = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    with psycopg.connect(target, autocommit=True) as connection:
        while moved_tasks(connection) <= 0:
            assert moving.poll() is None
            assert time.monotonic() < deadline
        moving.send_signal(signal.SIGKILL)
        moving.wait()
        half = moved_tasks(connection)
        assert 0 < half < 40000, "it was killed half-way"

        served = subprocess.run(
            [GERES, "server", "--port", str(free_port()), "--store", target],
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert served.returncode == 5
        assert "is not complete" in served.stderr

        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done
        assert connection.execute("SELECT count(*) FROM task").fetchone() == (40000,)


def moved_tasks(connection):
    """Tasks that the target has by now; -1 before there is a table."""
    try:
        return connection.execute("SELECT count(*) FROM task").fetchone()[0]
    except psycopg.errors.UndefinedTable:
        return -1


def test_u141_a_move_to_or_from_what_is_none_is_refused(tmp_path, fresh_postgres):
    (tmp_path / "text").write_text("hello" * 100)
    target = fresh_postgres()
    for source, to, status in (
        (f"sqlite:{tmp_path}/nothing", target, 4),
        (f"sqlite:{tmp_path}/text", target, 2),
        ("postgresql://a/b", target, 2),
        (f"sqlite:{tmp_path}/text", "sqlite:other", 2),
    ):
        done = geres_(tmp_path, "store", "move", source, to)
        assert done.returncode == status, done
        assert done.stderr.count("\n") == 1, done.stderr


def test_u141_a_dump_of_postgresql_is_restored_into_another_database(
    make_cluster, postgres_server, fresh_postgres
):
    """The commands of docs/operations/backup.md."""
    from tests.conftest import missing

    tool = postgres_server._bin / "pg_dump"
    if not tool.exists():
        missing(f"there is no {tool}")
    cluster = make_cluster(store="postgres")
    fill(cluster)
    before = facts(cluster)
    with open(cluster.home / "dump", "wb") as out:
        subprocess.run([tool, "-Fc", cluster._store], stdout=out, check=True, timeout=60)
    cluster.stop()
    target = fresh_postgres()
    with open(cluster.home / "dump", "rb") as dump:
        subprocess.run(
            [tool.with_name("pg_restore"), "--no-owner", "-d", target], stdin=dump, check=True, timeout=60
        )

    with Cluster(cluster.home.parent, store=target, flags=("--no-agent",)) as restored:
        assert facts(restored) == before
        assert restored.run("store", "check", "--store", target, check=True).stdout == ""
