"""The agents' channel against what no agent of ours says: foreign versions, nonsense, too much or little."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import struct
import threading
import time

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed

from geres.api import agents
from geres.model.wire import PROTOCOL, Frame, Hello, Welcome, decode, encode

HELLO = {
    "protocol": PROTOCOL,
    "version": "9.9",
    "node": "n9",
    "boot_id": "boot",
    "host_id": "host-9",
    "host": "host",
    "arch": "x86_64",
    "os": "linux",
    "pid": 1,
    "account": "ann",
    "cpus": 1.0,
    "memory_bytes": 1 << 30,
}
pack = msgspec.msgpack.encode


@pytest.fixture(autouse=True)
def _nothing_logged_before(monkeypatch):
    monkeypatch.setattr(agents, "_refusals", agents._Refusals())


@pytest.fixture
def refusals(caplog):
    """What was logged of agents that were refused."""
    caplog.set_level(logging.WARNING, "geres.agents")

    def refusals():
        return [one.getMessage() for one in caplog.records if one.name == "geres.agents"]

    return refusals


def say(api, *frames, token=None):
    """Say this on a new connection, and read until it is closed: the error, the code, the reason."""
    channel = api.socket("/v1/agents", token=token or api.agent_token)
    error = None
    try:
        for frame in frames:
            channel.send(frame)
        while True:
            error = decode(channel.read()).error or error
    except ConnectionClosed as closed:
        return error, closed.rcvd.code, closed.rcvd.reason
    finally:
        channel.close()


def nested(depth):
    return b"\x91" * depth + b"\x00"


NONSENSE = {
    "nothing": b"",
    "no MessagePack": b"\xc1\xff\xff",
    "cut": encode(Frame(hello=msgspec.convert(HELLO, Hello)))[:-5],
    "two frames in one": encode(Frame(drain=True)) * 2,
    "not a map": pack([1, 2, 3]),
    "no hello": encode(Frame(drain=True)),
    "a hello that is a text": pack({"hello": "hello"}),
    "a node that is a number": pack({"hello": HELLO | {"node": 7}}),
    "without a node": pack({"hello": {"protocol": PROTOCOL, "version": "1"}}),
    "deeper than any stack": b"\x82\xa5hello" + pack(HELLO) + b"\xa4more" + nested(200_000),
    "a list that is longer than it is": b"\x81\xa5hello\xdd\xff\xff\xff\xff",
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_answered_with_a_reason_and_the_others_do_not_notice(api, agent, refusals, kind):
    other = agent("n1")
    error, code, reason = say(api, NONSENSE[kind])
    assert code == 1008
    assert "first frame" in error
    assert reason
    assert len(refusals()) == 1
    task = api.submit()
    other.take()
    other.start(task)
    other.end(task)
    assert [one["name"] for one in api.get("/v1/nodes")] == ["n1"]


def test_a_text_is_no_frame(api):
    channel = api.socket("/v1/agents", token=api.agent_token)
    channel._wire.send("hello")
    assert "in MessagePack" in decode(channel.read()).error
    channel.close()


@pytest.mark.parametrize("protocol", [PROTOCOL + 2, PROTOCOL - 2, 99])
def test_a_foreign_version_is_told_who_has_to_be_upgraded(api, refusals, protocol):
    # All else in its hello may have changed; it is not looked at.
    error, code, _ = say(api, pack({"hello": {"protocol": protocol, "version": "7.0", "cpus": "many"}}))
    assert code == 1008
    assert f"the agent speaks protocol {protocol} (geres 7.0), the server {PROTOCOL}" in error
    older = "server" if protocol > PROTOCOL else "agent"
    assert f"upgrade the {older}" in error
    assert error in refusals()[0]


@pytest.mark.parametrize("protocol", [PROTOCOL - 1, PROTOCOL, PROTOCOL + 1])
def test_neighbouring_versions_are_taken_in_with_fields_that_we_do_not_know(api, protocol):
    channel = api.socket("/v1/agents", token=api.agent_token)
    more = {"colour": {"new": [1, 2]}}
    channel.send(pack({"hello": HELLO | more | {"protocol": protocol}, "later": [1]}))
    assert isinstance(decode(channel.read()).welcome, Welcome)
    channel.close()


def test_the_same_refusal_is_logged_once(api, refusals):
    for _ in range(5):
        say(api, pack({"hello": {"protocol": 99, "version": "7.0"}}))
    assert len(refusals()) == 1
    say(api, pack({"hello": {"protocol": 98, "version": "7.0"}}))
    assert len(refusals()) == 2


@pytest.mark.parametrize("kind", ["no MessagePack", "cut", "not a map"])
def test_nonsense_after_a_hello_ends_that_connection_alone(api, agent, refusals, kind):
    other, broken = agent("n1"), agent("n2")
    broken._socket.send(NONSENSE[kind])
    with pytest.raises(ConnectionClosed):
        broken.until(lambda: False)
    assert "a frame cannot be read" in broken.refused
    assert len(refusals()) == 1
    agent("n2")  # it may come again at once
    task = api.submit()
    other_or_n2 = {"n1", "n2"}
    assert {one["name"] for one in api.get("/v1/nodes") if one["connected"]} == other_or_n2
    api.call("POST", "/v1/tasks:cancel", {"ids": [task]})
    assert other.refused is None


def test_a_frame_that_is_too_large_ends_its_connection_before_it_is_read(api, agent, refusals):
    other, broken = agent("n1"), agent("n2")
    with contextlib.suppress(ConnectionClosed):
        broken._socket.send(bytes(17 << 20))
    with pytest.raises(ConnectionClosed):
        broken.until(lambda: False)
    waiting = threading.Event()
    until = time.monotonic() + 20
    while not refusals():
        assert time.monotonic() < until, "nothing was logged"
        waiting.wait(0.01)
    assert "1009" in refusals()[0]
    api.call("POST", "/v1/tasks:cancel", {"ids": [api.submit()]})
    assert other.refused is None


def test_a_hello_that_is_too_large_is_refused(api, refusals):
    hello = HELLO | {"labels": {"x": "y" * (5 << 20)}}
    error, _, _ = say(api, pack({"hello": hello}))
    assert "the hello has" in error


def raw(api):
    """A WebSocket whose frames are written by hand."""
    plain = socket.create_connection(("127.0.0.1", api.port), 10)
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    plain.sendall(
        f"GET /v1/agents HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        f"Authorization: Bearer {api.agent_token}\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += plain.recv(4096)
    assert b" 101 " in head
    return plain


def binary(data, *, says=None):
    """A masked binary frame; `says` is the length that its head claims."""
    mask = os.urandom(4)
    length = struct.pack(">BBQ", 0x82, 0xFF, len(data) if says is None else says)
    return length + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))


@pytest.mark.parametrize(
    "sent",
    [binary(b"x" * 100)[:40], binary(b"", says=1 << 62), b"\xff\xff\xff\xff", binary(b"x", says=200)],
    ids=["cut in the middle", "claims to be endless", "no WebSocket", "shorter than it says"],
)
def test_a_broken_websocket_harms_nobody(api, agent, sent):
    with contextlib.closing(raw(api)) as broken:
        broken.sendall(sent)
        broken.shutdown(socket.SHUT_WR)
        broken.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            while broken.recv(4096):
                pass
    other = agent("n1")
    api.submit()
    assert other.take()


def test_an_agent_that_says_nothing_is_let_go(api, monkeypatch, refusals):
    monkeypatch.setattr(agents, "_HELLO_SECONDS", 0.3)
    error, code, _ = say(api)
    assert (error, code) == ("no hello came within 0.3 s", 1008)


# credentials


def joined(api, node, **wanted):
    """The token of a node that has joined."""
    invitation = api.post("/v1/join-tokens", wanted)["join"]
    token = invitation.partition("/join/")[2].partition("/")[0]
    secret = f"credential-of-{node}"
    body = {"token": token, "node": node, "credential": hashlib.sha256(secret.encode()).hexdigest()}
    assert api.call("POST", "/v1/agents/join", body, token=None).good["node"] == node
    return secret


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ({"node": "-oProxyCommand=x"}, "node"),
        ({"node": "n1;reboot"}, "node"),
        ({"host": "-oProxyCommand=x"}, "host"),
        ({"labels": {"ssh": "-oProxyCommand=x"}}, "labels.ssh"),
    ],
)
def test_what_operators_programs_would_take_for_an_option_is_refused(api, facts, field):
    error, code, _ = say(api, pack({"hello": HELLO | facts}))
    assert error.startswith(f"{field}: ")
    assert code == 1008
    assert api.get("/v1/nodes") == []


def hello_as(node, **facts):
    return pack({"hello": HELLO | {"node": node} | facts})


def test_a_credential_is_good_for_its_own_node_alone(api, refusals):
    secret = joined(api, "n9")
    error, _, _ = say(api, hello_as("n8"), token=secret)
    assert "the credential is good for the node n9 alone, not for n8" in error
    assert error in refusals()[0]
    channel = api.socket("/v1/agents", token=secret)
    channel.send(hello_as("n9"))
    assert decode(channel.read()).welcome is not None
    channel.close()
    assert [one["name"] for one in api.get("/v1/nodes")] == ["n9"]


def test_a_pool_that_the_join_token_fixed_stays(api):
    secret = joined(api, "n9", pool="gpu")
    error, _, _ = say(api, hello_as("n9", pool="default"), token=secret)
    assert "n9 joined for the pool gpu, not for default" in error
    channel = api.socket("/v1/agents", token=secret)
    channel.send(hello_as("n9", pool="gpu"))
    assert decode(channel.read()).welcome is not None
    channel.close()


def test_a_credential_opens_nothing_but_the_agents_routes(api):
    secret = joined(api, "n9")
    for method, path in (("GET", "/v1/tasks"), ("POST", "/v1/tasks"), ("POST", "/v1/join-tokens")):
        assert api.call(method, path, {}, token=secret).error["code"] == "denied"


def test_a_second_agent_of_a_name_is_refused_and_the_first_one_stays(api, agent, refusals):
    first = agent("n1")
    for _ in range(3):
        error, _, _ = say(api, hello_as("n1", host_id="host-2"))
        assert "another agent is connected as n1, from host" in error
    task = api.submit()
    assert first.take() == [task]
    assert len(refusals()) == 1


def test_the_node_runs_the_tasks_of_its_tenant_alone(api, agent):
    api.post("/v1/tenants", {"name": "guests"})
    there = {"Geres-Tenant": "guests"}
    invitation = api.call("POST", "/v1/join-tokens", {}, headers=there).good["join"]
    token = invitation.partition("/join/")[2].partition("/")[0]
    secret = "credential-of-the-guests"
    body = {"token": token, "node": "n9", "credential": hashlib.sha256(secret.encode()).hexdigest()}
    answer = api.call("POST", "/v1/agents/join", body, token=None).good
    assert answer["tenant"] == "guests"
    channel = api.socket("/v1/agents", token=secret)
    channel.send(hello_as("n9"))
    assert decode(channel.read()).welcome is not None
    assert [one["name"] for one in api.call("GET", "/v1/nodes", headers=there).good] == ["n9"]
    assert api.get("/v1/nodes") == []

    mine = api.submit()
    theirs = api.call("POST", "/v1/tasks", {"task": {"command": ["true"]}}, headers=there).good["task"]["id"]
    frame = decode(channel.read())
    while not frame.assign:
        frame = decode(channel.read())
    assert len(frame.assign) == 1
    assert api.call("GET", f"/v1/tasks/{theirs}", headers=there).good["state"] == "assigned"
    assert api.get(f"/v1/tasks/{mine}")["state"] == "queued"
    channel.close()


def test_a_body_for_joining_is_bounded(api):
    body = {"token": "x" * (1 << 20), "node": "n1", "credential": ""}
    assert api.call("POST", "/v1/agents/join", body, token=None).status == 413


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        ({}, 422),
        ({"token": "t", "node": "n1", "credential": "c", "more": 1}, 422),
        ({"token": "t", "node": "n1", "credential": "0" * 64}, 401),
    ],
)
def test_a_bad_request_to_join_is_refused(api, body, status):
    assert api.call("POST", "/v1/agents/join", body, token=None).status == status
