"""Which part of a history is summarised, and which stays: whatever its messages are, all of it and each part once."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from app.domain import Message, Summary, new_id
from app.usecases import summaries
from app.usecases.windows import MAX_MESSAGES, MAX_TOKENS, trim


def branch(tokens: Sequence[int], *, first_parent: bool = False) -> list[Message]:
    found: list[Message] = []
    for index, size in enumerate(tokens):
        parent_id = found[-1].id if found else new_id() if first_parent else None
        role = "assistant" if index % 2 else "user"
        found.append(Message(role, f"m{index}", id=new_id(), parent_id=parent_id, tokens=size))
    return found


def shortened(window: Sequence[Message]) -> tuple[list[list[Message]], Sequence[Message]]:
    """The parts that are summarised, one by one, and the window after it."""
    parts, left = [], summaries._left(window)
    while (end := summaries._end(window, left)) > summaries._begin(window):
        parts.append(list(window[summaries._begin(window) : end]))
        window = [replace(window[end - 1], summary=Summary("short", 900, new_id())), *window[end:]]
    return parts, window


@pytest.mark.parametrize("seed", range(40))
def test_every_message_is_summarised_once_or_stays(seed: int) -> None:
    chance = random.Random(seed)
    sizes = [chance.choice([0, 3, 200, 1500, 7000]) for _ in range(chance.randint(1, 300))]
    whole = branch(sizes, first_parent=bool(seed % 2))
    parts, window = shortened(whole)
    rest = list(window[1:]) if parts else list(window)
    assert [message.id for part in parts for message in part] + [message.id for message in rest] == [
        message.id for message in whole
    ]
    assert all(len(part) == 1 or sum(each.tokens for each in part) <= summaries.AT_ONCE for part in parts)
    assert summaries.is_whole(window) or len(whole) == 1
    assert rest[-1] is whole[-1]
    if parts:
        kept = sum(message.tokens for message in rest)
        assert kept <= summaries.KEEP_TOKENS or rest == [whole[-1]]
        assert rest[0].role == "user" or rest == [whole[-1]]
        assert shortened(window)[0] == [] or kept > MAX_TOKENS - 900


def test_what_fits_is_left_alone() -> None:
    assert shortened(branch([1000] * 6))[0] == []
    assert len(shortened(branch([1] * (MAX_MESSAGES + 1)))[0]) == 1


def test_a_window_keeps_its_summary_and_makes_room_for_it() -> None:
    head, *rest = branch([9000, 2000, 2000, 2000])
    headed = [replace(head, summary=Summary("short", 900, new_id())), *rest]
    assert trim(headed) == [headed[0], *rest[1:]]
    assert not summaries.is_whole(trim(headed))
    assert summaries.is_whole(headed)
    assert [message.content for message in summaries.shown(headed)] == [summaries.ASKED, "short", "m1", "m2", "m3"]


def test_what_is_too_long_for_one_call_is_given_by_its_beginning_and_end() -> None:
    text = summaries._cut("a" * 50_000 + "z" * 50_000, 1000)
    assert text.startswith("aaa")
    assert text.endswith("zzz")
    assert len(text) < 4100
    assert summaries._cut("short", 1000) == "short"
