"""A receiver of OTLP over HTTP that keeps what it is sent."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass
class Receiver:
    """Its address, and the spans it was sent, each with its attributes as a dictionary under `attributes`."""

    url: str = ""
    status: int = 200
    spans: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        self.headers.append(request.headers)
        body = await request.read()
        if self.status != 200:
            return web.Response(status=self.status)
        given = ExportTraceServiceRequest.FromString(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
        for each in given.resource_spans:
            resource = {pair.key: _value(pair.value) for pair in each.resource.attributes}
            for scope in each.scope_spans:
                self.spans += [_span(span, resource, scope.schema_url) for span in scope.spans]
        return web.Response(body=ExportTraceServiceResponse().SerializeToString())


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)


def _span(span: Any, resource: Mapping[str, Any], schema: str) -> dict[str, Any]:
    found = {"attributes": {pair.key: _value(pair.value) for pair in span.attributes}}
    found |= {"trace": span.trace_id.hex(), "id": span.span_id.hex(), "parent": span.parent_span_id.hex()}
    found |= {"name": span.name, "kind": span.kind, "error": span.status.message, "resource": resource}
    found |= {"links": [link.trace_id.hex() for link in span.links], "schema": schema}
    return found | {"seconds": (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9}


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """One on a free port of the loopback address."""
    made = Receiver()
    app = web.Application()
    app.router.add_post("/v1/traces", made.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()
