"""Operators' commands for nodes: bounded in time, output and processes."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any, cast

import anyio
import psutil
import pytest

from geres.errors import StoreUnavailable
from geres.server import hooks
from geres.server.attending import Attendant
from geres.store.database import open_database
from geres.store.node_actions import Silent
from tests.agent.world import until
from tests.api.world import Agent, Api


def command(folder: Path, text: str) -> str:
    path = folder / "hook"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return f"{path} 'two words'"


async def test_a_hook_gets_the_name_last_and_facts_in_its_environment(tmp_path: Path) -> None:
    said = tmp_path / "said"
    text = f'printf "%s|" "$@" "$GERES_NODE" "$GERES_HOOK" "$GERES_NODE_HOST" > {said}'
    assert await hooks.run("kickstart", command(tmp_path, text), "n1", {"GERES_NODE_HOST": "ops@n1"}) is None
    assert said.read_text() == "two words|n1|n1|kickstart|ops@n1|"


async def test_what_went_wrong_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        why = await hooks.run("reboot", command(tmp_path, "echo no such host; exit 4"), "n1", {})
    assert why == "the hook reboot ended with status 4"
    assert "no such host" in caplog.text
    assert "cannot be run" in (await hooks.run("reboot", "/no/such/program", "n1", {}) or "")
    assert "cannot be run" in (await hooks.run("reboot", "'unclosed", "n1", {}) or "")


async def test_what_a_node_says_of_itself_is_no_option_of_a_hook(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    hook = command(tmp_path, f"touch {ran}")
    for node, host in (("-oProxyCommand=x", "n1"), ("n1", "-oProxyCommand=x")):
        assert "dash" in (await hooks.run("kickstart", hook, node, {"GERES_NODE_HOST": host}) or "")
    assert not ran.exists()


async def test_a_hook_that_hangs_is_ended_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "_SECONDS", 0.5)
    pids = tmp_path / "pids"
    text = f"sleep 1000 & echo $! > {pids}; wait"
    assert "did not end" in (await hooks.run("kickstart", command(tmp_path, text), "n1", {}) or "")
    child = int(pids.read_text())
    until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


async def test_of_endless_output_the_last_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        text = "head -c 3000000 /dev/zero | tr '\\0' x; echo the end"
        assert await hooks.run("kickstart", command(tmp_path, text), "n1", {}) is None
    assert len(caplog.text) < 10_000
    assert "the end" in caplog.text


def test_a_hook_that_hangs_holds_up_no_loop(tmp_path: Path) -> None:
    """As `ssh` does to a machine that is dead; a loop that does not come round makes the server not ready."""
    pids = tmp_path / "pids"
    hook = command(tmp_path, f"echo $$ > {pids}; exec sleep 1000")
    with Api(tmp_path / "home", lease_seconds=3, hooks={"kickstart": hook}) as api:
        Agent(api).close()
        until(lambda: pids.exists() and pids.read_text().endswith("\n"), 30)

        def rounds() -> int:
            loops = api.get("/v1/debug/state")["loops"]
            return next(loop["rounds"] for loop in loops if loop["name"] == "silent nodes")

        before = rounds()
        until(lambda: rounds() > before + 1, 30)
        assert psutil.pid_exists(int(pids.read_text()))
    assert not psutil.pid_exists(int(pids.read_text()))


def test_a_server_without_the_hook_leaves_a_reboot_to_one_that_has_it(tmp_path: Path) -> None:
    with Api(tmp_path / "home") as api:
        Agent(api).close()
        db = open_database(f"sqlite:{api.home / 'geres.db'}")
        with contextlib.closing(db):
            db.call(lambda tx: tx.raw_run("UPDATE node SET going = 'reboot', draining = ?", [1]))

            def rounds() -> int:
                loops = api.get("/v1/debug/state")["loops"]
                return next(loop["rounds"] for loop in loops if loop["name"] == "going nodes")

            before = rounds()
            until(lambda: rounds() > before + 1, 30)
            assert db.call(lambda tx: tx.raw("SELECT going FROM node")) == [("reboot",)]


async def test_a_store_that_is_away_while_a_hook_is_noted_ends_no_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    attendant = Attendant(cast("Any", None), cast("Any", None), {}, lease_seconds=15)
    node = Silent(1, "n1", 0, 0, None, "n1")
    tries = []

    async def note(node: Silent) -> None:
        tries.append(node)
        raise StoreUnavailable("the database does not answer")

    async with anyio.create_task_group() as group:
        group.start_soon(attendant.run)
        await anyio.wait_all_tasks_blocked()
        for _ in range(2):
            attendant._begin(note, node)
            attendant._begin(note, node)  # it waits for its turn already
            await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert tries == [node, node]
    assert "does not answer" in caplog.text
