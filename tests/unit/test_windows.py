"""Windows of history kept between two messages of a session."""

from __future__ import annotations

from msgspec.structs import replace

from app.domain import Message, Summary, new_id
from app.usecases.windows import MAX_MESSAGES, MAX_TOKENS, Windows, trim


def branch(count: int, tokens: int = 1, text: str = "x") -> list[Message]:
    return [Message.user(text, id=new_id(), tokens=tokens) for _ in range(count)]


def test_as_many_of_the_newest_fit_as_the_tokens_allow() -> None:
    messages = branch(10, tokens=MAX_TOKENS // 4)
    assert trim(messages) == messages[-4:]
    assert trim(branch(3)) != []
    assert len(trim(branch(MAX_MESSAGES + 5))) == MAX_MESSAGES


def test_a_window_that_has_grown_is_that_of_the_whole_branch() -> None:
    said = [Message("tool" if at % 7 == 3 else "user", "x" * at, id=new_id(), tokens=at % 50) for at in range(600)]
    for whole in (said, [replace(said[0], summary=Summary("before", 900, new_id())), *said[1:]]):
        window = trim(whole[:1])
        for at in range(1, len(whole), 3):
            window = window.grown(whole[at : at + 3])
            once = trim(whole[: at + 3])
            assert (window, window.tokens, window.size) == (once, once.tokens, once.size)


def test_the_last_message_is_always_there() -> None:
    messages = branch(2, tokens=MAX_TOKENS * 2)
    assert trim(messages) == messages[-1:]


def test_a_window_is_given_only_for_the_branch_it_ends() -> None:
    windows, id, messages = Windows(), new_id(), branch(3)
    windows.put(id, messages)
    last = messages[-1].id
    assert last is not None
    assert windows.get(id, last) == messages
    assert windows.get(id, new_id()) is None
    assert windows.get(new_id(), last) is None
    windows.forget(id)
    windows.forget(id)
    assert windows.get(id, last) is None


def test_the_least_recently_kept_goes_first_when_there_is_no_room() -> None:
    windows = Windows(max_characters=5000)
    kept = {new_id(): branch(1, text="y" * 1000) for _ in range(5)}
    for id, messages in kept.items():
        windows.put(id, messages)
    found = [windows.get(id, messages[-1].id or id) is not None for id, messages in kept.items()]
    assert found == [False, False, True, True, True]
    big = new_id()
    windows.put(big, branch(1, text="z" * 10_000))
    assert all(windows.get(id, messages[-1].id or id) is None for id, messages in kept.items())


def test_a_window_with_more_than_text_is_not_kept() -> None:
    windows, id = Windows(), new_id()
    image = Message.user("look", id=new_id(), parts=({"type": "image_url"},))
    windows.put(id, [image])
    assert windows.get(id, image.id or id) is None
    windows.put(id, trim(branch(2)), [image])
    assert windows.get(id, image.id or id) is None
