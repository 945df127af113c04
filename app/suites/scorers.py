"""What an answer is worth, from 0 to 1: each scorer of a suite as a function of the row and the answer."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from app.agent.sources import import_file
from app.errors import AppError, InvalidInput
from app.llm.llm import LLM
from app.suites import suite
from app.suites.fits import json_in
from app.suites.fitter import Fitter, NoScore
from app.suites.suite import Suite

NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
JUDGED = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "score": {"type": "number", "minimum": 0, "maximum": 1}},
    "required": ["reason", "score"],
    "additionalProperties": False,
}

Score: TypeAlias = Callable[[Mapping[str, Any], str, LLM], Awaitable[float]]


class Unscored(Exception):
    """A scorer could not say what an answer is worth; the text names it and says why."""


class Scorers:
    """All scorers of a suite. `names` are theirs, in the suite's order. Who scores or checks closes them."""

    def __init__(self, given: Suite, folder: Path | None) -> None:
        """`folder` is the suite's own, where its Python is; None where none may be run. `InvalidInput` for what cannot be used."""
        self._given, self._fitter, self._is_own = given, Fitter(), folder is not None
        self._made = [
            (_name(given, at), one.weight, _make(one, given, folder, self._fitter))
            for at, one in enumerate(given.scorers)
        ]
        self.names = [name for name, *_ in self._made]
        self.call_models = any(one.kind in ("judge", "similarity") for one in given.scorers)

    async def check(self) -> None:
        """`InvalidInput` for a pattern or a schema of the suite that is none."""
        for at, one in enumerate(self._given.scorers):
            try:
                if isinstance(one, suite.Regex) and one.pattern is not None:
                    await self._fitter.fits("pattern", one.pattern)
                elif isinstance(one, suite.JsonSchema) and one.schema_ is not None:
                    await self._fitter.fits("schema", _text(one.schema_))
            except NoScore as error:
                raise InvalidInput(f"scorers[{at}]: {error}.", param="scorers") from None

    async def close(self) -> None:
        """End the process that follows patterns and schemas."""
        await self._fitter.close()

    async def score(self, row: Mapping[str, Any], answer: str, llm: LLM) -> tuple[float | None, dict[str, float]]:
        """The weighted mean, and each by itself; `Unscored` when one fails. Without scorers there is no mean."""
        found: dict[str, float] = {}
        for name, _, score in self._made:
            try:
                found[name] = _checked(await score(row, answer, llm))
            except Exception as error:
                raise Unscored(f"The scorer {name} failed: {self._why(error)}") from error
        if not found:
            return None, found
        total = sum(weight for _, weight, _ in self._made)
        return sum(found[name] * weight for name, weight, _ in self._made) / total, found

    def _why(self, error: Exception) -> str:
        """What may be told: the text of an error that is not ours only to whom the suite's Python is."""
        if isinstance(error, NoScore | AppError):
            return str(error)[:300]
        return type(error).__name__ + (f": {str(error)[:300]}" if self._is_own else "")


def _name(given: Suite, at: int) -> str:
    one = given.scorers[at]
    same = [other for other in given.scorers[: at + 1] if (other.name or other.kind) == (one.name or one.kind)]
    return (one.name or one.kind) + (f" {len(same)}" if len(same) > 1 else "")


def _checked(value: Any) -> float:
    number = float(value)
    if not 0 <= number <= 1:
        raise NoScore("a score is a number from 0 to 1")
    return number


def _make(one: Any, given: Suite, folder: Path | None, fitter: Fitter) -> Score:
    column = one.column or given.dataset.expected
    if isinstance(one, suite.Python):
        return _python(one, folder)
    if isinstance(one, suite.Regex):
        return _regex(one, column, fitter)
    if isinstance(one, suite.JsonSchema):
        return _json_schema(one, column, fitter)
    return _KINDS[type(one)](one, column)


def _expected(row: Mapping[str, Any], column: str) -> Any:
    if row.get(column) is None:
        raise NoScore(f"the row has no {column}")
    return row[column]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _exact(one: suite.Exact, column: str) -> Score:
    def plain(text: str) -> str:
        return text.strip().casefold() if one.ignore_case else text.strip()

    async def score(row: Mapping[str, Any], answer: str, _: LLM) -> float:
        return plain(answer) == plain(_text(_expected(row, column)))

    return score


def _regex(one: suite.Regex, column: str, fitter: Fitter) -> Score:
    async def score(row: Mapping[str, Any], answer: str, _: LLM) -> float:
        rule = one.pattern if one.pattern is not None else _text(_expected(row, column))
        return await fitter.fits("pattern", rule, answer)

    return score


def _json_schema(one: suite.JsonSchema, column: str, fitter: Fitter) -> Score:
    if find_spec("jsonschema") is None:
        why = "scorers: json_schema needs the package jsonschema: ./scripts/extras installs it."
        raise InvalidInput(why, param="scorers")
    given = _text(one.schema_) if one.schema_ is not None else None

    async def score(row: Mapping[str, Any], answer: str, _: LLM) -> float:
        return await fitter.fits("schema", given or _text(_expected(row, column)), answer)

    return score


def _number(text: str) -> float:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        raise NoScore("what the row expects is no number") from None


def _numeric(one: suite.Numeric, column: str) -> Score:
    async def score(row: Mapping[str, Any], answer: str, _: LLM) -> float:
        expected = _number(str(_expected(row, column)))
        found = NUMBER.findall(answer)
        if not found:
            return False
        return math.isclose(float(found[-1].replace(",", "")), expected, rel_tol=one.relative, abs_tol=one.tolerance)

    return score


def _similarity(one: suite.Similarity, column: str) -> Score:
    async def score(row: Mapping[str, Any], answer: str, llm: LLM) -> float:
        if not answer.strip():
            return 0.0
        near = cosine(*await llm.embed([answer, _text(_expected(row, column))], model=one.model))
        return max(0.0, min(1.0, near)) if one.threshold is None else near >= one.threshold

    return score


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """The cosine of the angle between two vectors."""
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


def _judge(one: suite.Judge, column: str) -> Score:
    async def score(row: Mapping[str, Any], answer: str, llm: LLM) -> float:
        shown = {name: value for name, value in row.items() if name != column}
        told = {"task": shown, "expected": row.get(column), "answer": answer}
        prompt = [
            {
                "role": "system",
                "content": f"{one.instructions}\nSay why, and give a score from 0 to 1, as JSON: {json.dumps(JUDGED)}",
            },
            {"role": "user", "content": msgspec.json.encode(told).decode()},
        ]
        options: dict[str, Any] = {"temperature": 0} | ({"model": one.model} if one.model else {})
        said = await llm.ainvoke(prompt, **options)
        return float(json_in(str(said))["score"])

    return score


def _python(one: suite.Python, folder: Path | None) -> Score:
    """The function of a file. It may be async; else it is called in a thread, so that it holds nobody up."""
    if folder is None:
        raise InvalidInput("scorers: python is for suites that are run from the command line.", param="scorers")
    path = folder / one.path
    try:
        function = getattr(import_file(f"scorer_{path.stem}", path.resolve()), one.function)
    except Exception as error:
        raise InvalidInput(
            f"scorers: {one.path} cannot be used ({type(error).__name__}: {error}).", param="scorers"
        ) from None

    async def score(row: Mapping[str, Any], answer: str, _: LLM) -> float:
        if inspect.iscoroutinefunction(function):
            found = await function(row, answer)
        else:
            found = await asyncio.to_thread(function, row, answer)
        return float(found)

    return score


_KINDS: Mapping[type, Callable[[Any, str], Score]] = {
    suite.Exact: _exact,
    suite.Numeric: _numeric,
    suite.Similarity: _similarity,
    suite.Judge: _judge,
}
