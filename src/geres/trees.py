"""Folders that tasks have filled, however deep: where the standard library recurses, it fails for some."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def files_below(folder: str | Path) -> Iterator[os.stat_result]:
    """What `lstat` says of each file below a folder, without what cannot be read.  Links are not followed."""
    waiting = [os.fspath(folder)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        yield entry.stat(follow_symlinks=False)


def remove(folder: Path, onerror: Callable[[Any, str, Any], Any] | None = None) -> None:
    """Remove a folder with all that is in it, as far as that can be; links are not followed.

    `onerror` is that of shutil.rmtree; without it what cannot be removed stays.
    """
    try:
        shutil.rmtree(folder, ignore_errors=onerror is None, onerror=onerror)
    except RecursionError:
        subprocess.run(["rm", "-rf", "--", str(folder)], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
