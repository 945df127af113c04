"""The pages that show the API: the OpenAPI document, and Swagger UI over it, from files that are installed here.

Nothing is fetched from elsewhere, and the page runs no script but its own files: it works without the internet and under a strict
Content Security Policy. The document takes a second to make, so it is made in a thread, at the first look, and kept as bytes.
"""

from __future__ import annotations

import asyncio
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import FileResponse, Response

router = APIRouter(include_in_schema=False)

CACHE = {"cache-control": "public, max-age=3600"}
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Swagger UI writes `style` attributes, and its pictures are `data:` URLs."""
PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Chattable: API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<noscript>This page needs JavaScript; <a href="openapi.json">openapi.json</a> does not.</noscript>
<div id="api"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
START = """\
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  deepLinking: true,
  docExpansion: "none",
  presets: [SwaggerUIBundle.presets.apis],
  validatorUrl: null,
});
"""


class Document:
    """The OpenAPI document of an application as JSON, made once however many look at it first."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._lock = asyncio.Lock()
        self._bytes = b""

    async def read(self) -> bytes:
        """The document; the first look waits for it, and others only while pydantic keeps the interpreter: some tenths of a second."""
        async with self._lock:
            if not self._bytes:
                self._bytes = await asyncio.to_thread(self._make)
        return self._bytes

    def _make(self) -> bytes:
        return json.dumps(self._app.openapi(), ensure_ascii=False, separators=(",", ":")).encode()


@router.get("/openapi.json")
async def openapi_json(request: Request) -> Response:
    """The OpenAPI document."""
    document: Document = request.app.state.document
    return Response(await document.read(), media_type="application/json")


@router.get("/docs")
async def docs() -> Response:
    """Swagger UI. Its addresses are relative, for a proxy may have put a path before them."""
    return Response(PAGE, media_type="text/html", headers={"content-security-policy": CSP})


@router.get("/docs/start.js")
async def start_js() -> Response:
    """What starts it: a file, because the page may run no script of its own."""
    return Response(START, media_type="text/javascript", headers=CACHE)


@router.get("/docs/swagger-ui-bundle.js")
async def swagger_ui_js() -> Response:
    """Swagger UI's script."""
    return FileResponse(_files() / "swagger-ui-bundle.js", media_type="text/javascript", headers=CACHE)


@router.get("/docs/swagger-ui.css")
async def swagger_ui_css() -> Response:
    """Swagger UI's style."""
    return FileResponse(_files() / "swagger-ui.css", media_type="text/css", headers=CACHE)


@cache
def _files() -> Path:
    """Where the package that ships Swagger UI's files has them; its code is not run."""
    found = find_spec("fastapi_offline")
    assert found is not None  # noqa: S101 - it is a dependency
    assert found.origin is not None  # noqa: S101 - and a package of files
    return Path(found.origin).parent / "static"
