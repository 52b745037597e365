"""The files that tasks write to: without a name while they are small, used again where that is safe."""

from __future__ import annotations

import errno
import os

INLINE_BYTES = 16 << 10
_MOST_SPARE = 64
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC


class File:
    """An open output file.  It has a name where the user gave it one, or there are no anonymous files."""

    __slots__ = ("begin", "fd", "name", "own")

    def __init__(self, fd: int, name: bytes | None, own: bool, begin: int = 0) -> None:
        self.fd = fd
        self.name = name
        self.own = own  # False: a path that the user named
        self.begin = begin  # its size when the attempt started


class Captures:
    """Gives and takes back output files under `folder`."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._spare: list[File] = []
        self._anonymous = hasattr(os, "O_TMPFILE")
        self._count = 0
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    @property
    def null(self) -> int:
        return self._null

    def take(self, owner: tuple[int, int] | None = None) -> File:
        """An empty file, that of the account (uid, gid) if given.  Raises OSError, as for a full disk."""
        if owner is not None:
            file = self._make()
            os.fchown(file.fd, *owner)  # for those who open /dev/stdout
            return file
        if self._spare:
            return self._spare.pop()
        return self._make()

    def _make(self) -> File:
        if self._anonymous:
            try:
                return File(os.open(self._folder, _FLAGS | os.O_TMPFILE, 0o600), None, True)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
                    raise
                self._anonymous = False
        self._count += 1
        name = os.fsencode(f"{self._folder}/.out.{os.getpid()}.{self._count}")
        return File(os.open(name, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600), name, True)

    def open_path(self, path: bytes, append: bool, umask: int | None) -> File:
        """A file that the user named; it is not ours to reuse.  Raises OSError."""
        flags = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        if not append:
            flags |= os.O_TRUNC
        before = os.umask(umask) if umask is not None else None
        try:
            try:
                fd = os.open(path, flags | os.O_RDWR, 0o666)
            except PermissionError:
                fd = os.open(path, flags | os.O_WRONLY, 0o666)
        finally:
            if before is not None:
                os.umask(before)
        os.set_blocking(fd, True)  # a FIFO without a reader must not hang us; the task gets it blocking
        return File(fd, os.path.abspath(path), False, os.fstat(fd).st_size if append else 0)

    def size(self, file: File | None) -> int:
        """Bytes written to it by this attempt."""
        return max(os.fstat(file.fd).st_size - file.begin, 0) if file is not None else 0

    def disk_bytes(self, file: File | None) -> int:
        return os.fstat(file.fd).st_blocks * 512 if file is not None and file.own else 0

    def tail(self, file: File, size: int) -> bytes:
        """The last of `size` bytes written, as many as travel in a report; empty where it cannot be read."""
        start = max(size - INLINE_BYTES, 0)
        try:
            return os.pread(file.fd, size - start, file.begin + start)
        except OSError:
            return b""

    def keep(self, file: File, path: bytes) -> None:
        """Give the file its name in the file system.  Raises OSError."""
        if file.name is not None:
            os.rename(file.name, path)
            file.name = path
        else:
            # Python calls linkat, which alone follows the link to an anonymous file, only with a src_dir_fd.
            os.link(f"/proc/self/fd/{file.fd}", path, src_dir_fd=self._null, follow_symlinks=True)

    def give_back(self, file: File, size: int, again: bool) -> None:
        """Done with it.  `again`: nobody else has it open, so that the next attempt may get it, emptied."""
        if again and file.own and len(self._spare) < _MOST_SPARE:
            if size:
                os.ftruncate(file.fd, 0)
            self._spare.append(file)
            return
        os.close(file.fd)
        if file.own and file.name is not None and b"/.out." in file.name:
            os.unlink(file.name)
