"""Login by an OpenID Connect provider: the authorization code flow with PKCE (OpenID Connect Core 1.0, section 3.1; RFC 7636).

A user is whom the provider calls `sub`; accounts are never joined by their names. What has to be remembered while somebody is at the
provider is in a signed cookie of his browser, so that any server may finish what another began.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from app.domain import Role, User, new_id, now
from app.errors import NotAuthenticated, Unavailable
from app.store import accounts, audit, identities
from app.usecases.logins import Tokens, open_login
from app.usecases.platform import Platform

SECONDS = 600
"""How long somebody may take to log in at the provider."""
ALGORITHMS = ["RS256", "PS256", "ES256", "EdDSA"]
KEEP_SECONDS = 3600.0
"""How long the provider's addresses and keys are good; an unknown key is looked for at once, but not more often than once a minute."""
MAX_NAME = 90
REFUSED = "The login at the identity provider was not completed; begin again."


@dataclass(frozen=True, slots=True)
class Spec:
    """What the operator has set, the address that the provider sends people back to, and what signs cookies."""

    issuer: str
    client_id: str
    client_secret: str
    redirect_uri: str
    secret: bytes
    groups_claim: str = "groups"
    admin_group: str | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom the provider has proved. Without `groups` it says nothing of them."""

    subject: str
    name: str
    groups: Sequence[str] | None


class Provider:
    """One provider, whose addresses and keys are looked up when they are first needed."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._key = hmac.digest(spec.secret, b"openid", "sha256")
        self._found: Mapping[str, Any] = {}
        self._keys: Any = None
        self._until = 0.0
        self._keys_at = -60.0

    async def begin(self) -> tuple[str, str]:
        """Where to send somebody, and the cookie that he comes back with."""
        import jwt

        found = await self._discovered()
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        asked = {
            "response_type": "code",
            "client_id": self.spec.client_id,
            "redirect_uri": self.spec.redirect_uri,
            "scope": "openid profile email",
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        kept = {"state": state, "nonce": nonce, "verifier": verifier, "exp": int(time.time()) + SECONDS}
        url = found["authorization_endpoint"]
        return f"{url}{'&' if '?' in url else '?'}{urlencode(asked)}", jwt.encode(kept, self._key, "HS256")

    async def finish(self, code: str, state: str, cookie: str) -> Identity:
        """Whom the code proves; `NotAuthenticated` when it is not what was begun in this browser."""
        import jwt

        try:
            kept = jwt.decode(cookie, self._key, algorithms=["HS256"], options={"require": ["exp"]})
            if not hmac.compare_digest(kept["state"].encode(), state.encode()):
                raise NotAuthenticated(REFUSED)
            token = await self._exchanged(code, kept["verifier"])
            claims = await self._checked(token)
        except jwt.PyJWTError:
            raise NotAuthenticated(REFUSED) from None
        if not hmac.compare_digest(str(claims.get("nonce")).encode(), kept["nonce"].encode()):
            raise NotAuthenticated(REFUSED)
        return self._identity(claims)

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        names = (claims.get(name) for name in ("preferred_username", "email", "name", "sub"))
        name = next(text for text in names if isinstance(text, str) and text.strip())
        shown = "".join(letter for letter in name if letter.isprintable()).strip()[:MAX_NAME]
        groups = claims.get(self.spec.groups_claim)
        known = [group for group in groups if isinstance(group, str)] if isinstance(groups, list) else None
        return Identity(str(claims["sub"]), shown or "user", known)

    async def _exchanged(self, code: str, verifier: str) -> str:
        found = await self._discovered()
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.spec.redirect_uri,
            "code_verifier": verifier,
            "client_id": self.spec.client_id,
            "client_secret": self.spec.client_secret,
        }
        told = await self._ask("POST", found["token_endpoint"], data=form)
        token = told.get("id_token")
        if not isinstance(token, str):
            raise NotAuthenticated(REFUSED)
        return token

    async def _checked(self, token: str) -> Mapping[str, Any]:
        import jwt

        name = jwt.get_unverified_header(token).get("kid")
        key = await self._signing_key(name)
        claims: Mapping[str, Any] = jwt.decode(
            token,
            key,
            algorithms=ALGORITHMS,
            audience=self.spec.client_id,
            issuer=self.spec.issuer,
            leeway=60,
            options={"require": ["exp", "iat", "iss", "aud", "sub"]},
        )
        if claims.get("azp", self.spec.client_id) != self.spec.client_id:
            raise NotAuthenticated(REFUSED)
        return claims

    async def _signing_key(self, name: str | None) -> Any:
        import jwt

        for _ in range(2):
            for key in self._keys.keys if self._keys else ():
                if name in (None, key.key_id) and key.public_key_use in (None, "sig"):
                    return key
            if time.monotonic() - self._keys_at < 60:
                break
            self._keys_at = time.monotonic()
            found = await self._discovered()
            self._keys = jwt.PyJWKSet.from_dict(dict(await self._ask("GET", found["jwks_uri"])))
        raise NotAuthenticated(REFUSED)

    async def _discovered(self) -> Mapping[str, Any]:
        if time.monotonic() >= self._until:
            found = await self._ask("GET", f"{self.spec.issuer.rstrip('/')}/.well-known/openid-configuration")
            if found.get("issuer") != self.spec.issuer:
                raise Unavailable("The identity provider is not the one of OIDC_ISSUER.")
            self._found, self._until = found, time.monotonic() + KEEP_SECONDS
        return self._found

    async def _ask(self, method: str, url: str, **options: Any) -> Mapping[str, Any]:
        import httpx2

        try:
            async with httpx2.AsyncClient(timeout=10, trust_env=False, follow_redirects=False) as client:
                answer = await client.request(method, url, **options)
                told = json.loads(answer.content[:1_000_000])
        except (httpx2.HTTPError, ValueError):
            raise Unavailable("The identity provider does not answer.", retry_after=5) from None
        if answer.status_code >= 400 and method == "POST":
            raise NotAuthenticated(REFUSED)
        if answer.status_code >= 400 or not isinstance(told, dict):
            raise Unavailable("The identity provider does not answer.", retry_after=5)
        return told


async def login(platform: Platform, provider: Provider, *, code: str, state: str, cookie: str) -> Tokens:
    """Log in whom the code proves. He gets an account at the first time, and each time the groups that the provider says."""
    identity = await provider.finish(code, state, cookie)
    spec = provider.spec
    async with platform.engine.begin() as db:
        await identities.lock(db, spec.issuer, identity.subject)
        id = await identities.find(db, spec.issuer, identity.subject)
        user = await accounts.lock_user(db, id) if id else None
        if user is None:
            user = User(new_id(), identity.name, created_at=now())
            for number in range(2, 1000):
                if await accounts.add_user(db, user, None):
                    break
                user = User(user.id, f"{identity.name} {number}", created_at=user.created_at)
            await identities.add(db, spec.issuer, identity.subject, user.id)
            await audit.add(db, None, "user.create", user.id, {"role": user.role, "by": "oidc"})
        if user.status != "active":
            raise NotAuthenticated(REFUSED)
        if identity.groups is not None:
            await accounts.set_groups(db, user.id, identity.groups)
            if spec.admin_group and spec.admin_group in identity.groups and user.role is not Role.ADMIN:
                await accounts.update_user(db, user.id, {"role": Role.ADMIN})
                await audit.add(db, None, "user.update", user.id, {"role": Role.ADMIN, "by": "oidc"})
                user = User(user.id, user.name, Role.ADMIN, user.status, user.created_at)
        return await open_login(db, user, new_id())
