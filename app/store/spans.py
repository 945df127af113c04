"""Spans of runs that have ended, sent to a receiver of OpenTelemetry's protocol (OTLP over HTTP), by the packages of the extra `otel`.

What a run hands over waits in a queue with bounds, and a thread makes spans of it and sends them. When the receiver is away, or slower than
runs end, what finds no room is dropped and counted: telling of runs never holds them up.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from importlib.util import find_spec
from itertools import islice
from typing import TYPE_CHECKING
from urllib.parse import unquote

from app import metrics
from app.domain import Run, Step
from app.journal import genai
from app.journal.genai import Span
from app.metrics import Metrics

if TYPE_CHECKING:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

log = logging.getLogger(__name__)

MAX_WAITING = 20_000
"""How many spans may wait."""
MAX_BYTES = 64_000_000
"""How many bytes of input and output may wait with them."""
BATCH = 512
"""How many spans are sent at once, as many as OpenTelemetry's own processor does (`OTEL_BSP_MAX_EXPORT_BATCH_SIZE`)."""
PAUSE_SECONDS = 1.0
"""For how long spans are gathered."""
SEND_SECONDS = 10.0
"""What sending a batch may take, tries included (`OTEL_EXPORTER_OTLP_TIMEOUT`)."""
CLOSE_SECONDS = 3.0
Waiting = tuple[Run, Sequence[Step], int]
"""A run, its steps, and how many bytes these hold."""


def is_installed() -> bool:
    """Whether the packages of the extra are here. They are not imported for it."""
    with suppress(ModuleNotFoundError):
        return all(map(find_spec, ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")))
    return False


class Spans:
    """One for the process; `run()` does the work and belongs in a task. `content` says that what was said is sent too."""

    def __init__(
        self, endpoint: str, headers: Mapping[str, str], counted: Metrics, *, service: str, content: bool = False
    ) -> None:
        """The receiver's base address, to which `/v1/traces` is added (OTLP specification, "Endpoint URLs for OTLP/HTTP")."""
        self._endpoint = f"{endpoint.rstrip('/')}/v1/traces"
        self._headers = headers
        self._counted = counted
        self._service = service
        self._content = content
        self._waiting: deque[Waiting] = deque()
        self._count = self._bytes = 0
        self._news = asyncio.Event()
        self._sender: _Sender | None = None
        self._is_away = False

    def put(self, run: Run, steps: Sequence[Step]) -> None:
        """Have a run told of, with these steps; never waits. One that goes on elsewhere or later is told of by its steps alone."""
        size = sum(len(step.input or b"") + len(step.output or b"") for step in steps)
        if self._count + len(steps) + 1 > MAX_WAITING or self._bytes + size > MAX_BYTES:
            self._counted.add(metrics.SPANS_DROPPED, amount=len(steps) + 1)
            return
        self._waiting.append((run, steps, size))
        self._count += len(steps) + 1
        self._bytes += size
        self._news.set()

    async def run(self) -> None:
        """Send what waits, batch after batch, until cancelled."""
        while True:
            await self._news.wait()
            await asyncio.sleep(PAUSE_SECONDS)
            self._news.clear()
            await self._send_all()

    async def close(self) -> None:
        """Send what is left, if that takes no longer than a moment."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._send_all()
        if self._sender is not None:
            self._sender.close()

    async def _send_all(self) -> None:
        while self._waiting:
            run, steps, size = self._waiting.popleft()
            told = len(steps) + 1
            taken = [(run, steps)]
            while self._waiting and told + len(self._waiting[0][1]) < BATCH:
                run, steps, more = self._waiting.popleft()
                taken.append((run, steps))
                told, size = told + len(steps) + 1, size + more
            try:
                sent, lost = await asyncio.to_thread(self._send, taken)
            finally:
                self._count -= told
                self._bytes -= size
            self._counted.add(metrics.SPANS_SENT, amount=sent)
            if lost:
                self._counted.add(metrics.SPANS_DROPPED, amount=lost)
            if lost and not self._is_away:
                log.warning("Spans cannot be sent to OTEL_EXPORTER_OTLP_ENDPOINT; they are dropped until they can.")
            self._is_away = bool(lost)

    def _send(self, taken: Sequence[tuple[Run, Sequence[Step]]]) -> tuple[int, int]:
        """How many spans were sent, and how many were not. In a thread."""
        if self._sender is None:
            self._sender = _Sender(self._endpoint, self._headers, self._service)
        found = (span for run, steps in taken for span in genai.spans(run, steps, content=self._content))
        sent = lost = 0
        while batch := list(islice(found, BATCH)):
            if self._sender.send(batch):
                sent += len(batch)
            else:
                lost += len(batch)
        return sent, lost


class _Sender:
    """OpenTelemetry's own exporter, given spans that are made here and not by its tracer: they have happened already."""

    def __init__(self, endpoint: str, headers: Mapping[str, str], service: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource

        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # it has the receiver's address in every line
        self._exporter: OTLPSpanExporter = OTLPSpanExporter(endpoint, headers=dict(headers), timeout=SEND_SECONDS)
        self._resource: Resource = Resource.create({"service.name": service})

    def send(self, batch: Sequence[Span]) -> bool:
        """Whether the receiver took them."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        return self._exporter.export(list(self._made(batch))) is SpanExportResult.SUCCESS

    def close(self) -> None:
        """End the tries that go on."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # OpenTelemetry's own

    def _made(self, batch: Sequence[Span]) -> Iterator[ReadableSpan]:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import Link, SpanKind, Status, StatusCode

        scope = InstrumentationScope("chattable", schema_url=genai.SCHEMA)
        for span in batch:
            yield ReadableSpan(
                span.name,
                _context(span.trace, span.id),
                _context(span.trace, span.parent) if span.parent else None,
                self._resource,
                dict(span.attributes),
                links=[Link(_context(*span.continues))] if span.continues else (),
                kind=SpanKind.CLIENT if span.calls_out else SpanKind.INTERNAL,
                status=Status(StatusCode.ERROR, span.error) if span.error else Status(),
                start_time=_nanoseconds(span.begun),
                end_time=_nanoseconds(span.ended),
                instrumentation_scope=scope,
            )


def _context(trace: int, id: int) -> SpanContext:
    from opentelemetry.trace import SpanContext, TraceFlags

    return SpanContext(trace, id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000) * 1000


def headers_of(text: str) -> dict[str, str]:
    """Headers as `OTEL_EXPORTER_OTLP_HEADERS` has them (W3C Baggage): `name=value`, with commas, percent-encoded."""
    pairs = (part.partition("=") for part in text.split(",") if part.strip())
    return {name.strip().lower(): unquote(value.strip()) for name, _, value in pairs}
