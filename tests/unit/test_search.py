"""Words and bigrams of texts, and that no text takes long."""

from __future__ import annotations

import time
import unicodedata
from uuid import UUID

import pytest

from app.store.search import MAX_CHARACTERS, phrases, query_terms, terms

OWNER = UUID(int=1)


def finds(query: str, text: str) -> bool:
    return set(query_terms(OWNER, query)) <= set(terms(OWNER, text))


@pytest.mark.parametrize(
    "text",
    [
        "\u0301\u0323" * 50_000,
        "\uff9e\u0301" * 50_000,  # a half-width sound mark becomes a combining one
        "\u0f73\u0301" * 50_000,
        "\ufdfa" * 1_000_000,  # becomes eighteen characters
        "\u0390" * 1_000_000,
        "界 " * 500_000,
        "a " * 500_000,
    ],
    ids=lambda text: f"{ord(text[0]):x}",
)
def test_no_text_takes_long(text: str) -> None:
    began = time.process_time()
    terms(OWNER, text)
    assert time.process_time() - began < 0.5


def test_long_texts_are_normalised_as_a_whole() -> None:
    words = [f"caf\N{LATIN SMALL LETTER E WITH ACUTE}{number}" for number in range(2000)]
    text = unicodedata.normalize("NFD", " ".join(words))
    assert set(terms(OWNER, text)) == set(query_terms(OWNER, " ".join(words)))
    assert finds("x" * 1000, f"so {'x' * 1000} it is, \N{GREEK CAPITAL LETTER OMEGA}")


def test_the_beginning_of_a_long_text_is_found() -> None:
    text = f"first {'x ' * MAX_CHARACTERS} last"
    assert finds("first", text)
    assert not finds("last", text)


def test_another_width_is_the_same_word() -> None:
    assert finds("ｶﾀｶﾅ", "カタカナ")
    assert finds("カタカナ", "ｶﾀｶﾅ")
    assert finds("full", "ＦＵＬＬ")
    assert phrases("ｶﾀｶﾅ 北京 full") == ["カタカナ"]
