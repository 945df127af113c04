"""The parts of `app.publish`, without a server."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from app.errors import AgentFailed
from app.publish import DataStreamer, MemoryPool


def test_cap_and_ttl_of_sessions_hold_at_once() -> None:
    """Of the seeds' faults: cap and TTL only at sweeps."""
    now = [0.0]
    pool = MemoryPool(ttl=10, max_items=2, clock=lambda: now[0])
    first = pool.get_or_create("a")
    pool.get_or_create("b")
    assert pool.get_or_create("a") is first
    pool.get_or_create("c")
    assert pool.size == 2
    assert pool.get_or_create("a") is first
    now[0] = 10.0
    assert pool.size == 0
    assert pool.get_or_create("a") is not first
    now[0] = 20.0
    assert pool.clean_expired() == 1


async def test_a_streamer_ends_once_and_takes_nothing_after() -> None:
    streamer = DataStreamer(timeout=60, model_name="MyModel")
    await streamer.send_data(content_type="text", content="Hello")
    await streamer.stop(stop_reason="stop")
    await streamer.stop(stop_reason="late")
    with pytest.raises(AgentFailed):
        await streamer.send_data("text", "more")
    body = json.loads(bytes((await streamer.start_non_streaming_openai()).body))
    assert (body["model"], body["choices"][0]["finish_reason"]) == ("MyModel", "stop")
    assert streamer.start_streaming_openai().media_type == "text/event-stream"


async def test_a_streamer_whose_time_is_over_ends_with_timeout() -> None:
    body = json.loads(bytes((await DataStreamer(timeout=0.01).start_non_streaming_openai()).body))
    assert body["choices"][0]["finish_reason"] == "timeout"


def test_importing_it_starts_nothing() -> None:
    code = "import sys, app.publish; assert 'app.main' not in sys.modules and 'app.servers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
