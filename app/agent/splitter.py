"""Cuts a text into passages: at the ends of paragraphs and sentences, each beginning with the end of the one before.

Sizes are in units: a Chinese, Japanese or Korean character, which is about a token, counts as four of other scripts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

SIZE = 1200
"""The most units of a passage: some 300 tokens, well within the 512 that small embedding models read."""
OVERLAP = 200
"""The most units that a passage repeats."""
WIDE = 4

_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")
_ENDS = (
    re.compile(r"\n[^\S\n]*\n\s*"),
    re.compile(r"[.!?]{1,3}[\"'”’)]{0,3}\s+|[。！？；]+[”’」』）]{0,3}|\n"),
    re.compile(r"\s+|[,，、]"),
)
"""Where a passage may end, the best first: of a paragraph, of a sentence or line, of a word."""


def split(text: str, size: int = SIZE, overlap: int = OVERLAP) -> list[str]:
    """The passages of a text, in order; together they have all of it but spaces at their ends. In linear time."""
    passages = (text[start:end].strip() for start, end in spans(text, size, overlap))
    return [passage for passage in passages if passage]


def spans(text: str, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Where passages begin and end."""
    start, length = 0, len(text.rstrip())
    while start < length:
        end = min(_end(text, start, size), length)
        yield start, end
        start = _again(text, start, end, overlap) if end < length else length


def _units(text: str) -> int:
    return len(text) if text.isascii() else len(text) + (WIDE - 1) * len(_CJK.findall(text))


def _fitting(text: str, start: int, size: int) -> int:
    """Where so many units behind `start` end, or a little before."""
    end = min(start + size, len(text))
    while (units := _units(text[start:end])) > size:
        end = start + max(1, (end - start) * size // units - 1)
    return end


def _end(text: str, start: int, size: int) -> int:
    """Where the passage ends: at the last good place of its second half."""
    end = _fitting(text, start, size)
    if end == len(text):
        return end
    half = (start + end) // 2
    for kind in _ENDS:
        places = [found.end() for found in kind.finditer(text, half, end)]
        if places:
            return places[-1]
    return end


def _again(text: str, start: int, end: int, overlap: int) -> int:
    """Where the next passage begins: behind `start`, at a sentence or word of the end of this one."""
    back = max(start + 1, end - overlap)
    while _units(text[back:end]) > overlap:
        back += (end - back) // 4 + 1
    for kind in _ENDS[1:]:
        found = kind.search(text, back, end)
        if found and found.end() < end:
            return found.end()
    return back if start + 1 < back < end else end
