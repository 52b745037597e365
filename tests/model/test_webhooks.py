"""What a webhook may be, where it may go, and how its messages are signed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from pathlib import Path

import msgspec
import pytest

from geres.errors import Invalid
from geres.model.webhooks import (
    CreateWebhook,
    JobEnded,
    TaskEnded,
    check,
    host_of,
    is_forbidden,
    secret_of,
    signature,
)

URL = "https://host.example/ends"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host.example",
        "ftp://host.example/",
        "file:///etc/passwd",
        "http://",
        "http:///path",
        "https://host.example:0/",
        "https://host.example:99999/",
        "https://ann:secret@host.example/",
        "https://host.example/a b",
        "https://host.example/\n",
        "https://hôst.example/",
        "https://host.example/" + "x" * 2000,
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00:ec2::254]/",
    ],
)
def test_an_address_that_cannot_be_is_refused(url: str) -> None:
    with pytest.raises(Invalid, match="url: "):
        check(CreateWebhook(url=url))


@pytest.mark.parametrize("url", [URL, "http://127.0.0.1:8080/", "http://[::1]/x?y=z", "https://10.0.0.7"])
def test_addresses_of_the_own_network_are_good(url: str) -> None:
    check(CreateWebhook(url=url))


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"events": ["task.end"]}, "events: 'task.end' is none; did you mean task.ended"),
        ({"states": ["running"]}, "states: 'running' is none"),
        ({"states": ["failed,cancelled"]}, "states: "),
        ({"secret": "short"}, "secret: use 16 to 200"),
        ({"secret": "with a newline in it\n"}, "secret: use 16 to 200"),
        ({"secret": "whsec_" + "?" * 32}, "secret: what follows whsec_ is no base64"),
    ],
)
def test_what_is_wrong_is_named(wanted: dict[str, list[str]], told: str) -> None:
    with pytest.raises(Invalid) as refused:
        check(CreateWebhook(url=URL, **wanted))  # type: ignore[arg-type]
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("address", "forbidden"),
    [
        ("169.254.169.254", True),
        ("169.254.0.1", True),
        ("::ffff:169.254.169.254", True),
        ("64:ff9b::a9fe:a9fe", True),
        ("2002:a9fe:a9fe::", True),
        ("fd00:ec2::254", True),
        ("fe80::1%eth0", True),
        ("224.0.0.1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("::1", False),
        ("fd00:ec2::253", False),
        ("93.184.216.34", False),
    ],
)
def test_nothing_goes_to_where_machines_find_credentials(address: str, forbidden: bool) -> None:
    assert is_forbidden(address) is forbidden


@pytest.mark.parametrize(
    ("secret", "key"),
    [(secret_of(b"k" * 24), b"k" * 24), ("a-secret-of-16-chars", b"a-secret-of-16-chars")],
)
def test_a_signature_is_over_id_time_and_body(secret: str, key: bytes) -> None:
    digest = hmac.new(key, b'id-1.1700000000.{"a":1}', hashlib.sha256).digest()

    assert signature(secret, "id-1", 1_700_000_000, b'{"a":1}') == "v1," + base64.b64encode(digest).decode()


def test_logs_name_the_host_alone() -> None:
    assert host_of("https://host.example:8443/secret/path?key=1") == "https://host.example:8443"


#: What messages of version 1 have had from the beginning; fields are only added.
FIRST = {
    TaskEnded: "id event version at tenant task_id job_id job_name finish_no name own_id item user state"
    " reason message exit_code signal attempt node started_at usage meta",
    JobEnded: "id event version at tenant job_id name user state outcome reason counts meta",
}


@pytest.mark.parametrize("kind", [TaskEnded, JobEnded])
def test_fields_of_messages_stay_and_are_documented(kind: type[msgspec.Struct]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "webhooks.md").read_text()
    documented = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE))))
    fields = [one.name for one in msgspec.structs.fields(kind)]

    assert set(FIRST[kind].split()) <= set(fields)
    assert set(fields) <= documented
