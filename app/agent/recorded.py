"""Calls of a language model, recorded once and replayed from a file: tests of agents without a key.

A call is known by what is asked: its messages and options. Equal calls are answered in the order they were recorded.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from app.agent.plain import plain
from app.domain import Chunk, Usage
from app.errors import LLMError
from app.llm.llm import LLM, Finish

SECRET_OPTIONS = frozenset({"api_key", "header", "headers", "extra_headers", "base_url"})
"""Options that are never written down, for a key may stand in them."""
SHOWN = 40
"""The most lines of a difference that are shown."""


class NotRecorded(LLMError):
    """A call is not in the recording; the message shows how it differs from the one that is most like it."""

    code = "not_recorded"


class Recorded(LLM):
    """Replays the calls in the file `path`; with an `llm`, asks that and writes the file anew."""

    def __init__(self, path: Path, llm: LLM | None = None, *, secrets: Sequence[str] = ()) -> None:
        """A call in which one of the `secrets` stands is refused when recording. Keys of the `llm` are its own, and never seen here."""
        self._path, self._llm, self._secrets = path, llm, tuple(filter(None, secrets))
        self._seen: Counter[str] = Counter()
        self._calls: list[dict[str, Any]] = []
        if llm is None:
            if not path.is_file():
                raise NotRecorded(f"There is no recording {path.name}: record it once, with pytest --record.")
            self._calls = json.loads(path.read_text(encoding="utf-8"))["calls"]

    async def generate(self, messages: list[dict[str, Any]], **options: Any) -> AsyncGenerator[Chunk | Finish, None]:
        """Answer as recorded; `NotRecorded` for a call that is not."""
        asked = plain({"messages": messages, "options": _kept(options)})
        if self._llm is None:
            call = self._find(asked)
            for part in call["chunks"]:
                yield Chunk(part["content"], part["content_type"])
            yield Finish(call["finish"], msgspec.convert(call["usage"], Usage))
            return
        reply, chunks = self._llm.begin(messages, **options), []
        try:
            async for chunk in reply:
                chunks.append({"content_type": chunk.content_type, "content": chunk.content})
                yield chunk
        finally:
            await reply.close()
        said = reply.response
        finish = said.finish_reason or "stop"
        self._keep({**asked, "chunks": chunks, "finish": finish, "usage": msgspec.to_builtins(said.usage)})
        yield Finish(finish, said.usage)

    async def embed(self, texts: Sequence[str], *, model: str | None = None) -> list[list[float]]:
        """The embeddings as recorded."""
        asked = {"texts": list(texts), "model": model}
        if self._llm is None:
            found: list[list[float]] = self._find(asked)["embeddings"]
            return found
        made = await self._llm.embed(texts, model=model)
        self._keep({**asked, "embeddings": made})
        return made

    def _find(self, asked: dict[str, Any]) -> dict[str, Any]:
        same = [call for call in self._calls if all(call.get(name) == value for name, value in asked.items())]
        text = _lines(asked)
        self._seen[text] += 1
        if len(same) >= self._seen[text]:
            return same[self._seen[text] - 1]
        if same:
            raise NotRecorded(f"{self._path.name} has this call {len(same)} times; it is made once more:\n{text}")
        others = [_lines({name: call[name] for name in asked}) for call in self._calls if asked.keys() <= call.keys()]
        raise NotRecorded(f"This call is not in {self._path.name}:\n{_difference(text, others)}")

    def _keep(self, call: dict[str, Any]) -> None:
        body = json.dumps({"calls": [*self._calls, call]}, ensure_ascii=False, indent=1) + "\n"
        if any(json.dumps(secret, ensure_ascii=False)[1:-1] in body for secret in self._secrets):
            raise LLMError("The call holds a secret of this process, and is not recorded.")
        self._calls.append(call)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(f"{self._path.name}.new")
        beside.write_text(body, encoding="utf-8")
        beside.replace(self._path)


def _kept(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in SECRET_OPTIONS}


def _lines(asked: dict[str, Any]) -> str:
    return json.dumps(asked, ensure_ascii=False, indent=1, sort_keys=True)


def _difference(text: str, others: Sequence[str]) -> str:
    """How a call differs from the recorded one that is most like it."""
    if not others:
        return text
    nearest = max(others, key=lambda other: difflib.SequenceMatcher(None, other, text).quick_ratio())
    lines = difflib.unified_diff(nearest.splitlines(), text.splitlines(), "recorded", "asked", lineterm="", n=1)
    return "\n".join(list(lines)[:SHOWN])
