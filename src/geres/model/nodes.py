"""What a node is: a machine with resources on which an agent runs."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

from geres.model.states import NodeState


class Capacity(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a node has in all."""

    cpus: float = 0.0
    memory_bytes: int = 0
    gpus: int = 0
    resources: dict[str, int] = {}


class NodeChange(Struct, kw_only=True):
    at: str
    state: NodeState
    why: str | None = None


class Node(Struct, kw_only=True):
    """A node as the API shows it."""

    name: str
    id: str
    pool: str
    state: NodeState
    state_since: str
    previous_state: NodeState | None = None
    previous_since: str | None = None
    connected: bool = False
    last_heartbeat_at: str | None = None
    total: Capacity = field(default_factory=Capacity)
    free: Capacity = field(default_factory=Capacity)
    task_count: int = 0
    labels: dict[str, str] = {}
    arch: str | None = None
    os: str | None = None
    host: str | None = None  #: host name
    version: str | None = None  #: of its agent
    account: str | None = None  #: the account that its tasks run as
    shared_paths: list[str] = []
    reason: str | None = None  #: why it is `starting` or `start_failed`


class NodesNamed(Struct, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /v1/nodes:drain and :undrain."""

    names: list[str]
    reason: str | None = None  #: for people to see
    dry_run: bool = False  #: only say what would be done


class NodesLeave(NodesNamed, forbid_unknown_fields=True, kw_only=True):
    """Body of POST /v1/nodes:remove and :reboot."""

    running: Literal["wait", "requeue", "terminate"] = "wait"  #: what becomes of tasks that are there


class NodeActed(Struct, omit_defaults=True, kw_only=True):
    """What became of one node; with a `code` it was refused."""

    name: str
    state: NodeState | None = None
    task_count: int = 0
    code: str | None = None
    message: str | None = None


class NodesActed(Struct):
    items: list[NodeActed]


class NodeDetail(Node, kw_only=True):
    """A node with its history, oldest first, and the ids of the tasks on it."""

    history: list[NodeChange] = []
    task_ids: list[str] = []
    login: str | None = None  #: where its machine is reached: USER@HOST of its label `ssh`, or its address
    going: str | None = None  #: remove or reboot, once no task is on it
    removed_at: str | None = None


class Summary(Struct, kw_only=True):
    """Counts over all that the caller may see."""

    tasks: dict[str, int]
    jobs: dict[str, int]
    nodes: dict[str, int]
    schedules_active: int = 0
    quarantined: int = 0


class WhoAmI(Struct, kw_only=True):
    subject: str
    role: str
    tenant: str
