"""The work of `geres demo`: real files, a shell line for each, and the same sums computed without geres."""

from __future__ import annotations

import gzip
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

LEAST_TASKS = 1000
#: Enough to see, and done within a minute.
MOST_TASKS = 10_000
_FILES_A_CALL = 100
_COMPRESS = ("gzip", "-n", "-9", "-c")
_SUM = "sha256sum"
_NOT_OURS = ("site-packages", "dist-packages", "__pycache__")
#: The same work where the machine has no gzip or no sha256sum.
_PYTHON_LINE = (
    "import gzip, hashlib, sys; data = open(sys.argv[1], 'rb').read() + sys.argv[2].encode(); "
    "print(hashlib.sha256(gzip.compress(data, 9, mtime=0)).hexdigest())"
)


@dataclass(frozen=True)
class Work:
    """One task of the demo: a file; `salt` is put behind its content where the file comes again."""

    path: str
    label: str  #: the path without its folder of modules
    size_bytes: int
    salt: str = ""


class Method(Protocol):
    """How files are compressed and summed."""

    missing: tuple[str, ...]  #: programs that would have made it faster

    def line(self, work: Work) -> str:
        """The shell line of the task; it prints the sum as the first word."""
        ...

    def sums(self, works: Sequence[Work]) -> list[str]:
        """The sums of all, computed here and now, in order."""
        ...


def collect(most: int = MOST_TASKS) -> list[Work]:
    """Every .py file of this Python's library and site-packages, in order of their paths, at most `most`.

    Where there are fewer than 1,000, the files come again with a salt until there are.
    """
    files = sorted(_files(), key=lambda work: work.path)
    works = list(files)
    turn = 0
    while files and len(works) < LEAST_TASKS:
        turn += 1
        more = files[: LEAST_TASKS - len(works)]
        works += [
            Work(one.path, f"{one.label} + salt {turn}", one.size_bytes, f"salt {turn}\n") for one in more
        ]
    return works[:most]


def choose_method() -> Method:
    """gzip and sha256sum where both work here, else this Python."""
    missing = tuple(name for name in (_COMPRESS[0], _SUM) if shutil.which(name) is None)
    if not missing and (method := ByPrograms()).works():
        return method
    return ByPython(missing)


class ByPrograms:
    """`gzip` and `sha256sum`; the sums to compare with come from gzip on many files at once and hashlib."""

    missing: tuple[str, ...] = ()

    def line(self, work: Work) -> str:
        path = shlex.quote(work.path)
        if work.salt:
            return f"{{ cat {path}; printf %s {shlex.quote(work.salt)}; }} | {' '.join(_COMPRESS)} | {_SUM}"
        return f"{' '.join(_COMPRESS)} {path} | {_SUM}"

    def sums(self, works: Sequence[Work]) -> list[str]:
        pieces = [works[start : start + _FILES_A_CALL] for start in range(0, len(works), _FILES_A_CALL)]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            return [one for piece in threads.map(self._piece, pieces) for one in piece]

    def works(self) -> bool:
        """True where both programs do here what we take them to do."""
        with tempfile.TemporaryDirectory(prefix="geres-demo-") as folder:
            path = Path(folder) / "probe"
            path.write_bytes(b"probe" * 100)
            work = Work(str(path), "probe", 500)
            done = subprocess.run(["/bin/sh", "-c", self.line(work)], capture_output=True, text=True)
            try:
                return done.returncode == 0 and done.stdout.split()[0] == self.sums([work, work])[1]
            except (subprocess.CalledProcessError, zlib.error, ValueError, IndexError):
                return False

    def _piece(self, works: Sequence[Work]) -> list[str]:
        with tempfile.TemporaryDirectory(prefix="geres-demo-") as folder:
            paths = [_salted(work, Path(folder) / str(number)) for number, work in enumerate(works)]
            packed = subprocess.run([*_COMPRESS, *paths], stdout=subprocess.PIPE, check=True).stdout
        sums = [hashlib.sha256(member).hexdigest() for member in _members(packed)]
        if len(sums) != len(works):
            raise ValueError(f"gzip made {len(sums)} results of {len(works)} files")
        return sums


class ByPython:
    """The same with Python's own modules: slower, but Python is surely there."""

    def __init__(self, missing: tuple[str, ...] = ()) -> None:
        self.missing = missing

    def line(self, work: Work) -> str:
        return shlex.join([sys.executable, "-I", "-S", "-c", _PYTHON_LINE, work.path, work.salt])

    def sums(self, works: Sequence[Work]) -> list[str]:
        return [
            hashlib.sha256(
                gzip.compress(Path(work.path).read_bytes() + work.salt.encode(), 9, mtime=0)
            ).hexdigest()
            for work in works
        ]


def _files() -> Iterator[Work]:
    seen: set[str] = set()
    for folder in dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")):
        for place, folders, names in os.walk(folder):
            # Another Python's packages may lie in the library of the one that made this environment.
            folders[:] = [one for one in folders if one not in _NOT_OURS]
            for name in names:
                path = os.path.realpath(os.path.join(place, name))
                if not name.endswith(".py") or path in seen or not path.isprintable():
                    continue
                seen.add(path)
                if os.path.isfile(path) and os.access(path, os.R_OK):
                    label = os.path.relpath(os.path.join(place, name), folder)
                    yield Work(path, label, os.path.getsize(path))


def _salted(work: Work, copy: Path) -> str:
    if not work.salt:
        return work.path
    copy.write_bytes(Path(work.path).read_bytes() + work.salt.encode())
    return str(copy)


def _members(packed: bytes) -> Iterator[bytes]:
    """The gzip files of which `packed` is the chain."""
    while packed:
        reader = zlib.decompressobj(wbits=31)
        reader.decompress(packed)
        if not reader.eof:
            raise ValueError("the last result of gzip is cut off")
        yield packed[: len(packed) - len(reader.unused_data)]
        packed = reader.unused_data
