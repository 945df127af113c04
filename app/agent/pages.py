"""A program: standard input is a web page or a PDF, standard output its text.

It runs in a process of its own, which bounds itself and may be killed: what strangers' documents do to their parser, they do to
nobody else. It imports nothing of the application. Arguments: `html` or `pdf`, and the most characters of text.
"""

from __future__ import annotations

import logging
import sys
from html.parser import HTMLParser
from io import BytesIO

REFUSED = 3
"""The status after a sentence on standard error that its reader may see."""
MEMORY_BYTES = 1_500_000_000
CPU_SECONDS = 20
MAX_PAGES = 2000
HIDDEN = frozenset({"script", "style", "template", "noscript", "svg", "head"})
INLINE = frozenset(
    {"a", "abbr", "b", "code", "em", "i", "kbd", "mark", "q", "s", "small", "span", "strong", "sub", "sup", "u"}
)
PARAGRAPH = frozenset(
    {"p", "div", "section", "article", "table", "ul", "ol", "pre", "blockquote", "h1", "h2", "h3", "h4", "h5", "h6"}
)


class Refused(Exception):
    """A document that is not read; its text says why."""


class Text(HTMLParser):
    """What a reader of a web page sees: its text, a line for a block."""

    def __init__(self, most: int) -> None:
        super().__init__(convert_charrefs=True)
        self._room = most
        self._hidden = ""
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A block begins, or what nobody sees."""
        if not self._hidden and tag in HIDDEN:
            self._hidden = tag
        elif tag not in INLINE:
            self.found.append("\n\n" if tag in PARAGRAPH else "\n")

    def handle_endtag(self, tag: str) -> None:
        """It ends; `body` ends a head that was left open."""
        if tag == self._hidden:
            self._hidden = ""
        elif tag in PARAGRAPH:
            self.found.append("\n\n")

    def handle_data(self, data: str) -> None:
        """Keep text that is seen."""
        if not self._hidden:
            self._room -= len(data)
            _check_room(self._room)
            self.found.append(data)


def html(body: str, most: int) -> str:
    """The text of a web page."""
    page = Text(most)
    page.feed(body)
    page.close()
    lines = (" ".join(line.split()) for line in "".join(page.found).split("\n"))
    kept: list[str] = []
    for line in lines:
        if line or (kept and kept[-1]):
            kept.append(line)
    return "\n".join(kept)


def pdf(body: bytes, most: int) -> str:
    """The text of a PDF, page by page."""
    from pypdf import PdfReader

    logging.disable()
    reader = PdfReader(BytesIO(body), strict=False)
    if reader.is_encrypted and not reader.decrypt(""):
        raise Refused("the PDF needs a password")
    found: list[str] = []
    for number, page in enumerate(reader.pages):
        if number == MAX_PAGES:
            raise Refused(f"the PDF has more than {MAX_PAGES} pages")
        found.append(page.extract_text())
        most -= len(found[-1])
        _check_room(most)
    return "\n\n".join(found)


def _check_room(room: int) -> None:
    if room < 0:
        raise Refused("the document has too much text")


def main() -> int:
    """Read, parse, write."""
    import resource  # not of every system, and this module is also imported

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    kind, most = sys.argv[1], int(sys.argv[2])
    body = sys.stdin.buffer.read()
    try:
        text = html(body.decode(), most) if kind == "html" else pdf(body, most)
    except Refused as refused:
        sys.stderr.write(str(refused))
        return REFUSED
    sys.stdout.buffer.write(text.encode(errors="replace"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
