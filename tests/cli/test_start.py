"""The command starts fast: what it does not need it does not load."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("litestar", "rich", "psutil", "asyncio", "anyio", "uvicorn", "websockets", "sqlite3")


def loaded_after(*words: str) -> set[str]:
    code = (
        "import sys\n"
        "from geres.cli.main import run\n"
        f"run({list(words)!r})\n"
        "print('loaded:', *sorted(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    return set(done.stderr.rpartition("loaded:")[2].split())


@pytest.mark.parametrize(
    "words", [("--help",), ("squeue",), ("submit", "--help"), ("run", "--help"), ("version",)]
)
def test_help_and_mistakes_load_nothing_heavy(words):
    loaded = loaded_after(*words)
    assert "geres.cli.main" in loaded
    assert not loaded & set(HEAVY)


def test_the_first_page_of_help_loads_no_client_either():
    assert not loaded_after("--help") & {"http.client", "msgspec", "platformdirs", "geres.sdk.client"}


def test_submit_loads_nothing_of_server_or_screen():
    loaded = loaded_after("--url", "http://127.0.0.1:9", "submit", "--", "true")
    assert "geres.sdk.client" in loaded
    assert not loaded & set(HEAVY)


def test_import_geres_loads_nothing():
    code = "import sys, geres; print(*[m for m in sys.modules if m.startswith('geres.') or m == 'msgspec'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_face_of_the_package_gives_its_names_and_no_others():
    code = (
        "import geres\n"
        "assert all(getattr(geres, name) for name in geres.__all__)\n"
        "try:\n    geres.Clinet\n"
        "except AttributeError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "has no attribute 'Clinet'" in done.stdout
