"""What a newer program sends is read, not refused; what people send is."""

from __future__ import annotations

import msgspec
import pytest

from geres.model.jobs import JobSpec, KnownJobSpec
from geres.model.tasks import Attempt, KnownSpec, TaskSpec
from geres.model.wire import Frame, Spec, decode


def test_a_specification_with_a_field_of_a_newer_program_is_read() -> None:
    text = b'{"command": ["true"], "of_the_future": 1}'

    assert msgspec.json.decode(text, type=KnownSpec).command == ["true"]
    assert msgspec.json.decode(b'{"task": ' + text + b"}", type=KnownJobSpec).task is not None
    with pytest.raises(msgspec.ValidationError, match="of_the_future"):
        msgspec.json.decode(text, type=TaskSpec)
    with pytest.raises(msgspec.ValidationError, match="of_the_future"):
        msgspec.json.decode(b'{"task": ' + text + b"}", type=JobSpec)


def test_an_agent_reads_the_specification_of_a_newer_server() -> None:
    frame = {"specs": [[1, {"command": ["true"], "of_the_future": 1}, {}, "more"]], "of_the_future": 2}

    assert isinstance(decode(msgspec.msgpack.encode(frame)).specs[0], Spec)
    assert isinstance(decode(msgspec.msgpack.encode(frame)), Frame)


def test_a_reason_of_a_newer_program_is_shown_as_it_is() -> None:
    text = b'{"task_id": "1.1", "attempt": 1, "state": "failed", "reason": "eaten_by_moths"}'

    assert msgspec.json.decode(text, type=Attempt).reason == "eaten_by_moths"
