"""Words and bigrams for full-text search.

Latin text is found by whole words; Chinese, Japanese and Korean, which have no spaces, by pairs of characters (and single ones, for
queries of one character). Terms are stored as integers salted with their owner's id, so that one GIN index over `int[]` is
owner-scoped by itself and needs no extension. A collision can add a wrong row only within the same owner's messages.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable
from itertools import islice
from uuid import UUID

MAX_TERMS = 20_000
"""The most distinct terms kept of one message; what follows in a longer one is not found."""
MAX_CHARACTERS = 30_000
"""How much of a message is looked at: some fifteen pages. Terms are made on the event loop, where this much of the worst takes 35 ms."""

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_PIECE = re.compile(f"([{_CJK}]+)|([^\\W_{_CJK}]+)")
_STRETCH = re.compile(r".{1,64}\S{0,64}", re.DOTALL)
"""What is normalised at once, as a rule up to the end of a word: NFKC takes quadratic time for a run of combining marks."""
UNUSUAL = "[\u1100-\u11ff\u2e80-\u2fdf\u3099\u309a\u3131-\u33ff\uf900-\ufaff\uff61-\uffdc\U0001f200-\U0001f2ff\U0002f800-\U0002fa1f]"
"""A pattern of the characters that NFKC makes Chinese, Japanese or Korean ones of: half-width, circled, decomposed and the like."""


def terms(owner: UUID, text: str) -> list[int]:
    """The terms under which a message is found."""
    return _hashed(owner, [term for cjk, word in _pieces(text) for term in ((*cjk, *_pairs(cjk)) if cjk else (word,))])


def query_terms(owner: UUID, query: str) -> list[int]:
    """The terms that a message must all have to match a query; empty when the query has no word."""
    return _hashed(
        owner, [term for cjk, word in _pieces(query) for term in (_pairs(cjk) or (cjk,) if cjk else (word,))]
    )


def phrases(query: str) -> list[str]:
    """Chinese runs of three or more characters, normalised, which must also stand in the text as they are, not only pair by pair.

    A text that is not normalised itself (`UNUSUAL`) may have them in another form and is found by its pairs alone.
    """
    return [cjk for cjk, _ in _pieces(query) if len(cjk) > 2]


def _pieces(text: str) -> list[tuple[str, str]]:
    return _PIECE.findall(_normalised(text[:MAX_CHARACTERS]))


def _normalised(text: str) -> str:
    if text.isascii():
        return text.casefold()
    made: list[str] = []
    room = MAX_CHARACTERS  # a single character can become eighteen
    for stretch in _STRETCH.finditer(text):
        made.append(unicodedata.normalize("NFKC", stretch[0]))
        room -= len(made[-1])
        if room <= 0:
            break
    return "".join(made).casefold()


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run) - 1)]


def _hashed(owner: UUID, found: Iterable[str]) -> list[int]:
    salt = zlib.crc32(owner.bytes)
    distinct = dict.fromkeys([zlib.crc32(term.encode(), salt) - 0x80000000 for term in found])
    return list(islice(distinct, MAX_TERMS))
