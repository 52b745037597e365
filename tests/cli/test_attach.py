"""Streams of a task: what a broken connection loses comes again, once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

from geres.cli.run import pump_stdin
from geres.errors import GeresError, Unreachable
from geres.sdk.attach import Attachment
from geres.sdk.http import Address, Transport

pack, unpack = msgspec.msgpack.encode, msgspec.msgpack.decode
END = ["end", {"state": "succeeded", "reason": None, "message": None, "exit_code": 0, "signal": None}]
Script = Callable[[ServerConnection, dict[str, str]], None]


@contextlib.contextmanager
def server(*scripts: Script) -> Iterator[Transport]:
    """A server that plays one script a connection, in order; the last one again and again."""
    left = list(scripts)

    def play(connection: ServerConnection) -> None:
        query = {
            name: values[0] for name, values in parse_qs(urlsplit(connection.request.path).query).items()
        }
        script = left.pop(0) if len(left) > 1 else left[0]
        with contextlib.suppress(ConnectionClosed):
            script(connection, query)

    listener: Server = serve(play, "127.0.0.1", 0, compression=None)
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    try:
        yield Transport(Address(f"http://127.0.0.1:{listener.socket.getsockname()[1]}", "secret"))
    finally:
        listener.shutdown()
        thread.join()


def send(connection: ServerConnection, *frames: list[Any]) -> None:
    for frame in frames:
        connection.send(pack(frame))


def read_input(connection: ServerConnection) -> Iterator[list[Any]]:
    while True:
        yield unpack(connection.recv())


def outputs(frames: list[Any]) -> tuple[bytes, bytes]:
    return tuple(b"".join(value for kind, value in frames if kind == name) for name in ("o", "e"))  # type: ignore[return-value]


def test_output_comes_by_stream_and_ends_with_the_end():
    def script(connection: ServerConnection, query: dict[str, str]) -> None:
        send(connection, ["s", "running"], ["o", b"a\0"], ["e", b"b"], ["o", b"c"], END)

    with server(script) as transport:
        frames = list(Attachment(transport, "1.1").frames())
    assert outputs(frames) == (b"a\0c", b"b")
    assert frames[-1] == ("end", END[1])


def test_the_token_and_what_is_wanted_are_told():
    seen = []

    def script(connection: ServerConnection, query: dict[str, str]) -> None:
        seen.append((connection.request.headers["Authorization"], connection.request.path))
        send(connection, END)

    with server(script) as transport:
        list(Attachment(transport, "1.1", stdin=True, from_now=True).frames())
    assert seen == [("Bearer secret", "/v1/tasks/1.1/attach?stdin=1&from=now&out=0&err=0")]


@pytest.mark.parametrize("lost", [True, False], ids=["told", "cut"])
def test_after_a_break_only_what_is_missing_is_asked_for(lost):
    offsets = []

    def first(connection: ServerConnection, query: dict[str, str]) -> None:
        send(connection, ["o", b"abc"], ["e", b"x"])
        if lost:
            send(connection, ["lost"])
        else:
            connection.socket.close()

    def second(connection: ServerConnection, query: dict[str, str]) -> None:
        offsets.append((query["out"], query["err"]))
        send(connection, ["o", b"def"], END)

    with server(first, second) as transport:
        frames = list(Attachment(transport, "1.1").frames())
    assert outputs(frames) == (b"abcdef", b"x")
    assert offsets == [("3", "1")]


def test_a_new_attempt_begins_its_output_anew():
    offsets = []

    def first(connection: ServerConnection, query: dict[str, str]) -> None:
        send(
            connection,
            ["s", "running"],
            ["o", b"abc"],
            ["s", "queued"],
            ["s", "running"],
            ["o", b"A"],
            ["lost"],
        )

    def second(connection: ServerConnection, query: dict[str, str]) -> None:
        offsets.append(query["out"])
        send(connection, END)

    with server(first, second) as transport:
        list(Attachment(transport, "1.1").frames())
    assert offsets == ["1"]


def test_stdin_arrives_whole_and_in_order_over_a_break():
    data = bytes(range(256)) * 1024  # 4 frames of 64 KiB
    arrived = bytearray()
    told = []

    def first(connection: ServerConnection, query: dict[str, str]) -> None:
        frames = read_input(connection)
        arrived.extend(next(frames)[1])
        next(frames)  # read by us, never written to the task
        connection.socket.close()

    def second(connection: ServerConnection, query: dict[str, str]) -> None:
        told.append(int(query["in"]))
        send(connection, ["in", len(arrived)])
        for frame in read_input(connection):
            if frame[0] == "eof":
                break
            arrived.extend(frame[1])
        send(connection, END)

    with server(first, second) as transport:
        attached = Attachment(transport, "1.1", stdin=True)
        pieces = iter([data[i : i + 65536] for i in range(0, len(data), 65536)] + [b""])
        pump = threading.Thread(target=pump_stdin, args=(attached, lambda: next(pieces)))
        pump.start()
        frames = list(attached.frames())
        pump.join(10)
    assert bytes(arrived) == data
    assert told[0] >= 2 * 65536
    assert frames[-1][0] == "end"


def test_a_writer_is_let_go_when_the_task_ends():
    def script(connection: ServerConnection, query: dict[str, str]) -> None:
        send(connection, END)

    with server(script) as transport:
        attached = Attachment(transport, "1.1", stdin=True)
        list(attached.frames())
        assert attached.write(b"late") is False


def test_a_refusal_is_our_error_and_not_tried_again():
    from websockets.datastructures import Headers
    from websockets.http11 import Request, Response

    body = b'{"error": {"code": "not_found", "message": "there is no task 9.9", "facts": {}}}'
    asked = []

    def refuse(connection: ServerConnection, request: Request) -> Response:
        asked.append(request.path)
        return Response(404, "Not Found", Headers({"Content-Length": str(len(body))}), body)

    listener = serve(lambda connection: None, "127.0.0.1", 0, process_request=refuse)
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    try:
        transport = Transport(Address(f"http://127.0.0.1:{listener.socket.getsockname()[1]}", "t"))
        with pytest.raises(GeresError, match=r"there is no task 9\.9"):
            list(Attachment(transport, "9.9").frames())
    finally:
        listener.shutdown()
        thread.join()
    assert len(asked) == 1


def test_patience_ends_where_no_server_comes_back():
    with server(lambda connection, query: send(connection, END)) as transport:
        pass
    attached = Attachment(transport, "1.1", patience_seconds=0.2)
    with pytest.raises(Unreachable, match="does not come back"):
        list(attached.frames())
