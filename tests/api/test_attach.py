"""Live output and input, spliced between a client and an agent, and what is kept of outputs."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import InvalidStatus

from geres.api import outputs
from geres.api.attach import AttachQuery, _Attachment
from geres.api.streams import Socket
from geres.model.ids import parse_task
from tests.agent.world import until
from tests.api.world import Agent, Api, Client

Connect = Callable[..., Agent]


@pytest.fixture
def attach(api: Api) -> Iterator[Callable[..., Client]]:
    made: list[Client] = []

    def open_client(task: str, query: str = "") -> Client:
        made.append(Client(api, task, query))
        return made[-1]

    yield open_client
    for one in made:
        one.close()


def running(api: Api, node: Agent, **options: Any) -> str:
    """A task that the node has started."""
    task = api.submit("cat", **options)
    node.until(lambda: parse_task(task) in [one.task for one in node.assigned])
    node.start(task)
    api.wait(task, "running")
    return task


def test_output_comes_as_it_is_written_and_the_end_last(
    api: Api, agent: Connect, attach: Callable[..., Client]
) -> None:
    node = agent()
    task = running(api, node)
    client = attach(task)
    stream = node.stream()

    stream.write("o", b"one\n")
    assert client.until("o")[-1] == ["o", b"one\n"]
    stream.write("e", b"two\n")
    assert client.read() == ["e", b"two\n"]
    stream.write("end", {})
    node.end(task, stdout=b"one\n", stdout_bytes=4, stderr=b"two\n", stderr_bytes=4)

    rest = client.until("end")
    assert [frame for frame in rest if frame[0] in "oe"] == [], "kept output came twice"
    assert rest[-1][1] == {
        "state": "succeeded",
        "reason": None,
        "message": None,
        "exit_code": 0,
        "signal": None,
    }


def test_states_are_told_while_a_task_waits(api: Api, agent: Connect, attach: Callable[..., Client]) -> None:
    task = api.submit()
    client = attach(task)
    assert client.read() == ["s", "queued"]

    node = agent()
    node.take()
    node.start(task)

    states = [frame[1] for frame in client.until("s") if frame[0] == "s"]
    while states[-1] != "running":
        states.append(client.read()[1])
    node.stream().write("end", {})
    node.end(task)
    assert client.until("end")[-1][1]["state"] == "succeeded"


def test_what_ended_before_comes_from_what_is_kept(
    api: Api, agent: Connect, attach: Callable[..., Client]
) -> None:
    node = agent()
    task = api.submit()
    node.take()
    node.end(task, outcome="failed", reason="exit", exit_code=3, stdout=b"abc", stdout_bytes=3, stderr=b"E")

    frames = attach(task).until("end")
    behind = attach(task, "?out=2&err=1").until("end")
    from_now = attach(task, "?from=now").until("end")

    assert frames[:3] == [["s", "failed"], ["o", b"abc"], ["e", b"E"]]
    assert frames[-1][1]["exit_code"] == 3
    assert behind[1:-1] == [["o", b"c"]]
    assert from_now[1:-1] == []


def test_what_the_stream_did_not_bring_comes_from_what_is_kept(
    api: Api, agent: Connect, attach: Callable[..., Client]
) -> None:
    node = agent()
    task = running(api, node)
    client = attach(task)
    stream = node.stream()
    stream.write("o", b"abc")
    client.until("o")

    stream.write("end", {})
    node.end(task, stdout=b"abcdef", stdout_bytes=6)

    assert client.until("end")[-2] == ["o", b"def"]


def test_input_goes_to_the_agent_in_order(api: Api, agent: Connect, attach: Callable[..., Client]) -> None:
    node = agent()
    task = running(api, node, stdin=True)
    client = attach(task, "?stdin=1")
    client.write("i", b"before the stream was open")
    stream = node.stream()
    assert stream.asked.with_stdin
    stream.write("in", 0)
    client.write("i", b"after")
    client.write("sig", "INT")
    client.write("eof")

    assert [stream.read() for _ in range(4)] == [
        ["i", b"before the stream was open"],
        ["i", b"after"],
        ["sig", "INT"],
        ["eof"],
    ]
    assert client.until("in")[-1] == ["in", 0]


def test_the_agent_is_told_what_a_client_has_seen(
    api: Api, agent: Connect, attach: Callable[..., Client]
) -> None:
    node = agent()
    task = running(api, node)

    attach(task, "?out=5&err=7&in=9")

    query = node.stream().asked.path.partition("?")[2]
    assert query == "from=begin&out=5&err=7&in=9"


def test_a_broken_agent_connection_is_told(api: Api, agent: Connect, attach: Callable[..., Client]) -> None:
    node = agent()
    task = running(api, node)
    client = attach(task)
    stream = node.stream()
    stream.write("o", b"x")

    stream.close()

    assert client.until("lost")[-2:] == [["o", b"x"], ["lost"]]


def test_a_retry_starts_the_output_again(api: Api, agent: Connect, attach: Callable[..., Client]) -> None:
    node = agent()
    task = running(api, node, retry={"most": 1})
    client = attach(task)
    first = node.stream()
    first.write("o", b"first")
    first.write("end", {})
    node.end(task, outcome="failed", reason="exit", exit_code=1, stdout=b"first", stdout_bytes=5)
    node.until(lambda: len(node.assigned) == 2)
    node.start(task)
    second = node.stream()
    assert second.asked.attempt == 2
    second.write("o", b"again")
    second.write("end", {})
    node.end(task, stdout=b"again", stdout_bytes=5)

    output = b"".join(frame[1] for frame in client.until("end") if frame[0] == "o")
    assert output == b"firstagain"


def test_a_stream_holds_back_a_fast_agent_when_its_client_does_not_read(
    api: Api, agent: Connect, attach: Callable[..., Client]
) -> None:
    node = agent()
    task = running(api, node)
    client = attach(task)
    stream = node.stream()
    piece = b"x" * 65536

    written = threading.Semaphore(0)

    def write() -> None:
        for _ in range(4096):
            stream.write("o", piece)
            written.release()

    writing = threading.Thread(target=write)
    writing.start()

    most = 0
    while written.acquire(timeout=1):
        most += 1
    assert most < 1024, "the server took more than sockets hold"
    got = 0
    while got < 4096 * len(piece):
        frame = client.read()
        got += len(frame[1]) if frame[0] == "o" else 0
    writing.join(10)


def test_attaching_to_nothing_is_refused_before_the_handshake(api: Api) -> None:
    for path, status in (("/v1/tasks/1.9/attach", 404), ("/v1/tasks/x/attach", 404), ("/v1/nothing", 422)):
        with pytest.raises(InvalidStatus) as caught:
            api.socket(path)
        assert caught.value.response.status_code == status
    with pytest.raises(InvalidStatus) as caught:
        api.socket("/v1/agents", token="wrong")
    assert caught.value.response.status_code == 401
    with pytest.raises(InvalidStatus) as caught:
        api.socket("/v1/agents/streams/unknown", token=api.agent_token)
    assert caught.value.response.status_code == 404


def logs(api: Api, task: str, **query: Any) -> bytes:
    answer = api.call("GET", f"/v1/tasks/{task}/logs", **query)
    assert answer.status == 200, answer.body
    return answer.body


def upload(api: Api, task: str, attempt: int, content: bytes, stream: str = "stdout") -> Any:
    path = f"/v1/agents/outputs/{parse_task(task)}/{attempt}/{stream}"
    return api.call("PUT", path, content, token=api.agent_token)


def test_a_large_output_is_uploaded_and_read_in_parts(api: Api, agent: Connect) -> None:
    node = agent()
    task = running(api, node)
    content = b"".join(b"line %d\n" % number for number in range(200_000))
    assert upload(api, task, 1, b"a first try that was cut off").status == 200

    blob = upload(api, task, 1, content).good["blob"]
    node.end(task, stdout=content[-16384:], stdout_bytes=len(content), stdout_blob=blob)

    assert logs(api, task) == content
    assert logs(api, task, offset=len(content) - 5) == content[-5:]
    assert logs(api, task, tail=3) == b"line 199997\nline 199998\nline 199999\n"
    assert logs(api, task, tail=20_000).count(b"\n") == 20_000
    assert (api.home / "blobs" / blob).read_bytes() == content
    assert len(list((api.home / "blobs").rglob("*.part"))) == 0


def test_an_upload_that_is_cut_off_leaves_nothing_and_is_no_fault_of_the_server(
    api: Api, agent: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    node = agent()
    task = running(api, node)
    path = f"/v1/agents/outputs/{parse_task(task)}/1/stdout"
    head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.agent_token}\r\n"
    with socket.create_connection(("127.0.0.1", api.port), timeout=10) as cut:
        cut.sendall(head.encode() + b"Content-Length: 1000000\r\n\r\n" + b"x" * 1000)
        until(lambda: list((api.home / "blobs").rglob("*.part")))

    until(lambda: not list((api.home / "blobs").rglob("*.part")))
    assert upload(api, task, 1, b"again").status == 200
    assert "request failed" not in caplog.text


def test_an_output_of_an_attempt_that_is_over_is_refused(api: Api, agent: Connect) -> None:
    node = agent()
    task = running(api, node)

    assert upload(api, task, 2, b"x").error["code"] == "stale_attempt"
    assert upload(api, task, 1, b"x", stream="secrets").status == 422
    node.end(task)
    assert upload(api, task, 1, b"x").error["code"] == "stale_attempt"
    assert not (api.home / "blobs").exists()


def test_logs_of_each_attempt_and_stream(api: Api, agent: Connect) -> None:
    node = agent()
    task = running(api, node, retry={"most": 1})
    node.end(task, outcome="failed", reason="exit", exit_code=1, stdout=b"one", stdout_bytes=3)
    node.until(lambda: len(node.assigned) == 2)
    node.end(task, stdout=b"a\nb\nc", stdout_bytes=5, stderr=b"err", stderr_bytes=3)

    assert logs(api, task) == b"a\nb\nc"
    assert logs(api, task, attempt=1) == b"one"
    assert logs(api, task, stream="stderr") == b"err"
    assert logs(api, task, tail=2) == b"b\nc"
    assert logs(api, task, tail=0) == b""
    assert api.call("GET", f"/v1/tasks/{task}/logs", attempt=9).error["code"] == "not_found"
    assert api.call("GET", f"/v1/tasks/{task}/logs", stream="both").error["facts"]["field"] == "stream"


def test_logs_of_a_running_task_are_what_there_is_so_far(api: Api, agent: Connect) -> None:
    node = agent()
    task = running(api, node)
    found: list[bytes] = []
    reading = threading.Thread(target=lambda: found.append(logs(api, task)))
    reading.start()

    stream = node.stream()
    stream.write("o", b"so ")
    stream.write("e", b"not asked for")
    stream.write("o", b"far")
    reading.join(10)

    assert found == [b"so far"]


@given(
    parts=st.lists(st.text("ab\n", max_size=9).map(str.encode), max_size=12),
    lines=st.integers(0, 9),
    most=st.integers(1, 30),
    piece=st.integers(1, 9),
)
async def test_the_last_lines_of_what_comes_are_found_in_pieces(
    parts: list[bytes], lines: int, most: int, piece: int
) -> None:
    async def coming() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "_MOST_TAIL_BYTES", most)
        patch.setattr(outputs, "_PIECE_BYTES", piece)
        found = b"".join([part async for part in outputs._tail_of_live(coming(), lines)])
    assert found == outputs.last_lines(b"".join(parts)[-most:], lines)


def test_more_lines_than_a_server_counts_are_refused(api: Api) -> None:
    task = api.submit("true")
    refused = api.call("GET", f"/v1/tasks/{task}/logs", tail=10**12)
    assert (refused.status, refused.error["facts"]["field"]) == (422, "tail")
    assert api.call("GET", f"/v1/tasks/{task}/logs", tail=100_000).status == 200


def test_a_task_that_has_written_nothing_has_empty_logs(api: Api) -> None:
    assert logs(api, api.submit()) == b""


async def test_input_for_a_stream_that_broke_waits_for_the_next_one() -> None:
    """And spins not meanwhile: until its reader notices, the broken one takes nothing, at once."""

    class Counting(Socket):
        tries = 0

        async def write(self, frame: list[Any]) -> bool:
            self.tries += 1
            return await super().write(frame)

    async def receive() -> dict[str, Any]:
        if said:
            return {"type": "websocket.receive", "bytes": said.pop()}
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Any) -> None:
        sent.set()

    said, sent = [msgspec.msgpack.encode(["i", b"x"])], anyio.Event()
    client, broken, next_one = Socket(receive, send), Counting(receive, send), Counting(receive, send)
    broken.closed = True
    made = _Attachment(
        cast(Any, None), cast(Any, None), cast(Any, None), 1, AttachQuery(), client, may_write=True
    )
    made._noted_input = True
    made._agent = broken
    made._opened.set()
    async with anyio.create_task_group() as group:
        group.start_soon(made._read_client, group.cancel_scope)
        await anyio.sleep(0.05)
        assert broken.tries == 1
        made._agent = next_one
        made._opened.set()
        with anyio.fail_after(10):
            await sent.wait()
        group.cancel_scope.cancel()
    assert next_one.tries == 1
