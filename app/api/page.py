"""The web page, as `./scripts/web` has built it: one document, and assets whose names change with their content.

The folder may be empty when the server starts, and be filled or changed while it runs: until there is a page, a plain one says so and
looks again. Files are kept in memory, and found by name among them, so that no path leads elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from app.errors import NotFound

router = APIRouter(include_in_schema=False)
FOLDER = Path(__file__).parents[2] / "web" / "dist"
INDEX = "index.html"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""No script and no style but files of this server, and nothing is loaded from elsewhere, whatever an answer holds."""
SAFE = {"content-security-policy": CSP, "referrer-policy": "no-referrer", "x-frame-options": "DENY"}
FOR_EVER = {"cache-control": "public, max-age=31536000, immutable", "vary": "accept-encoding"}
LOOK_AGAIN = {"cache-control": "no-cache", "vary": "accept, accept-encoding"}
TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
NOT_BUILT = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="refresh" content="2">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>Chattable</title>
</head>
<body>
<h1>Chattable</h1>
<p>The web page is being built, which takes half a minute. This page looks again by itself.</p>
<p>If it goes on for longer, <code>./scripts/web</code> builds it and says what is wrong.
The API serves meanwhile: <a href="docs">docs</a>.</p>
</body>
</html>
"""


class File(NamedTuple):
    """A file of the page: its type, its bytes as they are and compressed, and the mark of its content."""

    media_type: str
    body: bytes
    compressed: bytes | None
    etag: str


class Page:
    """The files of a folder, read once, and anew when its document has changed."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._seen: int | None = None
        self._files: Mapping[str, File] = {}
        self._lock = asyncio.Lock()

    async def file(self, name: str) -> File | None:
        """The file of this name; None where there is none, or no page yet."""
        async with self._lock:
            if (seen := _moment(self._folder / INDEX)) != self._seen:
                self._files = await asyncio.to_thread(_read, self._folder) if seen else {}
                self._seen = seen
        return self._files.get(name)


def _moment(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _read(folder: Path) -> Mapping[str, File]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in TYPES:
            body, packed = path.read_bytes(), path.with_name(f"{path.name}.gz")
            compressed = packed.read_bytes() if packed.is_file() else None
            name = path.relative_to(folder).as_posix()
            found[name] = File(TYPES[path.suffix], body, compressed, f'"{sha256(body).hexdigest()[:32]}"')
    return found


@router.get("/")
async def front(request: Request) -> Response:
    """The page, for people; programs that ask for JSON are led to the description of the API."""
    page: Page = request.app.state.page
    accepted = request.headers.get("accept", "*/*")
    if "json" in accepted and "html" not in accepted:
        return RedirectResponse("docs")
    if file := await page.file(INDEX):
        return _answer(request, file, SAFE | LOOK_AGAIN)
    return Response(NOT_BUILT, media_type="text/html", headers=SAFE | {"cache-control": "no-store"})


@router.get("/assets/{name}")
async def asset(request: Request, name: str) -> Response:
    """A file of the page."""
    page: Page = request.app.state.page
    if file := await page.file(f"assets/{name}"):
        return _answer(request, file, FOR_EVER)
    raise NotFound("asset")


def _answer(request: Request, file: File, headers: Mapping[str, str]) -> Response:
    headers = {"etag": file.etag, **headers}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if file.compressed and "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.compressed, headers=headers | {"content-encoding": "gzip"}, media_type=file.media_type)
    return Response(file.body, headers=headers, media_type=file.media_type)
