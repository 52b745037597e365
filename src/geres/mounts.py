"""Tells network file systems from local ones: databases and locks break on the former."""

from __future__ import annotations

import re
from pathlib import Path

_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs"}
    | {"pvfs2", "orangefs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone"}
    | {"fuse.gcsfuse"}
)

_ESCAPED = re.compile(r"\\([0-7]{3})")  # blanks and backslashes, nothing else


def network_file_system(path: Path, mounts: str | None = None) -> str | None:
    """The type of the network file system that the path is on; None for a local one.

    The path need not exist.  `mounts` is the text of /proc/self/mountinfo.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text()
        except OSError:
            return None
    resolved = str(path.resolve())
    longest, found = -1, ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        point = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), left.split()[4])
        inside = resolved == point or resolved.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:  # of two mounts at one point the later one is seen
            longest, found = len(point), right.split()[0]
    return found if found in _NETWORK else None
