"""The report of a bench: one page of HTML that needs nothing else, its plots drawn in SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment

from app.store.benches import Column

COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
WIDTH, BAR, PLOT = 640, 26, 220
SHOWN = 2000
"""How much of a text is shown, in characters."""


PAGE = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ bench.name }}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #111 }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 } th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } th { text-align: left; background: #f4f4f5 }
pre { white-space: pre-wrap; margin: 0; font: 13px/1.4 ui-monospace, monospace } svg { display: block; margin: 1rem 0; max-width: 100% }
svg text { font: 12px system-ui, sans-serif } small { color: #555 }
</style></head><body>
<h1>{{ bench.name }}</h1>
<p>{{ bench.status }}{{ ': ' ~ bench.reason if bench.reason }} ·
{{ bench.rows }} rows{{ ', ' ~ bench.skipped ~ ' broken ones left out' if bench.skipped }}
· begun {{ bench.created_at.strftime('%Y-%m-%d %H:%M UTC') if bench.created_at }} · <small>{{ bench.id }}</small></p>
<h2>Scores</h2>
<svg viewBox="0 0 {{ width }} {{ bars | length * bar + 20 }}" role="img" aria-label="Mean score of each agent with its 95 % interval">
{% for b in bars %}
<text x="0" y="{{ loop.index0 * bar + 18 }}">{{ b.name }}</text>
<rect x="240" y="{{ loop.index0 * bar + 4 }}" width="{{ b.length }}" height="18" fill="{{ b.colour }}"/>
<line x1="{{ b.low }}" x2="{{ b.high }}" y1="{{ loop.index0 * bar + 13 }}" y2="{{ loop.index0 * bar + 13 }}"
stroke="#111" stroke-width="2"/>
<text x="{{ width - 50 }}" y="{{ loop.index0 * bar + 18 }}">{{ '%.3f' % b.score }}</text>
{% endfor %}
</svg>
<table><tr><th>agent<th class="n">score<th class="n">95 %<th class="n">items<th class="n">failed<th class="n">cost<th class="n">tokens
<th class="n">cached<th class="n">p50, s<th class="n">p95, s{% for name in scorers %}<th class="n">{{ name }}{% endfor %}</tr>
{% for c in columns %}
<tr><td>{{ c.name }}<td class="n">{{ '%.3f' % c.score }}<td class="n">{{ '%.3f – %.3f' % intervals[c.number] }}<td class="n">{{ c.items }}
<td class="n">{{ c.failed }}<td class="n">{{ '%.4f' % c.cost }}<td class="n">{{ c.tokens }}<td class="n">{{ c.cached }}
<td class="n">{{ '%.2f' % c.median }}<td class="n">{{ '%.2f' % c.p95 }}
{% for name in scorers %}<td class="n">{{ '%.3f' % c.scores[name] if name in c.scores }}{% endfor %}</tr>
{% endfor %}
</table>
{% if compared %}
<h2>Compared with {{ compared[0].first }}</h2>
<table><tr><th>agent<th class="n">rows<th class="n">difference<th class="n">95 %<th class="n">better<th class="n">worse
<th class="n">p<th>test<th class="n">cost of an item</tr>
{% for c in compared %}
<tr><td>{{ c.second }}<td class="n">{{ c.comparison.pairs }}<td class="n">{{ '%+.4f' % c.comparison.difference }}
<td class="n">{{ '%+.4f – %+.4f' % (c.comparison.low, c.comparison.high) }}
<td class="n">{{ c.comparison.better }}<td class="n">{{ c.comparison.worse }}
<td class="n">{{ '%.3g' % c.comparison.p }}<td>{{ c.comparison.test }}<td class="n">{{ '%.6f → %.6f' % c.costs }}</tr>
{% endfor %}
</table>
{% endif %}
<h2>How long answers take</h2>
<svg viewBox="0 0 {{ width }} {{ plot + 30 }}" role="img" aria-label="Seconds within which a share of the answers is there">
<line x1="40" x2="40" y1="0" y2="{{ plot }}" stroke="#999"/><line x1="40" x2="{{ width }}" y1="{{ plot }}" y2="{{ plot }}" stroke="#999"/>
{% for share in (25, 50, 75, 100) %}<text x="0" y="{{ plot - share / 100 * plot + 10 }}">{{ share }} %</text>{% endfor %}
{% for k in range(5) %}<text x="{{ 40 + k * (width - 90) / 4 }}" y="{{ plot + 16 }}">{{ '%.2g' % (longest * k / 4) }} s</text>{% endfor %}
{% for l in lines %}<polyline points="{{ l.points }}" fill="none" stroke="{{ l.colour }}"
stroke-width="2"><title>{{ l.name }}</title></polyline>{% endfor %}
</svg>
<h2>The worst answers</h2>
<table><tr><th>agent<th class="n">row<th class="n">score<th>input<th>expected<th>answer</tr>
{% for w in worst %}
<tr><td>{{ w.agent }}<td class="n">{{ w.row }}<td class="n">{{ '%.2f' % w.score if w.score is not none }}<td><pre>{{ w.input }}</pre>
<td><pre>{{ w.expected }}</pre><td><pre>{{ w.error or w.answer }}</pre></tr>
{% endfor %}
</table>
</body></html>
""")


def page(
    bench: Any,
    columns: Sequence[Column],
    intervals: Sequence[tuple[float, float]],
    compared: Sequence[Any],
    worst: Sequence[Mapping[str, Any]],
) -> str:
    """The page. `intervals` are those of the columns' scores, `compared` the other columns against the first."""
    scorers = sorted({name for column in columns for name in column.scores})
    longest = max((column.quantiles[-1] for column in columns if column.quantiles), default=0.0) or 1.0
    return PAGE.render(
        bench=bench,
        columns=columns,
        intervals=intervals,
        scorers=scorers,
        compared=compared,
        worst=[{name: _cut(value) for name, value in row.items()} for row in worst],
        bars=[_bar(at, column, intervals[at]) for at, column in enumerate(columns)],
        lines=[_line(at, column, longest) for at, column in enumerate(columns)],
        longest=longest,
        width=WIDTH,
        bar=BAR,
        plot=PLOT,
    )


def _cut(value: Any) -> Any:
    return f"{value[:SHOWN]} …" if isinstance(value, str) and len(value) > SHOWN else value


def _bar(at: int, column: Column, interval: tuple[float, float]) -> Mapping[str, Any]:
    room = WIDTH - 300
    low, high = (240 + room * min(1.0, max(0.0, end)) for end in interval)
    return {
        "name": column.name[:34],
        "score": column.score,
        "length": room * column.score,
        "low": low,
        "high": high,
        "colour": COLOURS[at % len(COLOURS)],
    }


def _line(at: int, column: Column, longest: float) -> Mapping[str, Any]:
    points = [
        f"{40 + seconds / longest * (WIDTH - 90):.1f},{PLOT - share / 20 * PLOT:.1f}"
        for share, seconds in enumerate(column.quantiles, 1)
    ]
    return {"name": column.name, "points": " ".join(points), "colour": COLOURS[at % len(COLOURS)]}
