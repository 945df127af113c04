"""A multipart form (RFC 7578) read part by part while it arrives: nothing of it is kept."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncIterator
from enum import Enum
from typing import TYPE_CHECKING

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from app.errors import InvalidInput

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_PARTS = 20
MAX_FIELD_BYTES = 1000
_MEDIA_TYPE = re.compile(r"[\w.+-]{1,60}/[\w.+-]{1,60}", re.ASCII)


class Mark(Enum):
    """What the parser has passed."""

    PART_END = 1
    FORM_END = 2


class Part:
    """One part. A file has a `filename`, as its sender gave it; what is not read of a part is passed over."""

    def __init__(self, form: Form, headers: dict[bytes, bytes]) -> None:
        _, options = parse_options_header(headers.get(b"content-disposition", b""))
        filename = options.get(b"filename")
        self.name = options.get(b"name", b"").decode(errors="replace")
        self.filename = filename.decode(errors="replace") if filename is not None else None
        given = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        self.media_type = given if _MEDIA_TYPE.fullmatch(given) else None
        self._form = form
        self._is_read = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """The content, as it comes."""
        while not self._is_read:
            event = await self._form.next_event()
            if isinstance(event, bytes):
                yield event
            else:
                self._is_read = True

    async def text(self) -> str:
        """The content of a field."""
        content = b""
        async for chunk in self.chunks():
            content += chunk
            if len(content) > MAX_FIELD_BYTES:
                raise InvalidInput(f"A field of the form has more than {MAX_FIELD_BYTES} bytes.")
        return content.decode(errors="replace")


class Form:
    """A form of a request; `InvalidInput` for what is none."""

    def __init__(self, content_type: str, body: AsyncIterator[bytes]) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data":
            raise InvalidInput("Send a form of the type multipart/form-data.", param="content-type")
        if not boundary or len(boundary) > 70:  # RFC 2046, section 5.1.1
            raise InvalidInput("The content type names no boundary of the form.", param="content-type")
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": lambda: self._events.append(Mark.PART_END),
            "on_end": lambda: self._events.append(Mark.FORM_END),
        }
        self._parser = MultipartParser(boundary, callbacks)
        self._body = body
        self._events: deque[Part | bytes | Mark] = deque()
        self._parts = 0

    async def parts(self) -> AsyncIterator[Part]:
        """Each part, to be read before the next one is asked for."""
        while (event := await self.next_event()) is not Mark.FORM_END:
            if isinstance(event, Part):
                yield event
                async for _ in event.chunks():
                    pass

    async def next_event(self) -> Part | bytes | Mark:
        """What comes next of the form."""
        while not self._events:
            chunk = await anext(self._body, None)
            if chunk is None:
                raise InvalidInput("The form breaks off before its end.")
            try:
                self._parser.write(chunk)
            except FormParserError:
                raise InvalidInput("The body is not a valid multipart form.") from None
        return self._events.popleft()

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidInput(f"The form has more than {MAX_PARTS} parts.")
        self._headers: dict[bytes, bytes] = {}
        self._field = self._value = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _headers_finished(self) -> None:
        self._events.append(Part(self, self._headers))

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(data[start:end])
