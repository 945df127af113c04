"""Whatever a call is given as messages, made into the dictionaries of the OpenAI protocol, or into what is sent and recorded of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from app.domain import Message, Value, canonical
from app.errors import InvalidInput
from app.llm.tokens import PER_REPLY, count_message

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})

Messages = str | Message | Sequence[Message | Mapping[str, Any]]
"""What the verbs of an LLM accept: a text is one message of the user."""


MANY = 32
"""With no more messages, a call's record names each."""
RUN_ENDS = "10"
"""A run of names ends with one that is less, so whose first byte is less than 16: with every sixteenth, as a rule."""


class Prompt(NamedTuple):
    """The messages of one call, each encoded as it is sent and recorded, and about how many tokens they are together."""

    values: Sequence[Value]
    tokens: int

    @classmethod
    def of(cls, messages: Messages) -> Prompt:
        """`messages` encoded. What a `Message` knows of itself is not made again: a long history costs a look for each."""
        listed = _listed(messages)
        try:
            values = [
                known
                if isinstance(each, Message) and not each.parts and (known := each.value).tokens
                else _value(each, at)
                for at, each in enumerate(listed)
            ]
        except (TypeError, ValueError, RecursionError):  # there is what JSON cannot express
            values = [_value(each, at) for at, each in enumerate(listed)]
        return cls(values, PER_REPLY + sum([value.tokens for value in values]))

    @property
    def raw(self) -> list[msgspec.Raw]:
        """The messages as parts of a larger JSON."""
        return [value.raw for value in self.values]

    def messages(self) -> list[dict[str, Any]]:
        """The messages as dictionaries, which belong to the caller."""
        return [msgspec.json.decode(value.body) for value in self.values]


def named(values: Sequence[Value]) -> tuple[list[str], Sequence[Value]]:
    """The names of a prompt's messages for the record of the call, and all the values that these names lead to.

    Of more than `MANY`, runs of names are values of their own: JSON arrays, which are named in their messages' place. Where a run ends
    depends on a name alone, so a conversation that grows at its end, or loses its beginning, has the same runs from turn to turn.
    """
    names = [value.name for value in values]
    if len(names) <= MANY:
        return names, values
    short: list[str] = []
    runs: list[Value] = []
    first = 0
    for at in [at for at, name in enumerate(names, 1) if name < RUN_ENDS]:
        if at - first > 1:
            run = _run(values[at - 1], names[first:at])
            runs.append(run)
            short.append(run.name)
            first = at
    return short + names[first:], [*values, *runs]


def _run(last: Value, names: list[str]) -> Value:
    """A run of names as a value, which is made anew only if it was another at the turn before."""
    if last.run is None or last.run[0] != names:
        last.run = names, Value.of(canonical(names))
    return last.run[1]


def normalise(messages: Messages) -> list[dict[str, Any]]:
    """`messages` as dictionaries; `InvalidInput` names the place of the first bad one, such as `messages[2].role`."""
    return [_checked(message, f"messages[{index}]") for index, message in enumerate(_listed(messages))]


def encoded(value: object, place: str) -> bytes:
    """Canonical JSON; `InvalidInput` for what JSON cannot express."""
    try:
        return canonical(value)
    except (TypeError, ValueError, RecursionError):
        raise _inexpressible(place) from None


def _inexpressible(place: str) -> InvalidInput:
    return InvalidInput(f"{place} holds what JSON cannot express.", param=place)


def _value(message: Message | Mapping[str, Any], index: int) -> Value:
    if isinstance(message, Message) and not message.parts and message.role in ROLES:
        try:
            value = message.value
        except (TypeError, ValueError, RecursionError):
            raise _inexpressible(f"messages[{index}]") from None
    else:
        message = _checked(message, f"messages[{index}]")
        value = Value.of(encoded(message, f"messages[{index}]"))
    value.tokens = count_message(message)
    return value


def _listed(messages: Messages) -> list[Message | Mapping[str, Any]]:
    if isinstance(messages, str):
        return [{"role": "user", "content": str(messages)}]
    if isinstance(messages, Message):
        return [messages]
    if not isinstance(messages, Sequence):
        raise InvalidInput("messages must be a text, a message or a list of messages.", param="messages")
    if not messages:
        raise InvalidInput("messages must not be empty.", param="messages")
    return [*messages]


def _checked(message: Any, place: str) -> dict[str, Any]:
    if isinstance(message, Message):
        body = message.to_openai()
    elif isinstance(message, Mapping):
        body = dict(message)
    else:
        raise InvalidInput(f"{place} must be a message or a dictionary.", param=place)
    role = body.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidInput(f"{place}.role must be one of {', '.join(sorted(ROLES))}.", param=f"{place}.role")
    _check_content(body, f"{place}.content")
    return body


def _check_content(body: Mapping[str, Any], place: str) -> None:
    content = body.get("content")
    if isinstance(content, str) or (content is None and body.get("tool_calls")):
        return
    if isinstance(content, Sequence) and content and all(isinstance(part, Mapping) for part in content):
        return
    raise InvalidInput(f"{place} must be a text or a list of parts.", param=place)
