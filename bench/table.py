"""From figures to a table: medians of ratios, beside the bars they must reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

Values = Mapping[str, Mapping[str, Sequence[float]]]
"""What was measured, by target, one value a round."""
WINDOWS = {
    "long": "equal windows",
    "long, short messages": "windows of 200 and 10",
    "long, summarised": "summarised",
}
"""What agents are given in long sessions."""
HEADER = ("what", "ours", "FastAPI+aiohttp", "ratio", "bar", "met?")


@dataclass(frozen=True)
class Row:
    """One line of the table; `met` is None where nothing must be reached."""

    what: str
    ours: str
    reference: str = ""
    ratio: str = ""
    bar: str = ""
    met: bool | None = None

    def cells(self) -> tuple[str, ...]:
        """Its columns."""
        met = {None: "", True: "yes", False: "NO"}[self.met]
        return self.what, self.ours, self.reference, self.ratio, self.bar, met


def ratio_of(ours: Sequence[float], reference: Sequence[float]) -> float:
    """The median of the ratios of each round: what else the machine did in a round it did to both."""
    return median(one / other for one, other in zip(ours, reference, strict=True))


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of all do not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, -(-len(ranked) * percent // 100).__int__() - 1)]


def rows(values: Values) -> list[Row]:
    """The rows that the figures allow."""
    found = [
        _against("CPU per SendMessage, not streamed, 64 at once", values, "whole", "µs", 1.25),
        _against("CPU per streamed chunk, 64 streams × 100 chunks", values, "streamed", "µs", 1.5),
        _limit("added time to first token, one caller, p50", values, "first", "ms", 5),
        _limit("memory of an idle worker", values, "memory", "MiB", 120),
    ]
    for kind in WINDOWS:
        found += [_lengths(kind, values, part, unit) for part, unit in (("CPU", "µs"), ("wall", "ms"))]
    found += [_stages(values), _hits(values)]
    found += [_answered(values), _journaled(values)]
    for kind, what in (("completions", "an answer"), ("completions, streamed", "a streamed chunk")):
        found += [_by_completions(values, kind, what, how) for how in ("in a session", "by itself")]
    return [row for row in found if row]


def _stages(values: Values) -> Row | None:
    if "calls" not in values:
        return None
    straight, staged = values["calls"]["straight"], values["calls"]["staged"]
    added = median(one - other for one, other in zip(staged, straight, strict=True))
    what = "CPU that the stages of the call path add to a call"
    return Row(what, _shown(added, "µs"), f"(client: {_shown(median(straight), 'µs')})", "", "≤ 150 µs", added <= 150)


def _hits(values: Values) -> Row | None:
    if "calls" not in values:
        return None
    a_second = 1e6 / median(values["calls"]["hit"])
    return Row("cache hits inside the process", f"{a_second:,.0f}/s", "", "", "≥ 5,000/s", a_second >= 5000)


def _answered(values: Values) -> Row | None:
    if "cached" not in values:
        return None
    taken = median(values["cached"]["ours"])
    return Row("a cached answer over HTTP, one caller, p50", _shown(taken, "ms"), "", "", "≤ 2 ms", taken <= 2)


def _journaled(values: Values) -> Row | None:
    if "steps" not in values:
        return None
    none, many = values["steps"].values()
    steps = max(map(int, values["steps"]))
    cost = median(more - less for more, less in zip(many, none, strict=True)) / steps
    what = f"CPU of a recorded step, of {steps} in a message"
    return Row(what, _shown(cost, "µs"), f"(without: {_shown(median(none), 'µs')})", "", "≤ 60 µs", cost <= 60)


def _by_completions(values: Values, kind: str, what: str, how: str) -> Row | None:
    if kind not in values:
        return None
    ours, other = values[kind]["ours"], values[kind][how]
    ratio = ratio_of(other, ours)
    sent = f"(SendMessage: {_shown(median(ours), 'µs')})"
    what = f"CPU of {what} by /v1/chat/completions, {how}"
    return Row(what, _shown(median(other), "µs"), sent, f"{ratio:.2f}", "≤ 1.1", ratio <= 1.1)


def _against(what: str, values: Values, key: str, unit: str, bar: float) -> Row | None:
    if key not in values:
        return None
    ours, reference = values[key]["ours"], values[key]["aiohttp"]
    ratio = ratio_of(ours, reference)
    return Row(
        what, _shown(median(ours), unit), _shown(median(reference), unit), f"{ratio:.2f}", f"≤ {bar}", ratio <= bar
    )


def _limit(what: str, values: Values, key: str, unit: str, bar: float) -> Row | None:
    if key not in values:
        return None
    # Memory is measured once a round, and only the first is that of a worker that has done nothing.
    ours, reference = (
        values[key][name][0] if key == "memory" else median(values[key][name]) for name in ("ours", "aiohttp")
    )
    return Row(what, _shown(ours, unit), _shown(reference, unit), "", f"≤ {bar} {unit}", ours <= bar)


def _lengths(kind: str, values: Values, part: str, unit: str) -> Row | None:
    key = f"{kind}, {part}"
    if key not in values:
        return None
    many, few = values[key]["10000"], values[key]["10"]
    ratio = ratio_of(many, few)
    return Row(
        f"{part} of a send, 10,000 messages against 10, {WINDOWS[kind]}",
        _shown(median(many), unit),
        f"(10: {_shown(median(few), unit)})",
        f"{ratio:.2f}",
        "≤ 1.2",
        ratio <= 1.2,
    )


def references(values: Values) -> list[Row]:
    """The other relays, for orientation."""
    names = {"asgi": "raw ASGI", "httpx": "FastAPI+httpx"}
    found = []
    for key, what, unit in (
        ("whole", "not streamed", "µs"),
        ("streamed", "per chunk", "µs"),
        ("first", "first token", "ms"),
    ):
        for name, title in names.items():
            if key in values:
                ours, other = values[key]["ours"], values[key][name]
                shown = f"ours is {ratio_of(ours, other):.2f} ×" if unit == "µs" else ""
                found.append(Row(f"{title}, {what}", _shown(median(other), unit), ratio=shown))
    return found


def _shown(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if abs(value) >= 100 else f"{value:.1f} {unit}"


def rendered(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with even columns."""
    widths = [max(len(line[column]) for line in [header, *lines]) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *map(line, lines)])
