"""Reads one answer of the OpenAI chat protocol, streamed or whole, from its bytes."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from app.domain import Chunk, Usage
from app.errors import LLMError, LLMUnavailable
from app.llm.llm import Finish
from app.llm.refusals import EmptyAnswer, upstream_message
from app.llm.sse import Events
from app.llm.tokens import count, count_messages

MAX_TOKENS = 100_000_000
"""More tokens than this are no count of one call."""

_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
_WORD = re.compile(r"[a-z][a-z0-9_-]{0,39}", re.IGNORECASE)


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Text(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    """What is said in place of the content by a model that will not answer (OpenAI's API reference, "Create chat completion")."""
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    delta: _Text | None = None
    message: _Text | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: Any = None
    model: str | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Event)


class _Asked:
    """A tool's call as far as it has come."""

    __slots__ = ("arguments", "id", "name")

    def __init__(self) -> None:
        self.id = self.name = ""
        self.arguments: list[str] = []

    def given(self) -> dict[str, str]:
        """The call as the content of a chunk of type `tool_call`."""
        return {"id": self.id, "name": self.name, "arguments": "".join(self.arguments) or "{}"}


class Answer:
    """What has come of one answer so far.

    The first byte tells its form, whatever the content type says: `{` is a whole completion, which some servers send to
    a streamed request; `<` is a web page; all else is a stream of events.
    """

    def __init__(self, messages: Any, tools: Any = (), *, max_bytes: int, max_line: int) -> None:
        """`messages` and `tools` are those sent, to be counted if the upstream does not. More bytes than that: `LLMError`."""
        self.done = False
        """Whether `[DONE]` has come."""
        self.seen = False
        """Whether anything of the protocol has come."""
        self.error: LLMError | None = None
        """What was wrong after the chunks that `feed` gave last."""
        self.said: list[str] = []
        self._chunks: list[Chunk] = []
        self._messages, self._tools = messages, tools
        self._room = max_bytes
        self._events: Events | None = Events(max_line)
        self._whole: list[bytes] = []
        self._begun = False
        self._reason: str | None = None
        self._usage: Any = None
        self._model: str | None = None
        self._calls: dict[int, _Asked] = {}

    def feed(self, piece: bytes) -> list[Chunk]:
        """The chunks that `piece` completes; `LLMError` if it is not of the protocol or tells of an error."""
        self._room -= len(piece)
        if self._room < 0:
            raise LLMError("The language model's answer is too long.")
        if not self._begun:
            self._begin(piece)
        if self._events is None:
            self._whole.append(piece)
            return []
        try:
            for data in self._events.feed(piece):
                self._take(data)
        except LLMError as error:
            if not self._chunks:
                raise
            self.error = error
        return self._given()

    def end(self) -> list[Chunk]:
        """The chunks that the end of the connection completes."""
        if self._events is None:
            self._take(b"".join(self._whole))
            self.done = True
        elif not self.done:
            try:
                self._take(b"\n".join(self._events.end()))
            except LLMError:
                if not self.seen:
                    raise  # otherwise it is half an event: the connection was cut
        return self._given()

    def finish(self) -> Finish:
        """How it ended; `LLMError` if there was no answer at all. What was begun of a tool's call when it broke off is lost."""
        reason = self._reason or ("stop" if self.done else "cut")
        if not self.seen:
            raise LLMError(
                "The language model's server answered nothing: check its address, base_url or OPENAI_BASE_URL."
            )
        if not self.said and reason == "cut":
            raise LLMUnavailable("The language model's server broke off before the answer began.")
        if not self.said and reason == "stop":
            raise EmptyAnswer(self._counted())
        return Finish(reason, self._counted(), self._model)

    def _begin(self, piece: bytes) -> None:
        head = piece.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        self._begun = bool(head)
        if head == b"<":
            raise LLMError(
                "The language model's server sent a web page: check its address, base_url or OPENAI_BASE_URL."
            )
        if head == b"{":
            self._events = None

    def _given(self) -> list[Chunk]:
        given, self._chunks = self._chunks, []
        return given

    def _take(self, data: bytes) -> None:
        if self.done or not data:
            return
        if data == b"[DONE]":
            self._calls_end()
            self.done = self.seen = True
            return
        event = _decode(data)
        if event.error is not None:
            said = upstream_message(event.error)
            raise LLMError(f"The language model's server failed: {said}" if said else None)
        self.seen = True
        if event.usage is not None:
            self._usage = event.usage
        if self._model is None and event.model and len(event.model) <= 200 and event.model.isprintable():
            self._model = event.model
        if event.choices:
            self._choice(event.choices[0])

    def _choice(self, choice: _Choice) -> None:
        if text := choice.delta or choice.message:
            if thought := text.reasoning_content or text.reasoning:
                self._say(thought, "thinking")
            if said := text.content or text.refusal:
                self._say(said, "text")
            for at, call in enumerate(text.tool_calls or ()):
                self._call(at if call.index is None else call.index, call)
        if choice.finish_reason:
            self._calls_end()
            self._reason = choice.finish_reason if _WORD.fullmatch(choice.finish_reason) else "stop"

    def _call(self, index: int, piece: _ToolCall) -> None:
        """Add to a tool's call. Some servers number none of them, but give each an id."""
        call = self._calls.get(index)
        if call is not None and piece.id and call.id not in ("", piece.id):
            index = max(self._calls) + 1
            call = None
        if call is None:
            call = self._calls[index] = _Asked()
        call.id = call.id or piece.id or ""
        if piece.function:
            call.name = call.name or piece.function.name or ""
            call.arguments.append(piece.function.arguments or "")

    def _calls_end(self) -> None:
        """Say the calls of tools, each whole: half of one is of no use to anybody."""
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if call.name:
                self._say(msgspec.json.encode(call.given()).decode(), "tool_call")

    def _say(self, content: str, content_type: str) -> None:
        """Add a chunk; what comes in one piece with its neighbour of the same type becomes one with it."""
        self.said.append(content)
        if content_type != "tool_call" and self._chunks and self._chunks[-1].content_type == content_type:
            content = self._chunks.pop().content + content
        self._chunks.append(Chunk(content, content_type))

    def _counted(self) -> Usage:
        given = self._usage if isinstance(self._usage, dict) else {}
        prompt, completion = _tokens(given, "prompt_tokens"), _tokens(given, "completion_tokens")
        if not prompt or completion is None or (self.said and not completion):
            return Usage(
                prompt or count_messages(self._messages, self._tools),
                completion or count("".join(self.said)),
                estimated=True,
            )
        return Usage(
            prompt,
            completion,
            cached=min(_tokens(given.get("prompt_tokens_details"), "cached_tokens") or 0, prompt),
            reasoning=_tokens(given.get("completion_tokens_details"), "reasoning_tokens") or 0,
        )


def _decode(data: bytes) -> _Event:
    try:
        return _decoder.decode(data)
    except ValueError:
        if rb"\ud" not in data.lower():
            raise LLMError("The language model's server sent what is not of the OpenAI protocol.") from None
    # Some servers cut the escaped pair of an emoji in two: what is left of it is shown as U+FFFD.
    try:
        text = json.dumps(json.loads(data), ensure_ascii=False)
        return _decoder.decode(_LONE_SURROGATE.sub("\ufffd", text))
    except (ValueError, RecursionError):
        raise LLMError("The language model's server sent what is not of the OpenAI protocol.") from None


def _tokens(given: Any, name: str) -> int | None:
    value = given.get(name) if isinstance(given, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS else None
