"""Renders prompts: Jinja2 in its sandbox, each template once, its size, its output and its time bounded.

Values are data: nothing in them is ever read as a template. A thread cannot be killed, so a template ends itself: every
turn of a loop, every call and every filter looks at the clock, and nothing between two looks can become large.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import lru_cache, wraps
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, UndefinedError, meta, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from app.errors import AgentFailed

MAX_TEMPLATE = 100_000
"""The longest template, in characters."""
MAX_OUTPUT = 1_000_000
"""The longest prompt, and the longest text inside a template, in characters."""
MAX_WORK = 10 * MAX_OUTPUT
"""How much text a rendering may make on its way, in characters."""
MAX_NUMBER = 100_000
"""The largest width, count or exponent a template may ask for; Jinja2's own bound for `range`."""
SECONDS = 5.0
"""How long a template may take."""
SMALL = 4_000
"""A template without loops and calls, and its values, of so many characters in all are rendered on the event loop."""
COMPILED = 256
"""How many compiled templates are kept."""

_WIDE = re.compile(r"[%:][^%{}]*(?:\d{6}|\*|\{)")
"""In a format, a width of six digits, or one that is an argument."""


class _Runaway(Exception):
    """A template that takes too long, or becomes too large."""


class _Allowance:
    """The time and the text that one rendering may still use."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._characters = MAX_WORK

    def look(self) -> None:
        """At the clock."""
        if time.monotonic() > self._until:
            raise _Runaway("it takes too long")

    def take(self, value: Any) -> Any:
        """A value that was made on the way."""
        if isinstance(value, str | list | tuple):
            self._characters -= len(value)
            if len(value) > MAX_OUTPUT or self._characters < 0:
                raise _Runaway(f"it is longer than {MAX_OUTPUT} characters")
        return value


_allowed: ContextVar[_Allowance] = ContextVar("render_allowed")


def _bound(left: Any, right: Any) -> int:
    """How large a product may be: of numbers not without end, but larger than a text."""
    are_numbers = isinstance(left, int | float) and isinstance(right, int | float)
    return 10**100 if are_numbers else MAX_OUTPUT


def _large(value: Any) -> bool:
    return isinstance(value, int) and abs(value) > MAX_NUMBER


def _output(value: Any) -> str:
    """What `{{ … }}` gives, as a text."""
    text: str = _allowed.get().take(value if isinstance(value, str) else str(value))
    return text


def _check_numbers(args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    if any(_large(value) for value in (*args, *kwargs.values())):
        raise _Runaway(f"it asks for more than {MAX_NUMBER}")


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that looks at the clock, and at the sizes it takes and gives."""

    @wraps(function)  # keeps what Jinja2 marks filters with
    def filter(*args: Any, **kwargs: Any) -> Any:
        _allowed.get().look()
        _check_numbers(args[1:], kwargs)
        if function.__name__ == "do_format":
            _check_widths(args[0])
        return _allowed.get().take(function(*args, **kwargs))

    return filter


def _check_widths(text: object) -> None:
    if _WIDE.search(str(text)):
        raise _Runaway(f"it asks for more than {MAX_NUMBER}")


def _watched(items: Iterable[Any]) -> Iterator[Any]:
    allowed = _allowed.get()
    for item in items:
        allowed.look()
        yield item


def _joined(parts: Iterable[Any]) -> str:
    return "".join(_counted(map(str, parts)))


def _counted(pieces: Iterable[str]) -> Iterator[str]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_OUTPUT:
            raise _Runaway(f"it is longer than {MAX_OUTPUT} characters")
        yield piece


class _Rewriter(NodeTransformer):
    """Puts a look at the clock into every loop, and at its size into every concatenation."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 - the visitor's protocol
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_watched", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802 - as above
        self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "_joined", [], [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox, with bounds."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(_joined)  # what blocks and macros are put together with

    def __init__(self) -> None:
        super().__init__(undefined=StrictUndefined, finalize=_output, keep_trailing_newline=True, autoescape=False)
        self.filters = {name: _bounded(filter) for name, filter in self.filters.items()}
        self.filters |= {"_watched": _watched, "_joined": _joined}
        del self.globals["lipsum"]

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - the base's names: a call may have its own `self`
        """Make a call, which is where a template might take long or ask for too much."""
        _allowed.get().look()
        _check_numbers(args, kwargs)
        if getattr(__obj, "__name__", "") in ("format", "format_map"):
            _check_widths(getattr(getattr(__obj, "__wrapped__", __obj), "__self__", ""))
        return _allowed.get().take(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Work out an operator, unless what comes of it would be too large."""
        _allowed.get().look()
        if operator == "%" and isinstance(left, str | bytes):
            raise _Runaway("texts are formatted with ~ and filters here, not with %")
        if operator == "**" and (_large(left) or abs(right) > 100):
            raise _Runaway("a power is too large")
        if operator == "*":
            sizes = [len(side) if hasattr(side, "__len__") else abs(side) for side in (left, right)]
            if sizes[0] * sizes[1] > _bound(left, right):
                raise _Runaway("a product is too large")
        return _allowed.get().take(super().call_binop(context, operator, left, right))


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    return _Environment()


class _Compiled:
    """A template, and what can be told about it without its values."""

    def __init__(self, source: str) -> None:
        environment = _environment()
        token = _allowed.set(_Allowance(SECONDS))  # what is constant is worked out now
        try:
            self._compile(environment, source)
        finally:
            _allowed.reset(token)

    def _compile(self, environment: _Environment, source: str) -> None:
        tree = environment.parse(source)
        self.names = frozenset(meta.find_undeclared_variables(tree))
        loops = (nodes.For, nodes.Call, nodes.Macro, nodes.CallBlock)
        self.is_plain = next(tree.find_all(loops), None) is None
        self.template: Template = environment.from_string(_Rewriter().visit(tree))


_compiled = lru_cache(maxsize=COMPILED)(_Compiled)


def check(source: str) -> None:
    """`AgentFailed` for what is no template; one that is large is read when it is first used, off the event loop."""
    if len(source) > MAX_TEMPLATE:
        raise AgentFailed(f"The prompt's template is longer than {MAX_TEMPLATE} characters.")
    if len(source) <= SMALL:
        _names(source)


async def names_in(source: str) -> frozenset[str]:
    """The placeholders of a template that was checked."""
    return _names(source) if len(source) <= SMALL else await asyncio.to_thread(_names, source)


async def render(source: str, values: Mapping[str, Any], *, seconds: float = SECONDS) -> str:
    """The text of a template with these values, rendered once; off the event loop where it may take long.

    `AgentFailed` names the placeholders that have no value, or says what is wrong with the template.
    """
    check(source)
    size = len(source) + sum(len(value) for value in values.values() if hasattr(value, "__len__"))
    if size <= SMALL and _compiled(source).is_plain:
        return _render(source, values, seconds)
    return await asyncio.to_thread(_render, source, values, seconds)


def _names(source: str) -> frozenset[str]:
    try:
        return _compiled(source).names
    except TemplateSyntaxError as error:
        raise AgentFailed(f"The prompt's template is wrong in line {error.lineno}: {error.message}") from error
    except (RecursionError, _Runaway):
        raise AgentFailed("The prompt's template is too large to be compiled.") from None


def _render(source: str, values: Mapping[str, Any], seconds: float) -> str:
    names = _names(source)
    token = _allowed.set(_Allowance(seconds))
    try:
        return "".join(_counted(_compiled(source).template.generate(values)))
    except _Runaway as error:
        raise AgentFailed(f"The prompt cannot be rendered: {error}.") from None
    except UndefinedError as error:
        said = str(error.message).rstrip(".")
        missing = sorted(names - values.keys())
        if any(said == f"{name!r} is undefined" for name in missing):
            said = f"The prompt has no value for {', '.join(missing)}"
        raise AgentFailed(f"{said}.") from error
    except (TemplateError, OverflowError) as error:
        raise AgentFailed(f"The prompt cannot be rendered: {str(error).rstrip('.')}.") from error
    except Exception as error:
        raise AgentFailed(f"The prompt cannot be rendered: {type(error).__name__}.") from error
    finally:
        _allowed.reset(token)
