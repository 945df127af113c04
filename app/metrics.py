"""Numbers for Prometheus: each process counts in its own place of a shared memory, and any of them tells the sums.

A place outlives its process, so that the next one in it goes on counting: a sum never falls while `serve` runs. Labels are few and never
users, sessions or words. The format is Prometheus's text format 0.0.4.
"""

from __future__ import annotations

import json
import mmap
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

CELLS = 8192
"""How many numbers a process has; what comes when they are used up is counted in `DROPPED` alone."""
PLACE = CELLS * 8 + 1_048_576
"""Bytes of one process: its numbers, and then their names, one a line."""
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
"""Upper bounds of a histogram's buckets, in seconds."""


class Family(NamedTuple):
    """A metric: all numbers of one name."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


REQUESTS = Family(
    "chattable_http_requests_total", "counter", "Requests, by route and status.", ("method", "route", "status")
)
FIRST_BYTE = Family(
    "chattable_http_first_byte_seconds", "histogram", "Time until an answer begins, by route.", ("method", "route")
)
RUNS = Family("chattable_runs_total", "counter", "Runs that this server has ended, by their end.", ("agent", "status"))
RUN_SECONDS = Family("chattable_run_seconds", "histogram", "Time from a message to the end of its run.", ("agent",))
CALLS = Family("chattable_llm_calls_total", "counter", "Calls of language models.", ("model", "status", "from_cache"))
CALL_SECONDS = Family("chattable_llm_call_seconds", "histogram", "How long calls that were made took.", ("model",))
TOKENS = Family("chattable_llm_tokens_total", "counter", "Tokens of calls.", ("model", "kind"))
COST = Family("chattable_llm_cost_total", "counter", "Cost of calls, in the currency of models.toml.", ("model",))
CPU = Family("chattable_process_cpu_seconds_total", "counter", "CPU time of the server's processes.")
MEMORY = Family("chattable_process_resident_bytes", "gauge", "Resident memory of the server's processes.")
LIVE = Family("chattable_live_runs", "gauge", "Runs that this server conducts now.")
CONNECTIONS = Family("chattable_database_connections", "gauge", "Database connections in use.")
DRAINING = Family("chattable_draining_processes", "gauge", "Processes that take no more work, because they end.")
DROPPED = Family("chattable_metrics_dropped_total", "counter", "Numbers that found no room.")
DATABASE = Family("chattable_database_up", "gauge", "Whether the database answers.")
JOBS = Family("chattable_jobs", "gauge", "Jobs of the whole platform, by state.", ("state",))
UNENDED = Family("chattable_unended_runs", "gauge", "Runs of the whole platform that have not ended.", ("status",))
FAMILIES = {family.name: family for family in (REQUESTS, FIRST_BYTE, RUNS, RUN_SECONDS, CALLS, CALL_SECONDS, TOKENS)}
FAMILIES |= {family.name: family for family in (COST, CPU, MEMORY, LIVE, CONNECTIONS, DRAINING, DROPPED)}
SPANS_SENT = Family("chattable_spans_sent_total", "counter", "Spans that the receiver of OpenTelemetry took.")
SPANS_DROPPED = Family("chattable_spans_dropped_total", "counter", "Spans that found no room, or no receiver.")
FAMILIES |= {family.name: family for family in (DATABASE, JOBS, UNENDED, SPANS_SENT, SPANS_DROPPED)}

Numbers = Mapping[str, float]
"""Numbers by their names, which are JSON: the family's name, the label's values and, of histograms, which bucket."""


class Metrics:
    """The numbers of the process in `slot`. Without a file they are this process's alone."""

    def __init__(self, file: int | None = None, slots: int = 1, slot: int = 0) -> None:
        self._memory = mmap.mmap(-1 if file is None else file, slots * PLACE)
        self._slots = slots
        start = slot * PLACE
        view = memoryview(self._memory)
        self._cells = view[start : start + CELLS * 8].cast("d")
        self._names = view[start + CELLS * 8 : start + PLACE]
        known = _names(self._names)
        self._end = sum(len(name) + 1 for name in known)
        self._places: dict[bytes, int] = {name: number for number, name in enumerate(known)}
        self._fast: dict[tuple[str, tuple[str, ...], int | str], int] = {}
        for name, number in self._places.items():
            if FAMILIES[json.loads(name)[0]].kind == "gauge":
                self._cells[number] = 0.0
        self._dropped = self._place(DROPPED, (), "")

    def add(self, family: Family, *labels: str, amount: float = 1.0) -> None:
        """Count."""
        self._cells[self._place(family, labels, "")] += amount

    def set(self, family: Family, amount: float) -> None:
        """Say how much it is now."""
        self._cells[self._place(family, (), "")] = amount

    def observe(self, family: Family, seconds: float, *labels: str) -> None:
        """Count a time in its bucket, and in the sum."""
        self._cells[self._place(family, labels, bisect_left(BOUNDS, seconds))] += 1
        self._cells[self._place(family, labels, "sum")] += seconds

    def total(self) -> Numbers:
        """The sums over all processes that share the memory."""
        sums: dict[str, float] = {}
        with memoryview(self._memory) as view:
            for slot in range(self._slots):
                start = slot * PLACE
                with (
                    view[start : start + CELLS * 8] as raw,
                    raw.cast("d") as cells,
                    view[start + CELLS * 8 : start + PLACE] as names,
                ):
                    for number, name in enumerate(_names(names)):
                        sums[name.decode()] = sums.get(name.decode(), 0.0) + cells[number]
        return sums

    def _place(self, family: Family, labels: tuple[str, ...], part: int | str) -> int:
        key = (family.name, labels, part)
        place = self._fast.get(key)
        if place is None:
            place = self._fast[key] = self._named(json.dumps([family.name, list(labels), part]).encode())
        return place

    def _named(self, name: bytes) -> int:
        if name in self._places:
            return self._places[name]
        end = self._end + len(name) + 1
        if len(self._places) >= CELLS or end >= len(self._names):
            return self._dropped
        self._names[self._end : end] = name + b"\n"
        self._end = end
        return self._places.setdefault(name, len(self._places))


def named(family: Family, *labels: str) -> str:
    """The name of one number, for those that are not counted but looked up."""
    return json.dumps([family.name, list(labels), ""])


def _names(area: memoryview) -> list[bytes]:
    """The names that are whole: another process may be writing the next one."""
    return bytes(area).partition(b"\0")[0].split(b"\n")[:-1]


def exposition(numbers: Numbers) -> str:
    """The numbers as Prometheus reads them."""
    found: dict[str, dict[tuple[str, ...], dict[int | str, float]]] = {}
    for name, value in numbers.items():
        family, labels, part = json.loads(name)
        found.setdefault(family, {}).setdefault(tuple(labels), {})[part] = value
    lines: list[str] = []
    for name, family in FAMILIES.items():
        if series := found.get(name):
            lines += [f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}"]
            for labels in sorted(series):
                lines += _lines(family, list(zip(family.labels, labels, strict=True)), series[labels])
    return "\n".join(lines) + "\n"


def _lines(family: Family, labels: list[tuple[str, str]], parts: Mapping[int | str, float]) -> Iterator[str]:
    if family.kind != "histogram":
        yield f"{family.name}{_braced(labels)} {parts['']:.17g}"
        return
    count = 0.0
    for number, bound in enumerate([*map(str, BOUNDS), "+Inf"]):
        count += parts.get(number, 0.0)
        yield f"{family.name}_bucket{_braced([*labels, ('le', bound)])} {count:.17g}"
    yield f"{family.name}_sum{_braced(labels)} {parts.get('sum', 0.0):.17g}"
    yield f"{family.name}_count{_braced(labels)} {count:.17g}"


def _braced(labels: Iterable[tuple[str, str]]) -> str:
    escaped = [f'{name}="{_escaped(value)}"' for name, value in labels]
    return f"{{{','.join(escaped)}}}" if escaped else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
