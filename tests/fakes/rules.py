"""What the fake upstream answers: by rule, and to tools and formats as literally as `agents/scripted_agent.py`, whose rules they are."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

DIRECTIVE = re.compile(r"\s*\[\[fault:\s*(.*?)\]\]\s*", re.DOTALL)


def _load(path: Path) -> ModuleType:
    """An agent's file, which is in no package."""
    spec = importlib.util.spec_from_file_location(f"rules_of_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_scripted = _load(Path(__file__).parents[2] / "agents/scripted_agent.py")


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, without what else it has."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(str(part["text"]) for part in content if "text" in part)


def answer(body: Mapping[str, Any]) -> str:
    """The text that answers a request."""
    messages = body["messages"]
    said = [DIRECTIVE.sub("", text_of(message)) for message in messages if message["role"] == "user"] or [""]
    last = text_of(messages[-1]) if messages[-1]["role"] == "tool" else said[-1]
    if last.lower().startswith("say "):
        return last[4:]
    filled = _scripted.formatted(body.get("response_format") or {}, last)
    if filled is not None:
        return json.dumps(filled, ensure_ascii=False)
    if messages[-1]["role"] == "tool":
        return f"The tool said: {last}"
    if "what was the first thing i said" in last.lower():
        return said[0]
    return f"You said: {last}{_attached(messages[-1])}"


def _attached(message: Mapping[str, Any]) -> str:
    """The types of a message's parts that are no text."""
    content = message.get("content")
    kinds = [part["type"] for part in content if part["type"] != "text"] if isinstance(content, list) else []
    return f" [{', '.join(kinds)}]" if kinds else ""


def tool_calls(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The calls that a request asks for: by `call NAME {json}; NAME {json}`, by its `tool_choice`, or by a tool's name."""
    tools, messages = body.get("tools"), body["messages"]
    text = text_of(messages[-1])
    if not tools:
        return []
    if messages[-1]["role"] == "user" and text.startswith("call "):
        asked = [call.strip().partition(" ") for call in text.removeprefix("call ").split(";")]
        return [_call(at, name, given) for at, (name, _, given) in enumerate(asked)]
    call = _scripted.called(tools, body.get("tool_choice"), text, _scripted.used(messages))
    return [_call(0, call[0], json.dumps(call[1], ensure_ascii=False))] if call else []


def _call(index: int, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": f"call_fake_{index}", "type": "function", "function": function}


def words(messages: Sequence[Mapping[str, Any]]) -> int:
    """How many words the messages have, which are the fake's tokens."""
    return sum(len(text_of(message).split()) for message in messages)


def vector(text: str, dimensions: int = 4) -> list[float]:
    """So many numbers, 32 at most, that tell one text from another."""
    return [byte / 256 for byte in sha256(text.encode()).digest()[:dimensions]]
