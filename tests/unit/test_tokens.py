"""The local count of tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import Message
from app.llm.tokens import PER_ATTACHMENT, PER_MESSAGE, PER_REPLY, count, count_messages

ENGLISH = (
    "A newcomer clones the repository on a machine that has only Python, runs one command, "
    "and has a working chat platform; runs a second command, and sees the tests pass."
)
CHINESE = "新来的人在只装了Python的机器上克隆仓库，运行一条命令，就有了一个可用的聊天平台。"
JAPANESE = "初めての人がリポジトリをクローンし、コマンドを一つ実行すると、動くチャットが手に入る。"
GERMAN = (
    "Ein Neuling klont das Repository, führt einen Befehl aus und hat eine funktionierende "
    "Plattform für Gespräche, über die er sich freut."
)


# The second figure is what the vocabulary o200k_base gives.
@pytest.mark.parametrize(("text", "tokens"), [(ENGLISH, 35), (CHINESE, 31), (JAPANESE, 37), (GERMAN, 30)])
def test_it_is_within_a_half_of_a_real_vocabulary_and_not_below(text: str, tokens: int) -> None:
    assert tokens <= count(text) <= 1.5 * tokens


def test_ascii_is_four_characters_a_token_and_chinese_one() -> None:
    assert (count("abcd" * 25), count("好" * 100), count("abcd好")) == (25, 100, 2)


def test_only_no_text_has_no_tokens() -> None:
    assert (count(""), count("a"), count("é")) == (0, 1, 1)


@given(st.text(st.characters()))
def test_every_text_has_a_count_lone_surrogates_too(text: str) -> None:
    assert (len(text) + 3) // 4 <= count(text) <= 2 * len(text)


@given(st.text(), st.text())
def test_more_text_is_never_fewer_tokens(text: str, more: str) -> None:
    assert count(text) <= count(text + more) <= count(text) + count(more)


def test_messages_count_as_values_and_as_dictionaries_alike() -> None:
    messages = [Message.system("You are brief."), Message.user("你好")]
    expected = PER_REPLY + 2 * PER_MESSAGE + count("You are brief.") + count("你好")
    assert count_messages(messages) == count_messages([message.to_openai() for message in messages]) == expected


def test_parts_count_by_their_text_and_attachments_by_a_flat_rate() -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "data:…"}}]
    expected = PER_REPLY + PER_MESSAGE + count("What is this?") + PER_ATTACHMENT
    assert count_messages([{"role": "user", "content": parts}]) == expected


def test_a_message_without_content_counts_its_frame() -> None:
    assert count_messages([{"role": "assistant", "content": None}]) == PER_REPLY + PER_MESSAGE


def test_tools_and_their_calls_count_as_they_are_written() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    assert count_messages([], [tool]) - count_messages([]) == count('[{"type":"function","function":{"name":"f"}}]')
    called = {"role": "assistant", "content": None, "tool_calls": [tool]}
    assert count_messages([called]) > count_messages([{"role": "assistant", "content": None}])
    assert count_messages([], [object()]) == PER_REPLY
