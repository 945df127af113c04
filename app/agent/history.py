"""What was said before, as an agent sees it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from app.domain import Message


class History(list[Message]):
    """The active branch of the session, oldest first, ending with the message to answer. The platform writes it."""

    def __str__(self) -> str:
        """The transcript: one `role: content` a message, so that it fits into a prompt."""
        return "\n".join(f"{message.name or message.role}: {message.content}" for message in self)


def rounds(messages: Iterable[Message]) -> list[list[Message]]:
    """Cut before each message of a user; where users have names, of the one that spoke first."""
    found: list[list[Message]] = []
    asking: str | None = None
    for message in messages:
        asking = message.name if not found and message.role == "user" else asking
        if not found or (message.role == "user" and message.name in (None, asking)):
            found.append([])
        found[-1].append(message)
    return found


def newest(rounds: Sequence[list[Message]], length: int | None) -> Sequence[list[Message]]:
    """So many of the last rounds as fit in `length` characters of their transcript."""
    if length is None:
        return rounds
    first, left = len(rounds), length + 1
    while first > 0 and (left := left - 1 - len(str(History(rounds[first - 1])))) >= 0:
        first -= 1
    return rounds[first:]


def paired(messages: Iterable[Message]) -> list[Message]:
    """Without results of tools that nobody called, and without calls that have no result: servers refuse either."""
    found = list(messages)
    results = Counter(message.additional_kwargs.get("tool_call_id") for message in found if message.role == "tool")
    called: set[Any] = set()
    paired: list[Message] = []
    for message in found:
        calls = message.additional_kwargs.get("tool_calls", ())
        answered = [call for call in calls if results[call["id"]]]
        if message.role == "tool" and message.additional_kwargs.get("tool_call_id") not in called:
            continue
        kept = message
        if len(answered) < len(calls):
            kept = Message(
                message.role, message.content, additional_kwargs={"tool_calls": answered} if answered else {}
            )
        called.update(call["id"] for call in answered)
        if message.content or answered or message.role != "assistant":
            paired.append(kept)
    return paired
