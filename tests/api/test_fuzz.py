"""Requests made at random from the OpenAPI document: none may end in a fault of ours."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, given, settings

from tests.api.world import Api


def test_no_request_of_the_document_ends_in_a_fault(api: Api) -> None:
    api.submit("true", id="a")
    api.post("/v1/jobs", {"name": "j", "task": {"command": ["x"]}, "array": {"range": "1-3"}})
    headers = {"Authorization": f"Bearer {api.token}"}
    document = schemathesis.openapi.from_url(f"{api.url}/openapi.json")
    seen = 0

    for operation in (result.ok() for result in document.get_all_operations()):

        @given(case=operation.as_strategy())
        @settings(
            max_examples=10,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def attack(case: schemathesis.Case) -> None:
            if isinstance(case.query, dict):
                case.query.pop("wait_seconds", None)
            answer = case.call(headers=headers)
            assert answer.status_code < 500, answer.text
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == {"code", "message", "facts"}

        attack()
        seen += 1

    assert seen > 25
    # A request that was good may have queued a task, and no node is here to take it.
    assert [one for one in api.get("/v1/doctor") if one["kind"] != "pool"] == []
