"""The facts of this machine that a server is told."""

from __future__ import annotations

import os
import platform
import pwd
import secrets
import socket
from pathlib import Path

import psutil

import geres
from geres.agent.supervisor import boot_id
from geres.config import AgentConfig, host_id
from geres.files import write_private
from geres.model.wire import PROTOCOL, AttemptKey, Heartbeat, Hello, attempts_checksum


def cpu_count() -> int:
    """The cpus that we may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def gpu_count() -> int:
    """The gpus that Linux shows; 0 where it shows none."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def node_name(config: AgentConfig) -> str:
    return config.name or socket.gethostname()


def hello(
    config: AgentConfig,
    folder: Path,
    attempts: list[AttemptKey],
    running: list[AttemptKey],
    gpu_ids: list[tuple[int, int, list[int]]],
    on_disconnect: str,
) -> Hello:
    return Hello(
        protocol=PROTOCOL,
        version=geres.__version__,
        node=node_name(config),
        boot_id=boot_id(),
        host_id=host_id(),
        host=socket.gethostname(),
        arch=platform.machine(),
        os=platform.system().lower(),
        pid=os.getpid(),
        account=pwd.getpwuid(os.getuid()).pw_name,
        cpus=config.cpus or float(cpu_count()),
        memory_bytes=config.memory_bytes or psutil.virtual_memory().total,
        gpus=config.gpus if config.gpus >= 0 else gpu_count(),
        resources=config.resources,
        labels=config.labels,
        shared_paths=list(config.shared_paths),
        folder=str(folder / "tasks"),
        attempts=attempts,
        running=running,
        pool=config.pool,
        slots=config.slots,
        gpu_ids=gpu_ids,
        instance=_instance(folder),
        on_disconnect=on_disconnect,
    )


def _instance(folder: Path) -> str:
    """The number of this agent's folder, made at its first use."""
    path = folder / "instance"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        write_private(path, secrets.token_hex(8))
        return path.read_text().strip()


def heartbeat(
    folder: Path, attempts: list[AttemptKey], draining: bool, *, number: int = 0, full: bool = False
) -> Heartbeat:
    disk = psutil.disk_usage(str(folder))
    return Heartbeat(
        count=len(attempts),
        checksum=attempts_checksum(attempts),
        available_memory_bytes=psutil.virtual_memory().available,
        disk_free_bytes=disk.free,
        draining=draining,
        disk_total_bytes=disk.used + disk.free,  # without what is kept for root, as `df` counts
        number=number,
        full=full,
    )
