"""A template is rendered once, and ends itself when it runs away."""

import asyncio
from typing import Any

import pytest

from app.agent.templates import MAX_OUTPUT, MAX_TEMPLATE, render
from app.errors import AgentFailed


async def test_values_are_data_and_never_a_template() -> None:
    """Of the seeds' faults: placeholder values rendered as templates."""
    values = {"query": "{{ 7 * 7 }} {% for %}", "history": "{{ query }} {# x #}"}
    assert await render("{{query}}|{{ history }}", values) == "{{ 7 * 7 }} {% for %}|{{ query }} {# x #}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for a in items %}{{ loop.index }}/{{ loop.length }}:{{ a }} {% endfor %}", "1/2:x 2/2:y "),
        ("{{ 1 ~ 'a' ~ items[0] }} {{ 2 * 3 }} {{ 2 ** 8 }} {{ [1] + [2] }}", "1ax 6 256 [1, 2]"),
        ("{{ 'ab' | upper | replace('A', 'c') }} {{ items | sort | join(',') }}", "cB x,y"),
        ("{{ '%s is %5d' | format('x', 3) }} {{ '{:>3}'.format(1) }}", "x is     3   1"),
        ("{{ missing | default('none') }}{% if other is defined %}!{% endif %}\n", "none\n"),
        ("{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice('ab') }}", "abab"),
        ("{{ 'a' }}{{ 5 }}{{ 'b' | upper }}{{ 'c' ~ 'd' }}{{ none }}", "a5BcdNone"),
        ("{% set x %}{{ items[0] }}!{% endset %}{{ x }}", "x!"),
    ],
)
async def test_what_templates_are_for_works(source: str, expected: str) -> None:
    assert await render(source, {"items": ["x", "y"]}) == expected


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}", "too long"),
        ("{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}", "too long"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% for a in range(100000) %}{{ 'x' * 100 }}{% endfor %}", "longer than"),
        ("{% set x %}{% for a in range(100000) %}{{ 'x' * 1000 }}{% endfor %}{% endset %}", "longer than"),
        ("{% set n = namespace(x='aa') %}{% for a in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "longer than"),
        ("{% set n = namespace(x='aa') %}{% for a in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}", "longer than"),
        ("{{ range(1000000) | list }}", "more than"),
        ("{{ 'x' * 10 ** 9 }}", "too large"),
        ("{{ 10 ** 10 ** 8 }}", "too large"),
        ("{{ (range(100000) | list) * 50 }}", "too large"),
        ("{{ 'x' | center(10 ** 9) }}", "more than"),
        ("{{ 'x'.ljust(1000000000) }}", "more than"),
        ("{{ '%1000000000d' | format(1) }}", "more than"),
        ("{{ '{:1000000000}'.format(1) }}", "more than"),
        ("{{ '%1000000000d' % 1 }}", "not with %"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ '{0.__class__}'.format(1) }}", "unsafe"),
        ("{{ items.append(1) }}", "unsafe"),
        ("{% include '/etc/passwd' %}", "TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% if %}", "wrong in line 1"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "too large to be compiled"),
    ],
)
async def test_a_runaway_or_a_break_out_is_ended_with_its_reason(source: str, reason: str) -> None:
    with pytest.raises(AgentFailed, match=reason):
        await render(source, {"items": []}, seconds=0.3)


async def test_the_event_loop_goes_on_while_a_template_takes_long() -> None:
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    ticking = asyncio.get_running_loop().create_task(tick())
    with pytest.raises(AgentFailed):
        await render("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", {}, seconds=0.5)
    ticking.cancel()
    assert turns > 3


async def test_placeholders_without_a_value_are_named() -> None:
    with pytest.raises(AgentFailed, match="no value for city, name"):
        await render("{{ name }} of {{ city }}, {{ query }}", {"query": "x"})


async def test_a_placeholder_that_lacks_an_attribute_says_so() -> None:
    with pytest.raises(AgentFailed, match="no attribute 'nme'"):
        await render("{{ a | default('') }}{{ user.nme }}", {"user": {"name": "Ada"}})


@pytest.mark.parametrize("values", [{}, {"big": "x" * MAX_OUTPUT}])
async def test_template_and_prompt_are_bounded(values: dict[str, Any]) -> None:
    with pytest.raises(AgentFailed, match="longer than"):
        await render("x{{big}}" if values else "x" * (MAX_TEMPLATE + 1), values)
