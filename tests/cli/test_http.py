"""The transport: one connection a thread, safe retries, the server's errors as ours."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from geres.errors import Conflict, GeresError, NotFound, StoreUnavailable, Unauthenticated, Unreachable
from geres.sdk.http import Address, Transport
from tests.cli.peer import Peer, Seen, refusal


def transport(peer: Peer, **options) -> Transport:
    return Transport(Address(peer.url, "secret"), **options)


def test_requests_of_a_thread_share_one_connection_and_carry_the_token():
    with Peer() as peer:
        wire = transport(peer)
        for _ in range(3):
            wire.call("GET", "/v1/whoami")
        wire.close()
    assert [seen.connection for seen in peer.seen] == [1, 1, 1]
    assert {seen.headers["Authorization"] for seen in peer.seen} == {"Bearer secret"}


def test_a_server_may_stand_below_a_path_of_a_proxy():
    with Peer() as peer:
        wire = Transport(Address(f"{peer.url}/batch/geres/", "secret"))
        wire.call("GET", "/v1/nodes", query={"a": 1})
        wire.close()
    assert [seen.path for seen in peer.seen] == ["/batch/geres/v1/nodes?a=1"]


def test_each_thread_has_a_connection_of_its_own():
    together = threading.Barrier(3)

    def answer(seen: Seen):
        together.wait(10)
        return 200, {}

    with Peer(answer) as peer:
        wire = transport(peer)
        with ThreadPoolExecutor(3) as pool:
            for done in [pool.submit(wire.call, "GET", "/") for _ in range(3)]:
                done.result(10)
        wire.close()
    assert {seen.connection for seen in peer.seen} == {1, 2, 3}


def test_a_forked_child_does_not_use_its_parents_connection():
    with Peer() as peer:
        wire = transport(peer)
        wire.call("GET", "/parent")
        if (child := os.fork()) == 0:
            try:
                wire.call("GET", "/child")
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        wire.call("GET", "/parent")
        wire.close()
    assert [(seen.path, seen.connection) for seen in peer.seen] == [
        ("/parent", 1),
        ("/child", 2),
        ("/parent", 1),
    ]


def test_a_lost_answer_is_asked_for_again_under_the_same_key():
    with Peer(lambda seen: "drop" if len(peer.seen) < 3 else (201, {"id": "1.1"})) as peer:
        wire = transport(peer, patience_seconds=5)
        assert wire.post("/v1/tasks", dict, {"task": {}}) == {"id": "1.1"}
        wire.close()
    keys = {seen.headers["Idempotency-Key"] for seen in peer.seen}
    assert len(peer.seen) == 3
    assert len(keys) == 1


def test_two_creations_have_different_keys():
    with Peer() as peer:
        wire = transport(peer)
        wire.post("/v1/tasks", dict, {})
        wire.post("/v1/tasks", dict, {})
        wire.close()
    assert len({seen.headers["Idempotency-Key"] for seen in peer.seen}) == 2


def test_a_store_that_is_away_is_waited_for_within_patience():
    busy = refusal("store_unavailable", "the database does not answer")
    with Peer(lambda seen: (503, busy) if len(peer.seen) < 3 else (200, {"a": 1})) as peer:
        wire = transport(peer)
        assert wire.get("/v1/x", dict) == {"a": 1}
        impatient = transport(peer, patience_seconds=0)
        peer.answer = lambda seen: (503, busy)
        with pytest.raises(StoreUnavailable, match="does not answer"):
            impatient.get("/v1/x", dict)
        wire.close()
        impatient.close()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [(404, "not_found", NotFound), (409, "job_finished", Conflict), (418, "new_code", GeresError)],
)
def test_the_servers_errors_come_as_our_classes_with_their_facts(status, code, kind):
    with Peer(lambda seen: (status, refusal(code, "so it is", id="12"))) as peer:
        wire = transport(peer)
        with pytest.raises(kind, match="so it is") as refused:
            wire.get("/v1/x", dict)
        wire.close()
    assert (refused.value.code, refused.value.facts) == (code, {"id": "12"})


def test_an_answer_that_is_no_json_is_told_as_it_is():
    with Peer(lambda seen: (502, b"<html>bad gateway")) as peer:
        wire = transport(peer)
        with pytest.raises(GeresError, match="answered 502: <html>bad gateway"):
            wire.get("/v1/x", dict)
        wire.close()


def test_no_server_is_one_sentence_with_the_address():
    with Peer() as peer:
        url = peer.url
    with pytest.raises(Unreachable, match=f"no server answers at {url} \\(from the test\\)"):
        Transport(Address(url, "t", "the test"), patience_seconds=0).call("GET", "/")


def test_a_server_that_came_back_elsewhere_is_found_again():
    with Peer() as old:
        moved = [Address(old.url, "old")]
        wire = Transport(moved[0], locate=lambda: moved[0])
        wire.call("GET", "/a")
    with Peer(lambda seen: (200, {"new": True})) as new:
        moved[0] = Address(new.url, "new")
        assert wire.get("/b", dict) == {"new": True}
        wire.close()
    assert new.seen[-1].headers["Authorization"] == "Bearer new"


def test_another_token_beside_the_address_is_taken_and_a_wrong_one_refused():
    def answer(seen: Seen):
        fine = seen.headers["Authorization"] == "Bearer new"
        return (200, {}) if fine else (401, refusal("unauthenticated", "unknown token"))

    with Peer(answer) as peer:
        wire = Transport(Address(peer.url, "old"), locate=lambda: Address(peer.url, "new"))
        wire.call("GET", "/")
        with pytest.raises(Unauthenticated):
            Transport(Address(peer.url, "bad"), locate=lambda: Address(peer.url, "bad")).call("GET", "/")
        wire.close()


def test_a_stream_comes_in_pieces_and_leaves_the_connection_usable():
    with Peer(lambda seen: (200, b"x" * 200_000)) as peer:
        wire = transport(peer)
        pieces = list(wire.stream("/v1/tasks/1.1/logs", stream="stdout", tail=None))
        wire.call("GET", "/after")
        wire.close()
    assert sum(map(len, pieces)) == 200_000
    assert len(pieces) > 1
    assert peer.seen[0].path == "/v1/tasks/1.1/logs?stream=stdout"
    assert peer.seen[1].connection == 1


def test_a_stream_that_is_left_half_read_does_not_spoil_the_next_request():
    with Peer(lambda seen: (200, b"x" * 5_000_000 if seen.path == "/big" else {"ok": 1})) as peer:
        wire = transport(peer)
        next(wire.stream("/big"))
        assert wire.get("/small", dict) == {"ok": 1}
        wire.close()


def test_of_several_servers_the_next_one_is_asked_where_one_does_not_answer():
    with Peer() as gone:
        pass
    with Peer() as first, Peer() as second:
        wire = Transport(Address(gone.url, "secret", others=(first.url, second.url)))
        wire.call("POST", "/v1/tasks", b"{}", key="k")
        assert wire.address.url == first.url
        wire.call("GET", "/v1/whoami")
        wire.close()
    assert [seen.path for seen in first.seen] == ["/v1/tasks", "/v1/whoami"]
    assert not second.seen


def test_a_server_that_stops_is_left_at_once_and_the_key_stays_the_same():
    with Peer(lambda seen: (503, refusal("store_unavailable", "it stops"))) as first, Peer() as second:
        wire = Transport(Address(first.url, "secret", others=(second.url,)))
        wire.call("POST", "/v1/tasks", b"{}", key="k")
        wire.close()
    assert [seen.headers["Idempotency-Key"] for seen in first.seen + second.seen] == ["k", "k"]


def test_threads_that_leave_a_server_together_come_to_the_same_one():
    together = threading.Barrier(4)
    with Peer() as gone:
        pass
    with Peer() as first, Peer() as second:
        wire = Transport(Address(gone.url, "secret", others=(first.url, second.url)))

        def call() -> None:
            together.wait(10)
            wire.call("GET", "/")

        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(call) for _ in range(4)]:
                done.result(10)
        wire.close()
    assert (len(first.seen), len(second.seen)) == (4, 0)


def test_no_server_of_several_answers():
    with Peer() as one, Peer() as other:
        pass
    with pytest.raises(Unreachable):
        Transport(Address(one.url, "secret", others=(other.url,)), patience_seconds=0.2).call("GET", "/")
