"""Texts become passages: whole, bounded, in order, and soon."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, strategies

from app.agent.splitter import OVERLAP, SIZE, _units, spans, split

LETTERS = strategies.sampled_from("ab .!?\n,，。！知识庫🙂\u3000")


@given(strategies.text(LETTERS, max_size=400), strategies.integers(40, 90), strategies.integers(0, 7))
def test_passages_have_all_of_a_text_in_order_and_fit(text: str, size: int, overlap: int) -> None:
    begun, at = -1, 0
    for start, end in spans(text, size, overlap):
        assert begun < start <= at < end
        assert _units(text[start:end]) <= size
        assert _units(text[start:at]) <= overlap
        begun, at = start, end
    assert not text[at:].strip()
    assert all(passage in text and passage.strip() == passage != "" for passage in split(text, size, overlap))


def test_a_passage_ends_with_a_paragraph_or_else_a_sentence_and_the_next_repeats_its_end() -> None:
    sentences = [f"This is sentence {number} of 99.5 in all." for number in range(99)]
    first, second, *_ = split(" ".join(sentences))
    assert first.endswith("in all.")
    assert second.startswith("This is")
    assert second.split(".")[0] in first
    paragraphs = ["one two three. " * 50, "four five six. " * 50]
    assert split("\n\n".join(paragraphs))[0] == paragraphs[0].strip()


def test_chinese_is_cut_at_its_own_stops_and_counts_by_what_it_costs() -> None:
    passages = split("知识库保存文字，供智能体查找。" * 200)
    assert all(passage.endswith("。") and _units(passage) <= SIZE for passage in passages)
    assert all(passage.startswith("知识库") for passage in passages)


@pytest.mark.parametrize("unit", ["a", " ", "\n", ".", "! ", "知", "。", "\n\n", ", "])
def test_the_worst_text_takes_linear_time(unit: str) -> None:
    began = time.process_time()
    passages = split(unit * 1_000_000)
    assert time.process_time() - began < 20
    assert sum(map(len, passages)) <= 1_000_000 * len(unit) * SIZE / (SIZE - 2 * OVERLAP)


def test_a_text_of_nothing_has_no_passage() -> None:
    assert split("") == split(" \n\n ") == []
