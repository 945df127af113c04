"""What is done to an answer's text on its way to the user: the same whether it comes whole or in pieces.

A post-processor is a `Feed` that takes the text piece by piece; what it is given in one piece is only the case of one
piece. One that cannot do that implements `process` instead, and is called once with the whole text.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import Any, Protocol

from app.errors import AgentFailed, LLMError
from app.llm.reading import read_json

MAX_PARTS = 100_000
"""The most parts that a text is split into."""


class Feed(Protocol):
    """A text on its way. It may have a `value`, which is what the whole text came to once `close` was called."""

    def feed(self, text: str) -> str:
        """Take the next piece: what can be said now, which no later piece can change."""

    def close(self) -> str:
        """Take the end: what is left to say."""


class BasePostprocess:
    """A post-processor of one's own implements `process`, or `open` if it is to stream."""

    def process(self, content: str, **kwargs: Any) -> Any:
        """What the whole text becomes; may be `async`.

        What is no text is the answer's `value`, and the text stays; a `Completion` is both.
        """
        feed = self.open()
        if feed is None:
            raise NotImplementedError(f"{type(self).__name__} has neither process nor open")
        text = feed.feed(content) + feed.close()
        return getattr(feed, "value", None) if self._gives_value else text

    def open(self) -> Feed | None:
        """A fresh feed for one answer; None for one that needs the whole text."""
        return None

    def __rshift__(self, other: BasePostprocess) -> Chain:
        """First this, then the other."""
        return Chain(*_members(self), *_members(other))

    _gives_value = False
    """Whether `process` gives the value and not the text."""


class Chain(BasePostprocess):
    """Post-processors one after the other: `a >> b`."""

    def __init__(self, *members: BasePostprocess) -> None:
        self.members = members

    async def process(self, content: str, **kwargs: Any) -> Any:
        """What the whole text becomes after all of them."""
        flow = Flow(*self.members)
        return flow.feed(content) + await flow.close()


def _members(postprocessor: BasePostprocess) -> Sequence[BasePostprocess]:
    return postprocessor.members if isinstance(postprocessor, Chain) else (postprocessor,)


class Flow:
    """One answer on its way through post-processors: streaming as far as the first that needs the whole text."""

    def __init__(self, *postprocessors: BasePostprocess) -> None:
        self.members = [member for given in postprocessors for member in _members(given)]
        self.value: Any = None
        """What the last of them came to that gives more than a text."""
        self._feeds: list[Feed] = []
        self._whole = self.members[:]
        while self._whole and (feed := self._whole[0].open()) is not None:
            self._feeds.append(feed)
            del self._whole[0]
        self._held: list[str] = []

    def feed(self, text: str) -> str:
        """Take the next piece: what can be said now."""
        for feed in self._feeds:
            if not text:
                return ""
            text = feed.feed(text)
        if not self._whole:
            return text
        self._held.append(text)
        return ""

    async def close(self) -> str:
        """Take the end: what is left to say."""
        text = ""
        for feed in self._feeds:
            text = self._end(feed, text)
        if self._whole:
            text = "".join([*self._held, text])
        for member in self._whole:
            text = await self._process(member, text)
        return text

    def _end(self, feed: Feed, text: str) -> str:
        said = (feed.feed(text) if text else "") + feed.close()
        self._note(feed)
        return said

    def _note(self, given: object) -> None:
        value = getattr(given, "value", None)
        self.value = self.value if value is None else value

    async def _process(self, member: BasePostprocess, text: str) -> str:
        if (feed := member.open()) is not None:
            return self._end(feed, text)
        given = member.process(text)
        if inspect.isawaitable(given):
            given = await given
        if isinstance(given, str):
            self._note(given)
            return str(given)
        if given is None:
            raise AgentFailed(f"The post-processor {type(member).__name__} gave nothing.")
        self.value = given
        return text


class _Reading:
    """Passes the text on as it is, and makes something of the whole at its end."""

    def __init__(self, read: Any) -> None:
        self.value: Any = None
        self._read = read
        self._pieces: list[str] = []

    def feed(self, text: str) -> str:
        self._pieces.append(text)
        return text

    def close(self) -> str:
        self.value = self._read("".join(self._pieces))
        return ""


def _looks_like(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


class TypeMapperPP(BasePostprocess):
    """Makes the text into a value of a type; the text itself stays.

    `target_type` is anything pydantic knows: `int`, `date`, `list[str]`, a model. A text that is no such value is an
    `LLMError`.
    """

    _gives_value = True

    def __init__(self, target_type: Any) -> None:
        from pydantic import TypeAdapter

        self._type = TypeAdapter(target_type)
        self._name = getattr(target_type, "__name__", str(target_type))

    def open(self) -> Feed:
        """A feed whose `value` is the value."""
        return _Reading(self._read)

    def _read(self, text: str) -> Any:
        from pydantic import ValidationError

        try:
            return self._type.validate_strings(text.strip())
        except ValidationError:
            pass
        try:
            return self._type.validate_python(read_json(text))
        except (ValidationError, LLMError):
            raise LLMError(f"The language model's answer is no {self._name}.") from None


class DynamicTypePP(BasePostprocess):
    """Makes the text into the value it looks like: what JSON it is (a number, true, null, a list, an object), else a text."""

    _gives_value = True

    def open(self) -> Feed:
        """A feed whose `value` is the value."""
        return _Reading(_looks_like)


class SplitterPP(BasePostprocess):
    """Splits the text at a separator, or without one into its characters.

    The value is the list of parts. The text stays, and is sent part by part.
    """

    _gives_value = True

    def __init__(self, separator: str = "") -> None:
        self._separator = separator

    def open(self) -> Feed:
        """A feed that says whole parts."""
        return _Parts(self._separator)


class _Parts:
    """Says what ends with a separator."""

    def __init__(self, separator: str) -> None:
        self.value: list[str] = []
        self._separator = separator
        self._begun: list[str] = []

    def feed(self, text: str) -> str:
        if not self._separator:
            self._add(list(text))
            return text
        # A separator may begin in what was fed before: it is looked for with so much of that as it may have there.
        self._begun.append(text)
        overlap = len(self._separator) - 1
        before = "".join(self._begun[-1 - overlap : -1])[-overlap:] if overlap else ""
        if self._separator not in before + text:
            return ""
        *parts, rest = "".join(self._begun).split(self._separator)
        self._add(parts)
        self._begun = [rest] if rest else []
        return "".join(part + self._separator for part in parts)

    def close(self) -> str:
        rest, self._begun = "".join(self._begun), []
        if self._separator:
            self._add([rest])
        return rest

    def _add(self, parts: Sequence[str]) -> None:
        self.value += parts
        if len(self.value) > MAX_PARTS:
            raise AgentFailed("The answer has more parts than this server keeps.")
