"""An OpenID Connect provider on a real socket: everybody who is sent there is logged in at once."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
import uvicorn
from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

CLIENT, SECRET = "chattable", "the secret of the client, which is long"


@dataclass
class FakeProvider:
    """`claims` are what it says of whoever comes; `changes` is what is changed in the next token, `key` what signs it."""

    url: str = ""
    claims: dict[str, Any] = field(default_factory=lambda: {"sub": "1", "preferred_username": "ann"})
    changes: dict[str, Any] = field(default_factory=dict)
    algorithm: str = "RS256"
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    signing: rsa.RSAPrivateKey | None = None

    async def discovery(self, request: Request) -> Response:
        paths = {"authorization_endpoint": "/authorize", "token_endpoint": "/token", "jwks_uri": "/keys"}
        return JSONResponse({"issuer": self.url, **{name: self.url + path for name, path in paths.items()}})

    async def keys(self, request: Request) -> Response:
        shown = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
        return JSONResponse({"keys": [shown | {"kid": "one", "use": "sig", "alg": "RS256"}]})

    async def authorize(self, request: Request) -> Response:
        asked = dict(request.query_params)
        assert (asked["client_id"], asked["response_type"]) == (CLIENT, "code")
        code = f"code {len(self.codes)}"
        self.codes[code] = asked
        return RedirectResponse(f"{asked['redirect_uri']}?{urlencode({'code': code, 'state': asked['state']})}", 303)

    async def token(self, request: Request) -> Response:
        given = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        asked = self.codes.pop(given["code"], None)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(given["code_verifier"].encode()).digest()).rstrip(b"=")
        good = (given["client_id"], given["client_secret"]) == (CLIENT, SECRET)
        if asked is None or not good or asked["code_challenge"] != challenge.decode():
            return JSONResponse({"error": "invalid_grant"}, 400)
        moment = int(time.time())
        claims = {"iss": self.url, "aud": CLIENT, "iat": moment, "exp": moment + 60, "nonce": asked["nonce"]}
        claims |= self.claims | self.changes
        key: Any = (
            self.signing or self.key if self.algorithm == "RS256" else SECRET if self.algorithm != "none" else None
        )
        token = jwt.encode(claims, key, self.algorithm, headers={"kid": "one"})
        return JSONResponse({"id_token": token, "access_token": "x", "token_type": "bearer"})


@asynccontextmanager
async def provider() -> AsyncIterator[FakeProvider]:
    """A provider that serves until the block ends."""
    import asyncio

    fake = FakeProvider()
    routes = [
        Route("/.well-known/openid-configuration", fake.discovery),
        Route("/keys", fake.keys),
        Route("/authorize", fake.authorize),
        Route("/token", fake.token, methods=["POST"]),
    ]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_config=None, lifespan="off"))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fake.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        serving = asyncio.get_running_loop().create_task(server._serve([listener]))
        try:
            yield fake
        finally:
            server.should_exit = True
            await serving


def query(url: str) -> dict[str, str]:
    """What stands behind the question mark."""
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
