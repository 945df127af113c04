"""Parts of a message's content, as OpenAI's chat completions have them: one look at them for every door that takes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, Field, WithJsonSchema

from app.agent.request import text_of
from app.api.fields import check_json
from app.domain import MAX_TEXT

Part: TypeAlias = dict[str, Any]
MAX_PARTS = 100
"""How many parts go along with a message of a session. How large they are together is bounded by the request's body."""
MAX_ADDRESS = 8000
"""The longest address of a picture that is elsewhere, in characters."""
_DATA = re.compile(r"data:[\w.+-]{1,100}/[\w.+-]{1,100}(?:;[\w.+-]{1,100}=[^;,\s]{0,100})*;base64,", re.IGNORECASE)
_ELSEWHERE = re.compile(r"https?://[^\s/?#]", re.IGNORECASE)


def parts_of(given: Sequence[Part], place: str = "") -> list[Part]:
    """Parts in the form that agents and servers are given; `ValueError` begins with the place of the first bad one.

    What is of none of the known kinds is passed on as it is.
    """
    parts = [
        check(part, f"{place}[{index}]") if (check := _CHECKS.get(str(part.get("type")))) else part
        for index, part in enumerate(given)
    ]
    if len(text_of(parts)) > MAX_TEXT:
        raise ValueError(f"{place} must have at most {MAX_TEXT} characters of text".lstrip())
    return parts


def _text(part: Part, place: str) -> Part:
    if not isinstance(part.get("text"), str):
        raise ValueError(f"{place}.text must be a text")
    return part


def _image(part: Part, place: str) -> Part:
    image = part.get("image_url")
    image = {"url": image} if isinstance(image, str) else image  # as some clients have it
    url = image.get("url") if isinstance(image, dict) else None
    if not isinstance(url, str):
        raise ValueError(f"{place}.image_url.url must be a text")
    is_address = _ELSEWHERE.match(url) and len(url) <= MAX_ADDRESS and url.isprintable() and " " not in url
    if not (is_address or _DATA.match(url)):
        raise ValueError(f"{place}.image_url.url must be a data: URL in base64, or an https: address")
    return {**part, "image_url": image}


def _audio(part: Part, place: str) -> Part:
    audio = part.get("input_audio")
    for name in ("data", "format"):
        if not (isinstance(audio, dict) and isinstance(audio.get(name), str) and audio[name]):
            raise ValueError(f"{place}.input_audio.{name} must be a text")
    return part


def _file(part: Part, place: str) -> Part:
    file = part.get("file")
    if not (isinstance(file, dict) and any(isinstance(file.get(name), str) for name in ("file_data", "file_id"))):
        raise ValueError(f"{place}.file.file_data must be a text")
    return part


_CHECKS: dict[str, Callable[[Part, str], Part]] = {
    "text": _text,
    "image_url": _image,
    "input_audio": _audio,
    "file": _file,
}


def _known(given: list[Part]) -> list[Part]:
    """Parts of the known kinds only, all of which can be stored."""
    check_json(given)
    for index, part in enumerate(given):
        if str(part.get("type")) not in _CHECKS:  # a list has no hash
            raise ValueError(f"[{index}].type must be one of {', '.join(_CHECKS)}")
    return parts_of(given)


def _schema(kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": ["type", kind], "properties": {"type": {"const": kind}, kind: value}}


def _fields(*required: str, **others: dict[str, Any]) -> dict[str, Any]:
    properties = {name: {"type": "string", "minLength": 1} for name in required} | others
    return {"type": "object", "required": list(required), "properties": properties}


_URL: dict[str, Any] = {
    "type": "string",
    "description": "`data:image/jpeg;base64,…`, or an https: address, which the model's server asks",
}
_PART: dict[str, Any] = {
    "anyOf": [
        _schema("text", {"type": "string"}),
        _schema("image_url", {"type": "object", "required": ["url"], "properties": {"url": _URL}}),
        _schema("input_audio", _fields("data", "format")),
        _schema("file", _fields("file_data", filename={"type": "string"})),
    ]
}
Parts = Annotated[
    list[Annotated[Part, WithJsonSchema(_PART)]], Field(min_length=1, max_length=MAX_PARTS), AfterValidator(_known)
]
