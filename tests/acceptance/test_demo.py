"""The demo from the installed command: real files, checked sums, one dead letter, nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from tests.cluster import GERES, clean_environment

#: Beside other tests it gets half of the machine.
MOST_SECONDS = 120 if "PYTEST_XDIST_WORKER" in os.environ else 60


@pytest.fixture
def place(monkeypatch):
    """An empty temporary folder, in which the demo makes its home."""
    with tempfile.TemporaryDirectory(prefix="geres-test-") as folder:
        yield Path(folder)


def demo(place, *words):
    env = clean_environment(place / "not-used", TMPDIR=str(place))
    return subprocess.run([GERES, "demo", *words], env=env, capture_output=True, text=True, timeout=240)


def left_in(place):
    """Processes whose environment names a home in the folder."""
    left = []
    for process in psutil.process_iter():
        try:
            home = process.environ().get("GERES_HOME", "")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if home.startswith(f"{place}/geres-demo-"):
            left.append(process)
    return left


@pytest.mark.timeout(300)
def test_the_demo_runs_real_work_checks_it_and_can_be_run_again(place):
    begun = time.monotonic()
    done = demo(place)
    seconds = time.monotonic() - begun

    assert done.returncode == 0, done.stdout + done.stderr
    [count] = re.findall(r"^([\d,]+) tasks: each compresses", done.stdout, re.MULTILINE)
    assert int(count.replace(",", "")) >= 1000
    assert f"{count} succeeded, 1 failed" in done.stdout
    assert f"all {count} equal those computed here without geres" in done.stdout
    assert "tasks/s" in done.stdout
    assert "CPU time of tasks" in done.stdout
    assert "slowest tasks" in done.stdout
    assert "fails on purpose  2 attempts, exit 3" in done.stdout
    assert "stdout: attempt 2: this line is stdout" in done.stdout
    assert "stderr: I fail on purpose" in done.stdout
    assert "geres up --detach" in done.stdout
    assert seconds < MOST_SECONDS
    assert not list(place.iterdir())
    assert not left_in(place)

    again = demo(place, "--tasks", "50")

    assert again.returncode == 0, again.stdout + again.stderr
    assert "all 50 equal" in again.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demo_stops_what_it_started(place, number):
    env = clean_environment(place / "not-used", TMPDIR=str(place), PYTHONUNBUFFERED="1")
    running = subprocess.Popen(
        [GERES, "demo"], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    )
    for line in running.stdout:
        if " done, " in line:
            break

    os.killpg(running.pid, number)
    rest = running.communicate(timeout=60)[0]

    assert running.returncode == 130, rest
    assert "is stopped" in rest
    assert "Traceback" not in rest
    assert not list(place.iterdir())
    assert not left_in(place)


def test_without_the_programs_python_does_the_work(place):
    """gzip and sha256sum are not in the PATH of the call; only what a shell needs is."""
    programs = place / "bin"
    programs.mkdir()
    (programs / "sh").symlink_to("/bin/sh")
    env = clean_environment(place / "not-used", TMPDIR=str(place), PATH=str(programs))
    done = subprocess.run(
        [GERES, "demo", "--tasks", "20"], env=env, capture_output=True, text=True, timeout=100
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "gzip and sha256sum missing here" in done.stdout
    assert "all 20 equal" in done.stdout
