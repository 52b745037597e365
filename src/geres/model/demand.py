"""What a task asks of a node: the part of its specification that decides where it may run.

Tasks with the same Demand are one resource class.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from msgspec import Struct

from geres.errors import Invalid
from geres.model.tasks import TaskSpec


class Demand(Struct, frozen=True, omit_defaults=True):
    cpus_milli: int = 1000  #: thousandths of a cpu
    memory_bytes: int = 0
    gpus: int = 0
    counts: tuple[tuple[str, int], ...] = ()  #: named resources, by name
    exclusive: bool = False
    nodelist: tuple[str, ...] = ()
    match: str | None = None
    see_path: str | None = None
    host: str | None = None
    label: str | None = None  #: whose limit it counts against


_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(Demand).decode


def demand_of(spec: TaskSpec) -> Demand:
    return Demand(
        cpus_milli=round(spec.cpus * 1000),
        memory_bytes=spec.memory_bytes,
        gpus=spec.gpus,
        counts=tuple(sorted((name, count) for name, count in spec.resources.items() if count)),
        exclusive=spec.exclusive,
        nodelist=tuple(spec.nodelist),
        match=spec.match,
        see_path=spec.see_path,
        host=spec.host,
        label=spec.max_parallel_label.partition("=")[0] if spec.max_parallel_label else None,
    )


def label_cap(spec: TaskSpec) -> tuple[str, int] | None:
    """(label, most) of `max_parallel_label`, written LABEL=N.  Raises Invalid for another form."""
    if not spec.max_parallel_label:
        return None
    label, sign, most = spec.max_parallel_label.partition("=")
    if not (label and sign and most.isascii() and most.isdigit()):
        raise Invalid(
            f"max_parallel_label: {spec.max_parallel_label!r} is not of the form LABEL=N, like licence=2",
            field="max_parallel_label",
        )
    return label, int(most)


def to_text(demand: Demand) -> str:
    """JSON, the same for equal demands."""
    return _encode(demand).decode()


def from_text(text: str) -> Demand:
    return _decode(text)


def digest(value: Any) -> str:
    """A short name of a value's JSON, the same for equal values: 128 bits of SHA-256."""
    return hashlib.sha256(_encode(value)).hexdigest()[:32]
