"""How `geres up` stops its parts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from geres.cli.keeper import Keeper, Part

#: Drains at the first signal, as an agent does with a task that runs on, and ends at the second.
PART = """
import signal, time
heard = []
signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
print("ready", flush=True)
while len(heard) < 2:
    time.sleep(0.01)
"""


@pytest.fixture
def part(tmp_path):
    found = Part("agent", [], tmp_path)
    found.process = subprocess.Popen([sys.executable, "-c", PART], stdout=subprocess.PIPE)
    assert found.process.stdout is not None
    assert found.process.stdout.readline() == b"ready\n"
    yield found
    found.process.kill()
    found.process.wait()
    found.process.stdout.close()


def test_a_part_that_was_busy_hears_both_signals(tmp_path, part):
    """Two signals of one kind that wait for a process are one."""
    said: list[str] = []
    with socket.socket() as listener:
        keeper = Keeper(tmp_path, listener, [], None, 60.0, said.append)
        keeper._parts, keeper._stops = [part], 2
        os.kill(part.pid, signal.SIGSTOP)
        thaw = threading.Timer(0.3, os.kill, (part.pid, signal.SIGCONT))
        thaw.start()
        keeper._stop()
        thaw.join()
    assert part.process.returncode == 0, said
    assert said == ["stopping"]
