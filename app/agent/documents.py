"""The text in documents. Web pages and PDFs are read by a process of their own (`pages.py`), a few at once."""

from __future__ import annotations

import asyncio
import codecs
from email.message import EmailMessage
from pathlib import Path
from typing import NamedTuple

from app.agent import pages, programs
from app.agent.plain import REPLACEMENT, clean
from app.errors import AppError, InvalidInput, TooLarge, Unavailable

MAX_BYTES = 10_000_000
"""The most bytes of one document."""
MAX_CHARACTERS = 2_000_000
"""The most characters of its text."""
SECONDS = 30.0
AT_ONCE = 2
"""How many documents a process reads at once; others wait."""
ENCODINGS = {
    codecs.lookup(name).name
    for name in (
        *("utf-8", "utf-16", "utf-32", "ascii", "latin-1", "cp1250", "cp1251", "cp1252", "koi8-r", "iso8859-15"),
        *("gb2312", "gbk", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr"),
    )
}
"""Those that are decoded when a document says that it has them: Python knows others that take quadratic time."""
MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
SUFFIXES = {
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    ".pdf": "pdf",
    **dict.fromkeys((".txt", ".md", ".markdown", ".rst", ".csv", ".json", ".jsonl", ".xml", ".log", ".yaml"), "text"),
}
TYPES = {
    "text/html": "html",
    "application/xhtml+xml": "html",
    "application/pdf": "pdf",
    "application/json": "text",
    "application/xml": "text",
    "application/x-ndjson": "text",
    "application/yaml": "text",
}


class Content(NamedTuple):
    """A document as it came."""

    body: bytes
    media_type: str = "application/octet-stream"
    name: str = ""


class Documents:
    """Reads documents, `AT_ONCE` of those that need a process."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(AT_ONCE)

    async def text(self, content: Content) -> str:
        """The text of a document: plain, Markdown as it is written, a web page's or a PDF's.

        `InvalidInput` for one that is none of these or is broken, `TooLarge` for one with too much.
        """
        if len(content.body) > MAX_BYTES:
            raise TooLarge(f"A document may have at most {MAX_BYTES} bytes.", param="file")
        kind = _kind(content)
        if kind is None:
            raise InvalidInput("Only text, Markdown, HTML and PDF can be added to knowledge.", param="file")
        body = content.body
        if kind != "pdf":
            decoded = await asyncio.to_thread(_decoded, content)
            if kind == "text":
                return _bounded(decoded)
            body = decoded.encode()
        async with self._room:
            return _bounded(clean(await _read(kind, body)))


def _kind(content: Content) -> str | None:
    """How to read it: as its media type says, else its name, else its beginning."""
    media_type = content.media_type.partition(";")[0].strip().lower()
    if media_type in TYPES:
        return TYPES[media_type]
    if media_type.startswith("text/"):
        return "text"
    if media_type not in ("", "application/octet-stream"):
        return None
    suffix = Path(content.name).suffix.lower()
    return SUFFIXES.get(suffix) or ("pdf" if content.body.startswith(b"%PDF-") else "text")


def _decoded(content: Content) -> str:
    """By its byte order mark, else as UTF-8, else as it says; `InvalidInput` where that gives hardly any text."""
    body = content.body
    marked = next((encoding for mark, encoding in MARKS if body.startswith(mark)), None)
    for encoding in (marked, "utf-8", _declared(content.media_type)):
        if encoding:
            try:
                return _text(body.decode(encoding))
            except UnicodeDecodeError:
                continue
    return _text(body.decode(marked or "utf-8", "replace"))


def _declared(media_type: str) -> str | None:
    message = EmailMessage()
    try:
        message["content-type"] = media_type
        name = codecs.lookup(message.get_content_charset() or "").name
    except (LookupError, ValueError, TypeError):
        return None
    return name if name in ENCODINGS else None


def _text(decoded: str) -> str:
    text = clean(decoded)
    if text.count(REPLACEMENT) * 10 > len(text):
        raise InvalidInput("The document is not text, or its encoding is not known.", param="file")
    return text


def _bounded(text: str) -> str:
    if len(text) > MAX_CHARACTERS:
        raise TooLarge(f"A document may have at most {MAX_CHARACTERS} characters of text.", param="file")
    return text


async def _read(kind: str, body: bytes) -> str:
    process = await programs.begin(pages.__file__, kind, str(MAX_CHARACTERS))
    try:
        async with asyncio.timeout(SECONDS):
            text, told = await process.communicate(body)
    except TimeoutError:
        raise InvalidInput("The document takes too long to read.", param="file") from None
    finally:
        await programs.end(process)
    if process.returncode:
        raise _failure(process.returncode, told)
    return text.decode()


def _failure(status: int, told: bytes) -> AppError:
    if status == pages.REFUSED:
        return InvalidInput(f"The document cannot be read: {told.decode(errors='replace')}.", param="file")
    if b"No module named 'pypdf'" in told:
        return Unavailable("PDF cannot be read on this server: the package pypdf is not installed.")
    return InvalidInput("The document is broken, or takes too long to read.", param="file")
