"""Webhooks over REST and with the client: made once, tested, removed; each change noted."""

from __future__ import annotations

import threading

import pytest

from geres.errors import Invalid, NotFound
from geres.sdk.client import Client
from tests.api.world import Agent, Api
from tests.receiver import Got, Receiver


def test_a_webhook_is_made_once_under_a_key_and_its_secret_told_once(api: Api) -> None:
    body, key = {"url": "https://host.example/ends"}, {"Idempotency-Key": "k-1"}

    made = api.call("POST", "/v1/webhooks", body, headers=key)
    again = api.call("POST", "/v1/webhooks", body, headers=key)

    assert made.status == 201
    assert made.headers["cache-control"] == "no-store"
    assert made.json["secret"].startswith("whsec_")
    assert (again.status, again.error["facts"]) == (409, {"id": made.json["id"]})
    listed = api.get("/v1/webhooks")
    assert [one["id"] for one in listed] == [made.json["id"]]
    assert "secret" not in listed[0]
    assert "secret" not in api.get(f"/v1/webhooks/{made.json['id']}")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"),
        ({"url": "gopher://host.example/"}, "url"),
        ({"url": "https://host.example/", "event": ["task.ended"]}, "event"),
        ({"url": "https://host.example/", "states": ["gone"]}, "states"),
        ({"url": "https://host.example/", "secret": "x"}, "secret"),
    ],
)
def test_a_webhook_that_cannot_be_is_refused_and_not_stored(api: Api, body: object, field: str) -> None:
    refused = api.call("POST", "/v1/webhooks", body)

    assert refused.status in (400, 422)
    assert field in refused.error["message"]
    assert api.get("/v1/webhooks") == []


def test_each_change_is_noted_without_what_is_secret(api: Api) -> None:
    with Receiver() as receiver, Client(api.url, api.token) as client:
        made = client.create_webhook(receiver.url, states=["failed"], events=["task.ended"])
        tested = client.test_webhook(made.id)
        removed = client.remove_webhook(made.id)

    assert (tested.good, tested.status) == (True, 204)
    assert (removed.id, removed.states) == (made.id, ["failed"])
    entries = api.get("/v1/audit", action="webhook.")["items"]
    assert [(one["action"], one["target"]) for one in entries] == [
        ("webhook.remove", made.id),
        ("webhook.test", made.id),
        ("webhook.create", made.id),
    ]
    assert made.secret not in str(entries)
    assert "/ends" not in str(entries)
    with Client(api.url, api.token) as client:
        for ask in (client.webhook, client.test_webhook, client.remove_webhook):
            with pytest.raises(NotFound):
                ask(made.id)
        with pytest.raises(Invalid, match="url"):
            client.create_webhook("nowhere")


def test_a_test_tells_the_status_of_an_answer_and_nothing_of_its_body(api: Api) -> None:
    with Receiver(lambda got: 418, {"X-Inside": "very-secret"}) as receiver:
        one = api.post("/v1/webhooks", {"url": receiver.url})["id"]
        told = api.call("POST", f"/v1/webhooks/{one}/test", {})

    assert (told.json["good"], told.json["status"], told.json["error"]) == (False, 418, "it answered 418")
    assert b"very-secret" not in told.body + str(told.headers).encode()


def test_who_waits_for_a_slow_receiver_keeps_nobody_waiting(api: Api, agent: type[Agent]) -> None:
    released = threading.Event()

    def slow(got: Got) -> int:
        released.wait(20)
        return 204

    with Receiver(slow) as receiver:
        one = api.post("/v1/webhooks", {"url": receiver.url})["id"]
        asking = threading.Thread(target=api.call, args=("POST", f"/v1/webhooks/{one}/test", {}))
        asking.start()
        try:
            receiver.wait_for(1)
            node = agent()
            task = api.submit("true")
            node.take()
            node.start(task)
            node.end(task)
            assert api.wait(task, "succeeded")["exit_code"] == 0
        finally:
            released.set()
            asking.join()
        assert receiver.wait_for(2)[1]["task_id"] == task
