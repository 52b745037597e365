"""Tokens of an identity provider (OpenID Connect): checked with the provider's public keys, which are cached.

Loaded only where `server.oidc` names a provider.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import jwt
import msgspec

from geres.errors import GeresError, Invalid, Unauthenticated, Unreachable
from geres.model.identity import Identity, IdentityProvider, check_url

log = logging.getLogger("geres.auth")

#: By kind of key: what may be signed with it.  `none` and the HMACs, whose key would be public, are not here.
_ALGORITHMS = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
_FRESH_SECONDS = 600.0
#: While the provider does not answer, its last keys are good for so long.
_STALE_SECONDS = 24 * 3600.0
#: An unknown key is looked for this often, whoever asks.
_AGAIN_SECONDS = 10.0
_PATIENT_SECONDS = 60.0  #: and for fresh ones, while the old ones will do
_ANSWER_SECONDS = 5.0
_MOST_BYTES = 1 << 20
_MOST_KEYS = 100
_LEEWAY_SECONDS = 30


class Oidc:
    """One provider.  Safe to ask from many requests at once: its keys are fetched once for all of them."""

    def __init__(
        self, provider: IdentityProvider, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._provider, self._monotonic = provider, monotonic
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching = anyio.Lock()

    async def identify(self, token: str) -> Identity:
        """Who a token is of.  Raises Unauthenticated, Denied, or Unreachable while there are no keys."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError as error:
            raise Unauthenticated(f"the token is no JWT: {error}") from None
        key = await self._key(header.get("kid"))
        return self._provider.identify(self._claims(token, key, str(header.get("alg"))))

    def _claims(self, token: str, key: jwt.PyJWK, algorithm: str) -> dict[str, Any]:
        allowed = _ALGORITHMS.get(key.key_type or "", ())
        if algorithm not in allowed:
            raise Unauthenticated(f"the token is signed by {algorithm[:20]!r}, which its key is not for")
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                audience=self._provider.audience,
                issuer=self._provider.issuer,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token is over: get a new one from your identity provider") from None
        except jwt.InvalidAudienceError:
            raise Unauthenticated(f"the token is not for {self._provider.audience!r}") from None
        except jwt.InvalidIssuerError:
            raise Unauthenticated(f"the token is not of {self._provider.issuer}") from None
        except (jwt.PyJWTError, TypeError, ValueError) as error:
            raise Unauthenticated(f"the token does not hold: {error}") from None
        return claims

    async def _key(self, kid: object) -> jwt.PyJWK:
        now = self._monotonic()
        found = self._find(kid)
        if found is None or not self._is_good(now):
            await self._fetch(now)
            found = self._find(kid)
        if found is None:
            raise Unauthenticated("the token is signed with a key that its provider does not name")
        return found

    def _is_good(self, now: float) -> bool:
        """True where the keys need not be asked for: while one request asks, the others use what there is."""
        age = now - self._fetched_at
        waits = self._fetching.locked() or now - self._tried_at < _PATIENT_SECONDS
        return age <= _FRESH_SECONDS or (age <= _STALE_SECONDS and waits)

    def _find(self, kid: object) -> jwt.PyJWK | None:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid) if isinstance(kid, str) else None

    async def _fetch(self, asked_at: float) -> None:
        """Ask the provider for its keys, unless somebody has just done so.  Raises Unreachable."""
        async with self._fetching:
            now = self._monotonic()
            if self._fetched_at >= asked_at or now - self._tried_at < _AGAIN_SECONDS:
                self._check_age(now)
                return
            self._tried_at = now
            try:
                with anyio.fail_after(2 * _ANSWER_SECONDS):
                    self._keys = await self._ask()
            except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, GeresError) as error:
                log.warning(
                    "the keys of %s could not be had: %s",
                    self._provider.issuer,
                    error or type(error).__name__,
                    extra={"event": "no_keys"},
                )
                self._check_age(now)
                return
            self._fetched_at = now

    def _check_age(self, now: float) -> None:
        if now - self._fetched_at > _STALE_SECONDS:
            self._keys = {}
            raise Unreachable(f"{self._provider.issuer} does not answer; try again in a moment")

    async def _ask(self) -> dict[str, jwt.PyJWK]:
        async with httpx.AsyncClient(timeout=_ANSWER_SECONDS, follow_redirects=False) as client:
            about = await _get(
                client, f"{self._provider.issuer.rstrip('/')}/.well-known/openid-configuration"
            )
            if about.get("issuer") != self._provider.issuer:
                raise Invalid(f"it calls itself {str(about.get('issuer'))[:200]!r}")
            address = str(about.get("jwks_uri"))
            check_url(address, "jwks_uri")
            return _keys(await _get(client, address))


async def _get(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    """A JSON object of bounded size."""
    async with client.stream("GET", url, headers={"Accept": "application/json"}) as answer:
        if answer.status_code != 200:
            raise Invalid(f"{url} answered {answer.status_code}")
        content = b""
        async for piece in answer.aiter_bytes():
            content += piece
            if len(content) > _MOST_BYTES:
                raise Invalid(f"{url} answers with more than {_MOST_BYTES >> 20} MiB")
    try:
        found = msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError):
        raise Invalid(f"{url} answers with something that is no JSON") from None
    if not isinstance(found, dict):
        raise Invalid(f"{url} answers with no object")
    return found


def _keys(document: dict[str, Any]) -> dict[str, jwt.PyJWK]:
    """The keys for signatures by their id.  Those of kinds that we do not know are left out."""
    listed = document.get("keys")
    if not isinstance(listed, list):
        raise Invalid("its list of keys is none")
    found = {}
    for entry in listed[:_MOST_KEYS]:
        if not isinstance(entry, dict) or entry.get("kty") not in _ALGORITHMS:
            continue
        if entry.get("use", "sig") != "sig" or "d" in entry:
            continue
        try:
            found[str(entry.get("kid", ""))] = jwt.PyJWK(entry)
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
    return found
