"""TLS: which certificate a server shows, and that nobody is told a secret before it was looked at."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest

import geres
from geres import trust
from geres.agent import access as joining
from geres.agent.access import Access
from geres.agent.channel import open_websocket
from geres.agent.upload import Uploader
from geres.config import ServerConfig
from geres.errors import Invalid, Unreachable, Untrusted
from geres.model.joining import Invitation
from geres.sdk.attach import Attachment
from geres.sdk.http import Address, Transport
from geres.server import http, setup, tls
from geres.server.address import named_url
from geres.store.database import open_database
from geres.store.migrate import migrate
from tests.api.world import Api
from tests.server.certificates import Authority, Eavesdropper

OTHER = "sha256:" + "0" * 64
SECRET = "a-secret-that-must-not-be-heard"


@pytest.fixture
def api(tmp_path):
    with Api(tmp_path / "home", certificate=("self-made",)) as running:
        yield running


@pytest.fixture
def pin(api):
    return trust.peek(api.url)


@pytest.fixture
def db(tmp_path):
    opened = open_database(f"sqlite:{tmp_path / 'shared.db'}")
    opened.call(migrate, now_us=1)
    yield opened
    opened.close()


def test_a_self_made_certificate_is_pinned_and_its_key_is_for_its_owner_alone(api, pin):
    assert api.url.startswith("https://127.0.0.1:")
    with geres.Client(api.url, api.token, fingerprint=pin) as client:
        assert client.whoami().role == "admin"
    with geres.Client(home=api.home) as client:  # it stands beside the address
        assert client.whoami().role == "admin"
    assert (api.home / "tls.pem").stat().st_mode & 0o777 == 0o600


def test_a_certificate_that_does_not_match_is_refused_at_once_with_what_to_do(api):
    with pytest.raises(Untrusted, match="someone may be listening in between") as refused:
        geres.Client(api.url, api.token, fingerprint=OTHER).whoami()
    assert refused.value.facts["pinned"] == OTHER
    assert refused.value.exit_status == 3
    with pytest.raises(Untrusted, match="no authority that this machine trusts"):
        geres.Client(api.url, api.token).whoami()


def ask(url, pin):
    Transport(Address(url, SECRET, fingerprint=pin)).call("GET", f"/v1/{SECRET}")


def attach(url, pin):
    transport = Transport(Address(url, SECRET, fingerprint=pin))
    list(Attachment(transport, SECRET, patience_seconds=0).frames())


def connect(url, pin):
    async def opening():
        async with open_websocket(Access(url, SECRET, pin), "/v1/agents", None):
            pass

    anyio.run(opening)


def connect_with_uvloop(url, pin):
    async def opening():
        async with open_websocket(Access(url, SECRET, pin), "/v1/agents", None):
            pass

    anyio.run(opening, backend_options={"use_uvloop": True})


def upload(url, pin):
    class Kept:
        length = size = 1

        def pieces(self):
            yield SECRET.encode()

    Uploader(Access(url, SECRET, pin))._put("/v1/agents/outputs/1/1/stdout", Kept())


def join(url, pin, folder=None):
    joining.join(folder, Invitation(url, SECRET, pin), "n1", say=print)


@pytest.mark.parametrize("talk", [ask, attach, connect, connect_with_uvloop, upload, join])
@pytest.mark.parametrize("pin", [OTHER, ""], ids=["pinned", "no-authority"])
def test_nothing_is_sent_to_a_server_that_is_not_trusted(tmp_path, talk, pin):
    if talk is join:
        talk = partial(join, folder=tmp_path / "node")
    refusals = (Untrusted, ssl.SSLCertVerificationError)
    with Eavesdropper(tmp_path).listening() as other, pytest.raises(refusals):
        talk(other.url, pin)
    assert other.asked
    assert other.heard == b""


def test_the_eavesdropper_of_these_tests_hears_who_trusts_it(tmp_path):
    with Eavesdropper(tmp_path).listening() as other:
        transport = Transport(
            Address(other.url, SECRET, fingerprint=trust.peek(other.url)), patience_seconds=0
        )
        with pytest.raises(Unreachable):
            transport.call("GET", "/v1/whoami", timeout=0.2)
    assert SECRET.encode() in other.heard


def test_a_wrong_scheme_is_named(api, tmp_path):
    plain = api.url.replace("https:", "http:")
    with pytest.raises(Unreachable, match=f"wants TLS; write {api.url}"):
        geres.Client(plain, api.token, patience=0).whoami()
    no_tls = pytest.raises(Unreachable, match="does not speak TLS; write http:")
    with Api(tmp_path / "other") as other, no_tls:
        geres.Client(other.url.replace("http:", "https:"), "t", patience=0).whoami()


def test_all_servers_of_a_store_show_the_same_certificate(tmp_path, db):
    settings = ServerConfig(host="0.0.0.0")
    homes = [tmp_path / "one", tmp_path / "two"]
    first, second = (tls.prepare(settings, home, db, now_us=1) for home in homes)
    assert first.pin == second.pin == first.fingerprint
    (homes[0] / "tls.pem").unlink()
    assert tls.prepare(settings, homes[0], db, now_us=1).pin == first.pin


@pytest.mark.parametrize(
    ("settings", "has_tls"),
    [
        ({"host": "127.0.0.1"}, False),
        ({"host": "127.1.2.3"}, False),
        ({"host": "::1"}, False),
        ({"host": "localhost"}, False),
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": "head.example"}, True),
        ({"host": "0.0.0.0", "certificate": ("none",)}, False),
        ({"host": "127.0.0.1", "certificate": ("self-made",)}, True),
    ],
)
def test_tls_is_on_where_other_machines_reach_the_address(tmp_path, db, settings, has_tls):
    found = tls.prepare(ServerConfig(**settings), tmp_path, db, now_us=1)
    assert (found is not None) == has_tls


def test_a_certificate_of_an_authority_needs_no_pin_and_may_be_renewed(tmp_path, monkeypatch):
    authority = Authority(tmp_path)
    certificate, key = authority.sign("head")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    trust.context.cache_clear()
    try:
        with Api(tmp_path / "home", certificate=(str(certificate), str(key))) as api:
            assert "//localhost:" in api.url  # what stands in it
            with geres.Client(api.url, api.token) as client:
                assert client.whoami().role == "admin"
            with pytest.raises(Untrusted, match="no authority"):
                geres.Client(api.url.replace("localhost", "127.0.0.1"), api.token).whoami()
    finally:
        trust.context.cache_clear()


async def test_a_renewed_certificate_is_shown_without_a_restart(tmp_path):
    authority = Authority(tmp_path)
    shown = tls.Tls(*authority.sign("head"))
    assert shown.pin == ""
    before = shown.fingerprint
    await shown.step()
    assert shown.fingerprint == before
    authority.sign("head")
    await shown.step()
    assert shown.fingerprint != before
    kept = shown.fingerprint
    authority.sign("head")
    (tmp_path / "head.key").write_text("half a key")  # renewed in two steps, and we look in between
    await shown.step()
    assert shown.fingerprint == kept
    assert _shown_by(shown.context) == kept


@pytest.mark.parametrize(
    ("names", "configured", "url"),
    [
        ((), "", "https://127.0.0.1:4470"),  # it is pinned
        (("head.example", "127.0.0.1"), "", "https://127.0.0.1:4470"),
        (("*.example", "head.example"), "", "https://head.example:4470"),
        (("*.example",), "https://b.example:4470/", "https://b.example:4470"),
        (("*.example",), "", "https://127.0.0.1:4470"),
    ],
)
def test_clients_here_use_a_name_that_stands_in_the_certificate(names, configured, url):
    assert named_url("https://127.0.0.1:4470", configured, names) == url


async def test_a_renewal_that_has_ended_already_does_not_take_the_place_of_a_good_one(tmp_path, caplog):
    authority = Authority(tmp_path)
    shown = tls.Tls(*authority.sign("head"))
    kept = shown.fingerprint
    authority.sign("head", hours=-1)
    await shown.step()
    assert shown.fingerprint == _shown_by(shown.context) == kept
    assert "ended at" in caplog.text


def test_an_ended_certificate_is_named_as_such(tmp_path, monkeypatch):
    authority = Authority(tmp_path)
    files = tuple(map(str, authority.sign("head", hours=-1)))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    trust.context.cache_clear()
    try:
        told = "has ended: who runs the server has to renew it"
        with Api(tmp_path / "home", certificate=files) as api, pytest.raises(Untrusted, match=told):
            geres.Client(api.url, api.token).whoami()
        with pytest.raises(Invalid, match=r"head\.pem ended at .*renew it"):
            setup.check_certificate(ServerConfig(host="0.0.0.0", certificate=files))
    finally:
        trust.context.cache_clear()


async def test_a_certificate_that_ends_soon_is_warned_about_once_a_day(tmp_path, caplog):
    authority = Authority(tmp_path)  # its certificates end tomorrow
    shown = tls.Tls(*authority.sign("head"))
    for _ in range(3):
        await shown.step()
    assert [one.getMessage().partition(" ends at ")[0] for one in caplog.records] == [
        f"the certificate in {tmp_path / 'head.pem'}"
    ]
    caplog.clear()
    (tmp_path / "own.pem").write_text(tls.make("127.0.0.1"))
    await tls.Tls(tmp_path / "own.pem", None).step()
    assert not caplog.records


def _shown_by(context):
    """The fingerprint of what a server with this context shows."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(incoming, outgoing, server_side=True)
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
    client = bare.wrap_bio(outgoing, incoming)
    for _ in range(3):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
    return trust.fingerprint(client.getpeercert(binary_form=True))


def test_files_that_do_not_belong_together_are_named(tmp_path):
    authority = Authority(tmp_path)
    certificate, _ = authority.sign("one")
    _, key = authority.sign("two")
    with pytest.raises(Invalid, match=r"one\.pem cannot be used with .*two\.key"):
        tls.Tls(certificate, key)
    with pytest.raises(Invalid, match=r"missing\.pem cannot be used: No such file"):
        tls.Tls(tmp_path / "missing.pem", None)
    with pytest.raises(Invalid, match="cannot be used"):
        tls.Tls(certificate, None)


DIGITS = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "text",
    [
        f"sha256:{DIGITS}",
        DIGITS,
        f" SHA256:{DIGITS.upper()}\n",
        ":".join(DIGITS[i : i + 2] for i in range(0, 64, 2)).upper(),
        "sha256 Fingerprint=" + ":".join(DIGITS[i : i + 2] for i in range(0, 64, 2)),
    ],
)
def test_a_fingerprint_is_read_as_people_paste_it(text):
    assert trust.parse_fingerprint(text) == f"sha256:{DIGITS}"


@pytest.mark.parametrize("text", ["", "sha256:", DIGITS[:-1], DIGITS + "0", "sha1:" + DIGITS[:40], "x" * 64])
def test_what_is_no_fingerprint_is_refused(text):
    with pytest.raises(Invalid, match="is no fingerprint; write sha256:"):
        trust.parse_fingerprint(text)


# connections that say nothing


def cut_off(address, *, says=b"", again=b""):
    """How long a plain connection is let be that says this and no more; `again` is added every tenth."""
    with socket.create_connection(address) as silent:
        silent.sendall(says)
        silent.settimeout(0.1)
        began = time.monotonic()
        while time.monotonic() - began < 30:
            try:
                if not silent.recv(1000):
                    break
            except TimeoutError:
                try:
                    silent.sendall(again)
                except OSError:
                    break
            except ConnectionResetError:
                break
        else:
            pytest.fail("it was never cut off")
        return time.monotonic() - began


def test_a_head_that_never_ends_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.5)
    with Api(tmp_path / "home") as api:
        address = ("127.0.0.1", api.port)
        assert cut_off(address) >= 0.4
        assert cut_off(address, says=b"GET /healthz HTTP/1.1\r\nX: ", again=b"x") >= 0.4
        told = []
        idle = threading.Thread(target=lambda: told.append(cut_off(address)))
        idle.start()
        assert api.call("GET", "/v1/whoami").status == 200  # the others do not wait for them
        idle.join(30)
        assert told


def test_a_request_whose_head_came_may_take_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(http, "HEAD_SECONDS", 0.3)
    with Api(tmp_path / "home") as api:
        task = api.submit("true")
        began = time.monotonic()
        answer = api.call("GET", f"/v1/tasks/{task}", wait_seconds="1.0")
        assert answer.status == 200, answer.body
        assert time.monotonic() - began >= 0.8


def test_a_handshake_that_never_ends_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(http, "HANDSHAKE_SECONDS", 0.5)
    with Api(tmp_path / "home", certificate=("self-made",)) as api:
        parts = urlsplit(api.url)
        assert cut_off((parts.hostname, parts.port), says=b"\x16\x03\x01\x02\x00\x01") >= 0.4
        with geres.Client(home=api.home) as client:
            assert client.whoami().role == "admin"


def test_the_home_keeps_no_other_copy_of_the_key(api):
    key = (api.home / "tls.pem").read_text().partition("PRIVATE KEY-----")[2][:80].strip().splitlines()[0]
    files = [path for path in Path(api.home).rglob("*") if path.is_file() and path.name != "tls.pem"]
    holders = [path.name for path in files if key in path.read_bytes().decode("latin-1")]
    assert all(name.startswith("geres.db") for name in holders), holders
