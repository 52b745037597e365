"""Tokens of an identity provider, which is a real one of our own: a small HTTP server with keys."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from geres.config import load
from geres.errors import Denied, Invalid
from geres.model.identity import provider_of
from tests.api.world import Answer, Api


class Provider:
    """Issues tokens, and names its keys at a JWKS endpoint."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {
            "rsa-1": rsa.generate_private_key(public_exponent=65537, key_size=2048),
            "ec-1": ec.generate_private_key(ec.SECP256R1()),
        }
        self.named = ["rsa-1", "ec-1"]
        self.asked: list[str] = []
        self.broken = False
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked.append(self.path)
                if provider.broken:
                    self.send_error(503)
                    return
                body = json.dumps(provider.answer(self.path)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *words: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self._server.server_address[1]}/realm"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def answer(self, path: str) -> Any:
        if path == "/realm/.well-known/openid-configuration":
            return {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/keys"}
        assert path == "/realm/keys"
        entries = []
        for kid in self.named:
            key = self.keys[kid].public_key()
            algorithm = "RS256" if kid.startswith("rsa") else "ES256"
            entry = jwt.get_algorithm_by_name(algorithm).to_jwk(key, as_dict=True)
            entries.append({**entry, "kid": kid, "use": "sig"})
        return {"keys": entries}

    def add_key(self, kid: str) -> None:
        self.keys[kid] = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def token(self, kid: str = "rsa-1", *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        now = int(time.time())
        body = {
            "iss": self.issuer,
            "aud": "geres",
            "sub": "u-17",
            "name": "mia",
            "iat": now,
            "exp": now + 300,
            "groups": ["staff"],
            **claims,
        }
        body = {name: value for name, value in body.items() if value is not None}
        algorithm = "RS256" if kid.startswith("rsa") else "ES256"
        return jwt.encode(body, self.keys[kid], algorithm, headers={"kid": kid, **(headers or {})})

    def public_pem(self, kid: str) -> bytes:
        return bytes(
            self.keys[kid]
            .public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()
    yield made
    made.close()


@pytest.fixture
def api(provider: Provider, tmp_path: Path) -> Iterator[Api]:
    settings = {
        "issuer": provider.issuer,
        "audience": "geres",
        "user": "name",
        "tenant": "org",
        "role": "groups",
        "role.staff": "user",
        "role.chiefs": "operator",
    }
    with Api(tmp_path / "home", oidc=settings) as running:
        running.post("/v1/tenants", {"name": "beta"})
        yield running


def whoami(api: Api, token: str) -> Answer:
    return api.call("GET", "/v1/whoami", token=token)


def unsigned(header: dict[str, Any], claims: dict[str, Any], key: bytes = b"") -> str:
    """A token put together by hand, as no library would."""

    def part(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    text = part(json.dumps(header).encode()) + b"." + part(json.dumps(claims).encode())
    return (text + b"." + (part(hmac.new(key, text, hashlib.sha256).digest()) if key else b"")).decode()


@pytest.mark.parametrize("kid", ["rsa-1", "ec-1"])
def test_the_claims_say_who_it_is(api: Api, provider: Provider, kid: str) -> None:
    me = whoami(api, provider.token(kid, org="beta")).good

    assert me == {"subject": "mia", "role": "user", "tenant": "beta"}
    chief = whoami(api, provider.token(kid, org="beta", groups=["x", "staff", "chiefs"])).good
    assert chief["role"] == "operator"
    task = api.call(
        "POST", "/v1/tasks", {"task": {"command": ["true"]}}, token=provider.token(kid, org="beta")
    )
    assert (task.good["task"]["submitted_by"], task.good["task"]["tenant"]) == ("mia", "beta")


def test_what_is_wrong_with_a_token_is_refused_and_noted(api: Api, provider: Provider) -> None:
    now = int(time.time())
    other = Provider()
    try:
        good = provider.token(org="beta")
        claims = jwt.decode(good, options={"verify_signature": False})
        cases = {
            "is over": provider.token(org="beta", exp=now - 3600),
            "is not for 'geres'": provider.token(org="beta", aud="another"),
            "is not of http": provider.token(org="beta", iss="https://else.example"),
            "signed by 'none'": unsigned({"alg": "none", "kid": "rsa-1"}, claims),
            "signed by 'HS256'": unsigned(
                {"alg": "HS256", "kid": "rsa-1"}, claims, provider.public_pem("rsa-1")
            ),
            "signed by 'ES256'": provider.token("ec-1", headers={"kid": "rsa-1"}, org="beta"),
            "does not name": provider.token(org="beta", headers={"kid": "nobody's"}),
            "does not hold: Signature": other.token(org="beta", iss=provider.issuer),
            "does not hold: Token is missing": provider.token(org="beta", exp=None),
            "not yet valid": provider.token(org="beta", nbf=now + 3600),
            "no JWT": "eyJhbGciOiJSUzI1NiJ9.x.y",
        }
        for words, token in cases.items():
            answer = whoami(api, token)
            assert (answer.status, answer.error["code"]) == (401, "unauthenticated"), words
            assert words in answer.error["message"], answer.error
            assert answer.headers["www-authenticate"] == "Bearer"
        cut = good[:-4] + ("AAAA" if not good.endswith("AAAA") else "BBBB")
        assert whoami(api, cut).status == 401
        assert whoami(api, good).status == 200
    finally:
        other.close()
    noted = [entry["facts"]["why"] for entry in api.get("/v1/audit", result="unauthenticated")["items"]]
    for words in cases:
        assert any(words in why for why in noted), words


def test_claims_that_mean_nobody_here_are_denied(api: Api, provider: Provider) -> None:
    for words, token in (
        ("names the tenant 'nowhere'", provider.token(org="nowhere")),
        ("no claim 'org'", provider.token()),
        ("no claim 'name'", provider.token(org="beta", name=None)),
        ("no role says what mia may do", provider.token(org="beta", groups=["strangers"])),
    ):
        answer = whoami(api, token)
        assert (answer.status, answer.error["code"]) == (403, "denied")
        assert words in answer.error["message"]
    beta = {"Geres-Tenant": "beta"}
    assert api.call("POST", "/v1/users", {"name": "mia", "role": "viewer"}, headers=beta).status == 201
    assert whoami(api, provider.token(org="beta", groups=["strangers"])).good["role"] == "viewer"
    assert api.call("PATCH", "/v1/users/mia", {"disabled": True}, headers=beta).status == 200
    assert "disabled" in whoami(api, provider.token(org="beta")).error["message"]


@pytest.mark.parametrize(
    ("verified", "good"), [(True, True), ("true", True), (False, False), (None, False), (1, False)]
)
def test_an_email_names_somebody_only_where_it_was_verified(verified: Any, good: bool) -> None:
    provider = provider_of({"issuer": "https://id.example", "audience": "geres", "user": "email"})
    assert provider is not None
    claims = {"email": "root@example.org"} | ({} if verified is None else {"email_verified": verified})
    if good:
        assert provider.identify(claims).user == "root@example.org"
        return
    with pytest.raises(Denied):
        provider.identify(claims)


def test_keys_are_cached_and_new_ones_are_found(api: Api, provider: Provider) -> None:
    for number in range(5):
        assert whoami(api, provider.token(org="beta", jti=str(number))).status == 200
    assert provider.asked == ["/realm/.well-known/openid-configuration", "/realm/keys"]
    provider.add_key("rsa-2")
    token = provider.token("rsa-2", org="beta")
    assert whoami(api, token).status == 401  # the provider does not name it
    provider.named = ["rsa-2"]

    until = time.monotonic() + 30
    while (answer := whoami(api, token)).status != 200:  # unknown keys are looked for once in ten seconds
        assert time.monotonic() < until, answer.body
        threading.Event().wait(0.2)
    assert whoami(api, provider.token("rsa-1", org="beta", jti="new")).status == 401
    assert len(provider.asked) <= 8


def test_without_its_provider_nobody_new_gets_in_and_the_rest_goes_on(api: Api, provider: Provider) -> None:
    provider.broken = True

    answer = whoami(api, provider.token(org="beta"))

    assert (answer.status, answer.error["code"]) == (503, "unreachable")
    assert api.get("/v1/whoami")["role"] == "admin"


def test_old_keys_will_do_while_the_provider_is_away() -> None:
    provider = Provider()
    now = [1000.0]
    try:
        import anyio

        from geres.api.oidc import Oidc

        settings = provider_of({"issuer": provider.issuer, "audience": "geres", "user": "name"})
        assert settings is not None
        oidc = Oidc(settings, monotonic=lambda: now[0])

        async def ask() -> list[str]:
            names = [(await oidc.identify(provider.token())).user]
            provider.broken = True
            now[0] += 3600
            names.append((await oidc.identify(provider.token())).user)
            asked = len(provider.asked)
            now[0] += 30
            names.append((await oidc.identify(provider.token())).user)
            assert len(provider.asked) == asked  # not for every request
            now[0] += 25 * 3600
            with pytest.raises(Exception, match="does not answer"):
                await oidc.identify(provider.token())
            return names

        assert anyio.run(ask) == ["mia"] * 3
    finally:
        provider.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"issuer": "https://x.example"}, "audience: is missing"),
        ({"issuer": "http://x.example", "audience": "a"}, "issuer: 'http://x.example' is no address"),
        ({"issuer": "https://x.example", "audience": "a", "role.x": "boss"}, "role.x: 'boss' is none of"),
        ({"issuer": "https://x.example", "audience": "a", "clame": "x"}, "clame: there is no such field"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, str], words: str) -> None:
    with pytest.raises(Invalid) as refused:
        provider_of(settings)

    assert words in str(refused.value)


def test_the_settings_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "geres.toml"
    file.write_text(
        '[server.oidc]\nissuer = "https://id.example"\naudience = "geres"\nrole = "groups"\n'
        '"role.hpc" = "user"\n'
    )
    config = load({}, env={}, cwd=tmp_path, system_file=tmp_path / "none", user_file=tmp_path / "none")

    assert config.check() == []
    made = provider_of(config.server.oidc)
    assert made is not None
    assert (made.issuer, made.roles, made.tenant) == ("https://id.example", {"hpc": "user"}, "=default")
    bad = load({}, env={"GERES_SERVER__OIDC": "issuer=x"}, cwd=tmp_path)
    assert any("server.oidc" in problem for problem in bad.check())
