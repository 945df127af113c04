"""The post-processor that takes the values of some keys out of an answer that is JSON."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from typing import Any, TypeAlias

from app.agent.postprocess import BasePostprocess, Feed
from app.errors import InvalidInput, LLMError
from app.llm.reading import read_json

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


class KeysMissing(LLMError):
    """The language model's answer has none of the `keys`."""

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__(f"The language model's answer has no JSON with {', '.join(keys)[:200]}.")
        self.keys = tuple(keys)


Part: TypeAlias = Generator[None, str, Any]
"""A part of the reader: it is sent the characters one by one, and returns when it has read its part."""


class JsonKeyExtractorPP(BasePostprocess):
    """Says the value of one key of the JSON object in the answer, or an object of several of its keys.

    The text of one key streams: a string is said as it comes, another value as JSON once it is whole. Several keys are
    said at the end as one object. Sentences and fences around the object do not matter, nor does an end that is cut
    off. The first value of a key counts; keys of objects inside the object do not. The answer's `value` is that of the
    key, or the object. An answer with none of the keys is an `LLMError`, `KeysMissing`.
    """

    def __init__(self, target_key: str | None = None, *, target_keys: Sequence[str] | None = None) -> None:
        if (target_key is None) == (not target_keys) or isinstance(target_keys, str):
            raise InvalidInput(
                "JsonKeyExtractorPP takes either a target_key or a list of target_keys.", param="target_key"
            )
        self._key = target_key
        self._keys = tuple(target_keys or ())

    def open(self) -> Feed:
        """A feed that says the value, or values, of the keys."""
        return _Keys([self._key], speaks=True) if self._key is not None else _Keys(self._keys, speaks=False)


class _Keys:
    """Reads the outermost objects of a text, character by character, and remembers the values of the wanted keys."""

    def __init__(self, keys: Sequence[str], *, speaks: bool) -> None:
        self.value: Any = None
        self._keys = keys
        self._speaks = speaks
        self._found: dict[str, Any] = {}
        self._key: str | None = None
        """The wanted key whose value is being read; None for all that is skipped."""
        self._read: list[str] = []
        """What has been read of that value: the text of a string, else JSON."""
        self._is_text = False
        self._said: list[str] = []
        self._reader = self._objects()
        next(self._reader)

    def feed(self, text: str) -> str:
        send = self._reader.send
        for char in text:
            send(char)
        said, self._said = "".join(self._said), []
        return said

    def close(self) -> str:
        self._reader.close()
        if self._key is not None:
            self._keep("".join(self._read))
        if not self._found:
            raise KeysMissing(self._keys)
        if self._speaks:
            self.value = self._found[self._keys[0]]
            return "".join(self._said)
        self.value = {key: self._found[key] for key in self._keys if key in self._found}
        return json.dumps(self.value, ensure_ascii=False)

    def _objects(self) -> Part:
        """All of the text. In a sentence a brace may be anything: an object begins where a key follows it."""
        char = yield
        while True:
            if char != "{":
                char = yield
                continue
            char = yield from self._space()
            while char == '"':
                key = yield from self._string()
                char = yield from self._space()
                if char != ":":
                    break
                char = yield from self._value(key)
                if char == ",":
                    char = yield from self._space()

    def _space(self) -> Part:
        """The next character that is no space."""
        char = yield
        while char in " \t\r\n":
            char = yield
        return char

    def _value(self, key: str) -> Part:
        """A value, and what follows it."""
        char = yield from self._space()
        self._is_text = char == '"'
        self._key, self._read = (key if key in self._keys and key not in self._found else None), []
        if self._is_text:
            text = yield from self._string()
            char = yield from self._space()
        else:
            char = yield from self._other(char)
            text = "".join(self._read)
        if self._key is not None:
            self._keep(text)
        return char

    def _string(self) -> Part:
        """A string after its quote, decoded; as lenient as may be, for models write line ends into strings."""
        text: list[str] = []
        high = ""
        while (char := (yield)) != '"':
            if char == "\\":
                char = yield from self._escaped()
            if high:
                low = "\udc00" <= char <= "\udfff"
                char = (high + char).encode("utf-16", "surrogatepass").decode("utf-16") if low else "\ufffd" + char
                high = ""
            if "\ud800" <= char[-1] <= "\udbff":
                char, high = char[:-1], char[-1]
            elif "\udc00" <= char[-1] <= "\udfff":
                char = char[:-1] + "\ufffd"
            text.append(char)
            self._add(char)
        return "".join(text)

    def _escaped(self) -> Part:
        char = yield
        if char != "u":
            return _ESCAPES.get(char, char)
        digits = ""
        while len(digits) < 4:
            digits += yield
        try:
            return chr(int(digits, 16))
        except ValueError:
            return "\ufffd"

    def _other(self, char: str) -> Part:
        """What is no string, as it stands, and the character that ends it."""
        depth = 0
        while depth or char not in ",}]":
            self._add(char)
            if char == '"':
                escaped = False
                while (char := (yield)) != '"' or escaped:
                    self._add(char)
                    escaped = char == "\\" and not escaped
                self._add(char)
            depth += (char in "{[") - (char in "}]")
            char = yield
        return char

    def _add(self, text: str) -> None:
        if self._key is not None:
            self._read.append(text)
            if self._speaks and self._is_text:
                self._said.append(text)

    def _keep(self, text: str) -> None:
        """The value of the key is read, or cut off."""
        key, self._key = self._key, None
        if key is None or not (self._is_text or text.strip()):
            return
        try:
            self._found[key] = text if self._is_text else read_json(text.strip())
        except LLMError:
            self._found[key] = text.strip()
        if self._speaks and not self._is_text:
            self._said.append(json.dumps(self._found[key], ensure_ascii=False))
