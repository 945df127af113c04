"""Documents are read as what they are; broken, endless and hostile ones end in a sentence."""

from __future__ import annotations

import asyncio
import time
import zlib

import pytest

from app.agent import documents
from app.agent.documents import Content, Documents
from app.errors import InvalidInput, TooLarge


def pdf(stream: bytes, *, kids: bytes = b"[3 0 R]", more: bytes = b"") -> bytes:
    """A PDF of one page that draws `stream`."""
    body = b"%PDF-1.4\n"
    places = []
    for number, entry in enumerate(
        (
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids %s /Count 1 >>" % kids,
            b"<< /Type /Page /Parent 2 0 R /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> /MediaBox [0 0 9 9] >>",
            b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(stream), more, stream),
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        ),
        1,
    ):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, entry)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    ends = b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % len(body)
    return body + b"xref\n0 6\n0000000000 65535 f \n" + table + ends


PAGE = pdf(b"BT /F1 12 Tf (Hello from a page) Tj ET")


async def read(body: bytes, media_type: str = "", name: str = "") -> str:
    return await Documents().text(Content(body, media_type, name))


@pytest.mark.parametrize(
    ("body", "media_type", "name", "text"),
    [
        ("中文".encode(), "text/plain", "", "中文"),
        ("中文".encode("gb18030"), "text/plain; charset=gb18030", "", "中文"),
        ("中文".encode("utf-16"), "text/plain", "", "中文"),
        (b"\xef\xbb\xbfmarked", "", "a.txt", "marked"),
        (b"# Title\n\n*text*", "text/markdown", "", "# Title\n\n*text*"),
        (b'{"a": 1}', "application/json", "", '{"a": 1}'),
        (b"a\x00" + b"b" * 20, "text/plain", "", "a\ufffd" + "b" * 20),
        (b"<p>a</p>", "application/octet-stream", "x.HTML", "a"),
        (PAGE, "application/pdf", "", "Hello from a page"),
        (PAGE, "", "", "Hello from a page"),
        (PAGE, "application/octet-stream", "x.pdf", "Hello from a page"),
    ],
)
async def test_a_document_is_read_by_its_type_else_its_name_else_its_beginning(
    body: bytes, media_type: str, name: str, text: str
) -> None:
    assert (await read(body, media_type, name)).strip() == text


async def test_of_a_web_page_is_read_what_is_seen() -> None:
    page = "<html><head><title>no</title></head><body><h1>A &amp; B</h1><script>no()</script><p>one <b>two</b>\n three<br>four"
    text = await read(page.encode(), "text/html")
    assert text.split("\n") == ["A & B", "", "one two", "three", "four"]


@pytest.mark.parametrize(
    ("body", "media_type", "sentence"),
    [
        (bytes(range(128, 256)) * 9, "text/plain", "not text"),
        (b"\x00" * 1000, "", "not text"),
        (b"PK\x03\x04", "application/zip", "Only text, Markdown, HTML and PDF"),
        (b"%PDF-1.4 and no more", "application/pdf", "broken"),
        (PAGE[:300], "application/pdf", "broken"),
        (b"x" * 50, "text/plain; charset=punycode", ""),
    ],
)
async def test_what_cannot_be_read_is_one_sentence(body: bytes, media_type: str, sentence: str) -> None:
    if not sentence:  # an encoding that is not taken is not looked at
        assert await read(body, media_type) == "x" * 50
        return
    with pytest.raises(InvalidInput, match=sentence):
        await read(body, media_type)


@pytest.mark.parametrize(
    "body",
    [
        pdf(b"BT ET", kids=b"[2 0 R 2 0 R]"),  # pages that hold themselves
        pdf(zlib.compress(b"(a) Tj " * 40_000_000, 9), more=b"/Filter /FlateDecode"),  # 280 MB out of little
        pdf(b"BT " + b"[" * 1_000_000),
        b"%PDF-1.4\n" + b"1 0 obj\n<<" * 300_000,
    ],
    ids=["loop", "bomb", "deep", "many"],
)
async def test_a_hostile_pdf_ends_soon_and_the_loop_goes_on(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "SECONDS", 5.0)
    ticks, began = 0, time.monotonic()
    reading = asyncio.create_task(read(body, "application/pdf"))
    while not reading.done():
        ticks += 1
        await asyncio.sleep(0.05)
    assert time.monotonic() - began < 20
    assert ticks > (time.monotonic() - began) * 5
    error = reading.exception()
    assert error is None or isinstance(error, InvalidInput)


async def test_a_web_page_of_open_tags_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "SECONDS", 2.0)
    for part in (b"<", b"<!--", b"<a b='"):
        try:
            await asyncio.wait_for(read(part * 300_000, "text/html"), 60)
        except InvalidInput as error:
            assert "takes too long" in str(error)  # noqa: PT017 - either may be


async def test_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TooLarge):
        await read(b"x" * (documents.MAX_BYTES + 1), "text/plain")
    monkeypatch.setattr(documents, "MAX_CHARACTERS", 10)
    for body, media_type in ((b"x" * 11, "text/plain"), (PAGE, "application/pdf"), (b"<p>" + b"x" * 11, "text/html")):
        with pytest.raises((TooLarge, InvalidInput), match=r"characters|too much text"):
            await read(body, media_type)


async def test_a_reader_that_is_cancelled_leaves_no_process() -> None:
    body = pdf(zlib.compress(b"(a) Tj " * 40_000_000, 9), more=b"/Filter /FlateDecode")
    reading = asyncio.create_task(read(body, "application/pdf"))
    await asyncio.sleep(0.3)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
