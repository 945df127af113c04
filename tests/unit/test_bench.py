"""The benchmark's arithmetic and its reading of what servers send; it is run, not tested, by `./scripts/bench`."""

from __future__ import annotations

import json

import pytest

from bench.__main__ import LARGE, MEASURES, arguments
from bench.client import Answer, Caller, request, unchunked
from bench.relays import event
from bench.table import Row, percentile, ratio_of, rendered, rows
from bench.targets import Relay
from bench.upstream import order, stamp, whole


def test_the_ratio_is_the_median_of_each_rounds_own() -> None:
    assert ratio_of([10, 300, 22], [10, 100, 20]) == pytest.approx(1.1)


@pytest.mark.parametrize(("percent", "value"), [(50, 5), (99, 10), (100, 10), (1, 1)])
def test_a_percentile_is_a_value_that_was_measured(percent: float, value: float) -> None:
    assert percentile(range(10, 0, -1), percent) == value


def test_a_row_says_whether_its_bar_is_met() -> None:
    figures = {
        "whole": {"ours": [100.0, 120.0], "aiohttp": [100.0, 100.0], "httpx": [300.0, 300.0], "asgi": [20.0, 20.0]},
        "streamed": {"ours": [16.0], "aiohttp": [10.0], "httpx": [30.0], "asgi": [5.0]},
        "first": {"ours": [4.2], "aiohttp": [1.0]},
    }
    found = [(row.ratio, row.met) for row in rows(figures)]
    assert found == [("1.10", True), ("1.60", False), ("", True)]


def test_the_memory_of_an_idle_worker_is_the_first_that_was_seen() -> None:
    (row,) = rows({"memory": {"ours": [119.0, 180.0], "aiohttp": [60.0, 61.0]}})
    assert (row.ours, row.met) == ("119 MiB", True)


def test_a_step_costs_what_a_message_with_many_costs_more() -> None:
    (row,) = rows({"steps": {"0": [800.0, 1000.0, 900.0], "50": [2800.0, 3100.0, 4900.0]}})
    assert (row.ours, row.met) == ("42.0 µs", True)


def test_a_table_is_markdown_with_even_columns() -> None:
    lines = rendered(("what", "met?"), [("a longer one", "yes")]).splitlines()
    assert lines == ["| what         | met? |", "|--------------|------|", "| a longer one | yes  |"]
    assert Row("x", "1", met=False).cells() == ("x", "1", "", "", "", "NO")


def test_the_upstream_does_as_the_last_order_says() -> None:
    assert order(b'{"messages": "[[3 1]] and then [[100 0.02]]"}') == (100, 0.02)
    assert order(b'{"messages": "nothing"}') == (3, 0.0)


def test_a_whole_answer_is_read_with_its_stamps() -> None:
    answer = Answer(0.0, [(1.0, whole(3))])
    assert answer.status == 200
    assert len(answer.stamps()) == 3
    assert answer.json()["usage"]["completion_tokens"] == 3


def test_a_stamp_cut_in_two_came_with_its_second_half() -> None:
    first, second = stamp(), b"0000000002.500000 "
    answer = Answer(0.0, [(1.0, b"x" + first), (2.0, second[:9]), (3.0, second[9:] + b"event: end" + second)])
    assert answer.stamps() == [(float(first), 1.0), (2.5, 3.0)]


def test_a_chunked_body_is_put_together() -> None:
    assert unchunked(b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n") == b"abc0123456789"


def test_a_request_has_the_length_of_its_body() -> None:
    head, _, body = request("POST", "/chat", {"text": "ä"}, authorization="Bearer x").partition(b"\r\n\r\n")
    assert head.startswith(b"POST /chat HTTP/1.1\r\n")
    assert f"content-length: {len(body)}".encode() in head
    assert json.loads(body) == {"text": "ä"}


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_a_caller_knows_the_end_of_an_answer_however_it_is_cut(size: int) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    for raw in (whole(3), chunked):
        caller = Caller()
        caller.connection_made(_Sink())
        answering = caller.call(b"")
        answering.send(None)
        for at in range(0, len(raw), size):
            caller.data_received(raw[at : at + size])
        assert caller.so_far() == raw
        assert caller.answered
        answering.close()


class _Sink:
    def write(self, data: bytes) -> None:
        """Take it."""


async def test_a_relay_is_asked_the_same_again_and_again() -> None:
    plan = await Relay(program=None).plan(2, 3, "hi", stream=False)  # type: ignore[arg-type]  # no request is sent
    assert [len(requests) for requests in plan] == [3, 3]


def test_a_relay_makes_its_own_event_of_what_is_said() -> None:
    line = 'data: {"choices": [{"delta": {"content": "Hi"}}]}\n'
    assert event(line) == 'data: {"content": "Hi", "content_type": "text"}\n\n'
    assert event('data: {"choices": []}\n') is event("\n") is None
    assert event("data: [DONE]\n") == "data: [DONE]\n\n"


def test_the_large_measures_are_only_made_when_asked_for() -> None:
    assert arguments([]).only == [*MEASURES]
    assert arguments(["--large"]).only == [*MEASURES, *LARGE]
    assert arguments(["--only", "readers", "--quick"]).only == ["readers"]
    assert (arguments([]).rounds, arguments(["--quick"]).rounds) == (5, 2)
