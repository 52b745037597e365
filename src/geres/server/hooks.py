"""Commands of the operator's that are run for a node: to revive it, to start its machine again."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping

import anyio

log = logging.getLogger("geres.hooks")

NAMES = ("kickstart", "reboot")
_SECONDS = 120.0
_KEPT_BYTES = 4096
_PIECE_BYTES = 4096


async def run(hook: str, command: str, node: str, facts: Mapping[str, str]) -> str | None:
    """Run the command with the node's name as its last word.  None, or what went wrong with it, in words.

    `facts` are added to its environment, which has GERES_NODE too.  It is ended after two minutes, with all
    that it started in its process group.  What it prints goes to the log, the last of it.
    """
    if any(text.startswith("-") for text in (node, *facts.values())):  # a program would take it for an option
        return f"the hook {hook} is not run for {node!r}: the name or the address begins with a dash"
    env = {**os.environ, **facts, "GERES_NODE": node, "GERES_HOOK": hook}
    tail = bytearray()
    try:
        words = [*shlex.split(command), node]
        process = await anyio.open_process(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
            cwd="/",
        )
    except (OSError, ValueError) as error:
        return f"the hook {hook} cannot be run: {error}"
    failure = f"the hook {hook} did not end within {_SECONDS:g} s and was ended"
    try:
        with anyio.move_on_after(_SECONDS):
            assert process.stdout is not None
            with contextlib.suppress(anyio.EndOfStream):
                while True:
                    tail += await process.stdout.receive(_PIECE_BYTES)
                    del tail[:-_KEPT_BYTES]
            status = await process.wait()
            failure = f"the hook {hook} ended with status {status}" if status else ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with anyio.CancelScope(shield=True):
            await process.aclose()
    said = tail.decode("utf-8", "replace").strip()
    log.log(
        logging.WARNING if failure else logging.INFO,
        "%s%s",
        failure or f"the hook {hook} was run for node {node}",
        f": {said}" if said else "",
        extra={"event": "hook", "node": node},
    )
    return failure or None
