"""Server-sent events come out whole, however their bytes are cut."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import LLMError
from app.llm.sse import Events

STREAM = (
    ": hello\n\ndata: one\n\ndata:two\r\n\r\n: heartbeat\r\nevent: message\r\nid: 7\r\ndata: 你好, 😀\r\n\r\n\n\n"
    "data: several\ndata: lines\n\nretry: 5\n\ndata\ndatabase: no\n\ndata: \n\n"
).encode()
DATA = [b"one", b"two", "你好, 😀".encode(), b"several\nlines", b""]


def fed(pieces: list[bytes], limit: int = 10_000) -> list[bytes]:
    events = Events(limit)
    return [data for piece in pieces for data in events.feed(piece)]


def test_comments_and_other_fields_are_skipped() -> None:
    assert fed([STREAM]) == DATA


def test_one_byte_at_a_time_gives_the_same() -> None:
    assert fed([bytes([byte]) for byte in STREAM]) == DATA


@given(st.lists(st.integers(0, len(STREAM)), max_size=40))
@settings(deadline=None)
def test_any_cuts_give_the_same(places: list[int]) -> None:
    cuts = [0, *sorted(places), len(STREAM)]
    assert fed([STREAM[start:end] for start, end in pairwise(cuts)]) == DATA


def test_the_end_completes_an_event_without_its_blank_line() -> None:
    events = Events(100)
    assert events.feed(b"data: [DONE]") == []
    assert events.end() == [b"[DONE]"]
    assert events.end() == []


@pytest.mark.parametrize(
    "piece", [b"data: " + b"x" * 200, b"data: " + b"x" * 200 + b"\n\n", b"data: xxxxxxxxxx\n" * 20]
)
def test_a_line_or_event_over_the_limit_is_an_error(piece: bytes) -> None:
    with pytest.raises(LLMError, match="too long"):
        fed([piece], limit=100)
    with pytest.raises(LLMError, match="too long"):
        fed([bytes([byte]) for byte in piece], limit=100)


def test_many_events_are_not_over_the_limit() -> None:
    assert len(fed([b"data: xxxxxxxxxx\n\n" * 50], limit=100)) == 50
