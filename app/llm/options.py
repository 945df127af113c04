"""The options of one LLM call, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from app.errors import InvalidInput

Check = Callable[[Any], bool]

MAX_TOOLS = 128
"""As many functions as OpenAI's API takes."""
_NUMBERS = (int, float)


def _number(low: float, high: float) -> Check:
    # NaN compares false with both bounds, so it fails too.
    return lambda value: isinstance(value, _NUMBERS) and not isinstance(value, bool) and low <= value <= high


def _integer(low: int, high: int) -> Check:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _text(longest: int) -> Check:
    return lambda value: isinstance(value, str) and 0 < len(value) <= longest and value.isprintable()


def _is_stop(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return (
        isinstance(texts, list | tuple)
        and 1 <= len(texts) <= 4
        and all(isinstance(text, str) and 0 < len(text) <= 1000 for text in texts)
    )


def _is_bias(value: Any) -> bool:
    fits = _number(-100, 100)
    return (
        isinstance(value, Mapping)
        and len(value) <= 300
        and all(isinstance(token, str) and token.isdecimal() and fits(bias) for token, bias in value.items())
    )


def _is_format(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("type") in ("text", "json_object", "json_schema")


def _are_tools(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) <= MAX_TOOLS
        and all(isinstance(tool, Mapping) and isinstance(tool.get("type"), str) for tool in value)
    )


def _is_choice(value: Any) -> bool:
    return value in ("none", "auto", "required") if isinstance(value, str) else isinstance(value, Mapping)


# Ranges are those of OpenAI's API reference, "Create chat completion".
_OPTIONS: Mapping[str, tuple[Check, str]] = {
    "model": (_text(200), "a name of up to 200 characters"),
    "temperature": (_number(0, 2), "a number from 0 to 2"),
    "top_p": (_number(0, 1), "a number from 0 to 1"),
    "max_tokens": (_integer(1, 10_000_000), "an integer from 1 to 10000000"),
    "max_completion_tokens": (_integer(1, 10_000_000), "an integer from 1 to 10000000"),
    "n": (_integer(1, 1), "1: for other answers call again"),
    "logit_bias": (_is_bias, "a dictionary of up to 300 tokens, each with a number from -100 to 100"),
    "stop": (_is_stop, "a text or up to four texts"),
    "seed": (_integer(-(2**63), 2**63 - 1), "a 64-bit integer"),
    "presence_penalty": (_number(-2, 2), "a number from -2 to 2"),
    "frequency_penalty": (_number(-2, 2), "a number from -2 to 2"),
    "response_format": (_is_format, "a dictionary whose type is text, json_object or json_schema"),
    "reasoning_effort": (_text(20), "a word such as low, medium or high"),
    "user": (_text(200), "a text of up to 200 characters"),
    "tools": (_are_tools, f"a list of up to {MAX_TOOLS} dictionaries, each with a type"),
    "tool_choice": (_is_choice, "none, auto, required or a dictionary"),
    "parallel_tool_calls": (lambda value: isinstance(value, bool), "true or false"),
    # vLLM's and llama.cpp's, in the words of their APIs
    "top_k": (_integer(-1, 1_000_000), "an integer from -1 to 1000000"),
    "min_p": (_number(0, 1), "a number from 0 to 1"),
    "repetition_penalty": (_number(0, 10), "a number from 0 to 10"),
}
NAMES = tuple(_OPTIONS)


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` without those that are `None` (the default holds); `InvalidInput` names the first that cannot be."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if name not in _OPTIONS:
            raise InvalidInput(f"{name[:64]} is not an option of an LLM call.", param=name[:64])
        if value is None:
            continue
        is_valid, words = _OPTIONS[name]
        if not is_valid(value):
            raise InvalidInput(f"{name} must be {words}.", param=name)
        if value or name != "tools":
            found[name] = value
    return found
