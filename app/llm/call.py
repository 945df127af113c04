"""The LLM call path: what happens to every call of every agent, stage by stage: cache, reserve, route, lease, send, settle.

The cache comes before the budget, for what it has costs nothing.
"""

from __future__ import annotations

import asyncio
import inspect
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from decimal import Decimal
from hashlib import sha256
from typing import Any, Protocol
from uuid import UUID

import msgspec
from msgspec.structs import replace

from app.domain import ANSWER_TYPES, Chunk, Usage
from app.errors import InvalidInput, LLMError
from app.journal.recorder import OpenStep, Recorder
from app.llm.cache import Cache, Flight, cache_key
from app.llm.catalog import DEFAULT, Catalog, Model, Price
from app.llm.entries import CachedAnswer, CachedVector
from app.llm.llm import Finish, Items
from app.llm.route import Attempt, Request, Router, chain, fitting
from app.llm.shelf import SHARED, Question
from app.llm.tokens import count, count_messages

PROMPT_FACTOR, PROMPT_OVERHEAD = 2, 16
"""A prompt is reserved as so many times its local count, which for rows of digits is half of what a model counts, and a few more."""
COMPLETION = 4096
"""How many tokens an answer is taken to want when the call does not say, as far as a budget is concerned."""
EMBEDDING = "embedding"
"""The alias that embeds texts when none is named."""
TEXTS_PER_REQUEST = 100
"""How many texts are embedded at once; the lists that servers take are often not much longer."""
TYPICAL = 512
"""How many tokens of an answer count at once against an endpoint's tokens per minute; what it were really is settled at the end."""
OWN_OPTIONS = frozenset({"model", "cache", "accept"})
"""Options of a call that no server is told."""

Accept = Callable[[str], bool | Awaitable[bool]]


class Reservations(Protocol):
    """Where budgets are kept."""

    async def reserve(
        self, run_id: UUID, budgets: Sequence[UUID], prompt: int, completion: int, price: Price | None
    ) -> Any:
        """Set aside a prompt of at most so many tokens, and an answer of up to `completion`: its `max_tokens` are what there is.

        A `LimitExceeded` when that is too little.
        """

    def settle(self, reservation: Any, tokens: int, money: Decimal) -> None:
        """The call has ended and used so much; nothing when it never began."""


@dataclass(frozen=True, slots=True)
class Caller:
    """For whom calls are made: whose budgets, whose entries of the cache, whose turn in the queue."""

    run_id: UUID
    owner: str
    session: str = ""
    agent: str = ""
    version: str = ""
    budgets: tuple[UUID, ...] = ()
    shares_cache: bool = False
    """Whether the agent's users share its cached answers."""
    again: bool = False
    """Whether the message is answered once more, so that another answer is wanted than the one before."""
    batch: bool = False


@dataclass(slots=True)
class _Call:
    """One call on its way, and what has come of it."""

    messages: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any]
    caller: Caller
    recorder: Recorder
    cache: str | None = None
    accept: Accept | None = None
    dearer: Price | None = None
    """What the last model of a cascade costs, against which this one saves."""
    chunks: list[Chunk] = field(default_factory=list)
    finish: Finish | None = None
    request: Request | None = None
    cached: bool = False
    cancelled: bool = False
    accepted: bool = True

    def add(self, items: Items) -> None:
        """Count what has come."""
        for item in items:
            if isinstance(item, Finish):
                self.finish = item
            else:
                self.chunks.append(item)

    def said(self, *types: str) -> str:
        """What was said of these content types."""
        return "".join(chunk.content for chunk in self.chunks if chunk.content_type in types)

    async def judge(self) -> None:
        """Ask whether the answer will do; one that was cut off will not."""
        if self.accept is None:
            return
        given = self.accept(self.said(*ANSWER_TYPES) or self.said("tool_call"))
        fits = bool(await given if inspect.isawaitable(given) else given)
        self.accepted = fits and self.finish is not None and self.finish.reason != "cut"

    def end(self, cost: Decimal) -> Finish:
        """How it ended, with what it cost."""
        assert self.finish is not None  # noqa: S101 - a stream that does not raise ends with its finish
        return replace(self.finish, usage=replace(self.finish.usage, cost=cost))

    @property
    def was_sent(self) -> bool:
        """Whether a server may have worked for it."""
        return bool(self.chunks) or (self.cancelled and self.request is not None and self.request.is_open)

    def spent(self, models: Sequence[Model]) -> Usage:
        """What it used: as the upstream says, or as counted here when it broke off; nothing for what was cached or never sent."""
        price = ((self.request.model if self.request else None) or models[0]).price
        if self.finish is not None and self.cached:
            return Usage(saved=price.cost(self.finish.usage))
        if self.finish is not None:
            usage = self.finish.usage
        elif self.was_sent:
            said = count(self.said("text")) + count(self.said("thinking"))
            prompt = count_messages(self.messages, self.options.get("tools", ()))
            usage = Usage(prompt, said, estimated=True)
        else:
            usage = Usage()
        if self.request:
            usage += self.request.lost
        cost = price.cost(usage)
        return replace(usage, cost=cost, saved=self._saved(usage, cost))

    def _saved(self, usage: Usage, cost: Decimal) -> Decimal:
        """How much less it cost than the last model of the cascade would have: less than nothing when that had to be asked too."""
        if self.dearer is None:
            return Decimal(0)
        return self.dearer.cost(usage) - cost if self.accepted and self.finish else -cost


class CallPath:
    """The way from an agent's call to an upstream and back; one for the whole process."""

    def __init__(
        self,
        catalog: Callable[[], Catalog],
        router: Router,
        *,
        cache: Cache | None = None,
        reservations: Reservations | None = None,
        secret: bytes = b"",
    ) -> None:
        """`catalog` gives the models as they are now; `secret` keys the names of cached answers."""
        self._catalog = catalog
        self._router = router
        self._cache = cache or Cache()
        self._reservations = reservations
        self._secret = secret

    def stream(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any], caller: Caller, recorder: Recorder
    ) -> AsyncGenerator[Items, None]:
        """The chunks of the answer, then its `Finish`. Every model that is asked is a step of kind `llm`, however it ends.

        A cascade, and a call with `accept` whose model has a fallback, gives the first answer that is accepted, whole; its last model
        is asked without condition, and streams.
        """
        catalog = self._catalog()
        asked = catalog.get(options.get("model") or DEFAULT)
        rest = {name: value for name, value in options.items() if name not in OWN_OPTIONS}
        if asked.cascade:
            rest = {**asked.defaults, **rest}
        accept = options.get("accept")
        *first, last = _levels(catalog, asked, accept)
        given = messages, rest, caller, recorder, options.get("cache")
        answer = self._answered(chain(last, catalog.models), _Call(*given))
        if not first:
            return answer
        return self._cascaded([(model, _Call(*given, accept or bool, last.price)) for model in first], answer)

    async def _cascaded(
        self, tried: Sequence[tuple[Model, _Call]], last: AsyncGenerator[Items, None]
    ) -> AsyncGenerator[Items, None]:
        for model, call in tried:
            if whole := await _accepted(self._answered([model], call), call):
                yield whole
                return
        async with aclosing(last):
            async for items in last:
                yield items

    async def _answered(self, models: Sequence[Model], call: _Call) -> AsyncGenerator[Items, None]:
        """One step: the answer of the first model, or of one of its fallbacks.

        All that comes of an answer passes here, chunk by chunk: every further generator in between would cost as much as all of this.
        """
        model = models[0]
        options = {**model.defaults, **call.options}
        parts = canonical(call.messages)
        names = [sha256(part).hexdigest() for part in parts]
        asked = _json({"model": model.alias, "options": options, "messages": names}, "options")
        last: Items = ()
        with call.recorder.step("llm", model.alias, input=asked, parts=parts) as step:
            step.model = model.endpoints[0].model if model.endpoints else model.alias
            step.prices = model.price.prompt, model.price.completion
            try:
                async with self._flight(model, options, call, asked) as flight:
                    if isinstance(flight.entry, CachedAnswer):
                        call.cached, last = True, list(flight.entry.items())
                        call.add(last)
                    else:
                        async with self._sending(models, call) as attempt:
                            items = attempt.first
                            while items:
                                last = items
                                call.add(items)
                                if call.finish is None:  # the end is told when the step is recorded
                                    yield items
                                items = await attempt.next()
                        _keep(flight, model, call)
                await call.judge()
            finally:
                _record(step, call, models)
        yield [*(item for item in last if not isinstance(item, Finish)), call.end(step.usage.cost)]

    def _flight(
        self, model: Model, options: Mapping[str, Any], call: _Call, asked: bytes
    ) -> AbstractAsyncContextManager[Flight]:
        """The call's way through the cache, which is on where the answer is meant to be the same each time, or on request."""
        caller = call.caller
        mode = call.cache or ("on" if options.get("temperature") == 0 else "off")
        if mode == "off":
            return nullcontext(Flight(None))
        scope = SHARED if caller.shares_cache else caller.owner
        key = cache_key(
            self._secret,
            scope=scope,
            agent=caller.agent,
            version=caller.version,
            model=" ".join((model.alias, model.llm or "", *sorted(spec.model for spec in model.endpoints))),
            body=asked,
            sample=0,
        )
        question = Question(key, scope, caller.owner, caller.agent, caller.session, run=str(caller.run_id))
        return self._cache.flight(question, "refresh" if mode == "refresh" or caller.again else "on")

    @asynccontextmanager
    async def _sending(self, models: Sequence[Model], call: _Call) -> AsyncIterator[Attempt]:
        """Reserve, have it answered, and settle."""
        caller, options = call.caller, call.options
        estimate = count_messages(call.messages, call.options.get("tools", ()))
        models = fitting(models, estimate)
        limits = {**models[0].defaults, **options}
        wanted = limits.get("max_completion_tokens") or limits.get("max_tokens") or _longest(models, estimate)
        reservation = None
        if self._reservations and caller.budgets:
            prompt = estimate * PROMPT_FACTOR + PROMPT_OVERHEAD
            price = _dearest(model.price for model in models)
            reservation = await self._reservations.reserve(caller.run_id, caller.budgets, prompt, wanted, price)
        tokens = estimate + min(wanted, TYPICAL)
        call.request = Request(call.messages, options, caller.owner, tokens, batch=caller.batch)
        call.request.max_tokens = reservation.max_tokens if reservation else None
        try:
            async with await self._router.begin(models, call.request) as attempt:
                yield attempt
                if call.finish:
                    attempt.succeeded(call.finish)
        except (asyncio.CancelledError, GeneratorExit):
            call.cancelled = True
            raise
        finally:
            if reservation is not None and self._reservations:
                spent = call.spent(models)
                self._reservations.settle(reservation, spent.total, spent.cost)

    async def embed(
        self, texts: Sequence[str], alias: str | None, caller: Caller, recorder: Recorder
    ) -> list[list[float]]:
        """The embedding of each text, in order: from the cache as far as it has them, all in one step of kind `llm`."""
        if isinstance(texts, str) or not all(isinstance(text, str) and text for text in texts):
            raise InvalidInput("texts must be a list of texts that are not empty.", param="texts")
        catalog = self._catalog()
        model = catalog.get(alias or (EMBEDDING if EMBEDDING in catalog.models else DEFAULT))
        if model.cascade:
            raise InvalidInput("model must not be a cascade: two models' embeddings differ.", param="model")
        questions = {text: self._embedding_question(model, text, caller) for text in texts}
        found = dict(zip(questions, await self._cache.find(list(questions.values())), strict=True))
        known = {text: entry for text, entry in found.items() if isinstance(entry, CachedVector)}
        vectors = {text: list(array("d", entry.numbers)) for text, entry in known.items()}
        missing = [text for text in questions if text not in known]
        saved = model.price.cost(Usage(sum(entry.tokens for entry in known.values())))
        parts = [text.encode(errors="surrogatepass") for text in missing]
        asked = {"model": model.alias, "texts": [sha256(part).hexdigest() for part in parts]}
        if not questions:
            return []
        with recorder.step("llm", model.alias, input=_json(asked, "texts"), parts=parts) as step:
            step.model = model.endpoints[0].model if model.endpoints else model.alias
            step.from_cache, step.usage = not missing, Usage(saved=saved)
            step.output = msgspec.json.encode({"embeddings": len(questions), "from_cache": len(known)})
            if missing:
                vectors |= await self._embedded(model, missing, caller, step)
        for text in missing:
            self._cache.keep(questions[text], CachedVector(array("d", vectors[text]).tobytes(), count(text)))
        return [vectors[text] for text in texts]

    async def _embedded(
        self, model: Model, texts: Sequence[str], caller: Caller, step: OpenStep
    ) -> dict[str, list[float]]:
        """Reserve, have them embedded some at a time, and settle what that took, however far it came."""
        estimate = sum(map(count, texts))
        reservation = None
        if self._reservations and caller.budgets:
            prompt = estimate * PROMPT_FACTOR + PROMPT_OVERHEAD
            reservation = await self._reservations.reserve(caller.run_id, caller.budgets, prompt, 1, model.price)
        vectors: list[list[float]] = []
        spent = Usage()
        try:
            for first in range(0, len(texts), TEXTS_PER_REQUEST):
                part = texts[first : first + TEXTS_PER_REQUEST]
                request = Request((), {}, caller.owner, sum(map(count, part)), batch=caller.batch, texts=part)
                try:
                    spent += await self._router.embed(model, request)
                except asyncio.CancelledError:
                    spent += Usage(request.tokens if request.hits else 0, estimated=True)
                    raise
                vectors += request.vectors
        finally:
            spent = replace(spent, cost=model.price.cost(spent))
            step.usage += spent
            if reservation is not None and self._reservations:
                self._reservations.settle(reservation, spent.total, spent.cost)
        return dict(zip(texts, vectors, strict=True))

    def _embedding_question(self, model: Model, text: str, caller: Caller) -> Question:
        scope = SHARED if caller.shares_cache else caller.owner
        names = " ".join((model.alias, model.llm or "", *sorted(spec.model for spec in model.endpoints)))
        body = b"embedding " + text.encode(errors="surrogatepass")
        key = cache_key(self._secret, scope=scope, agent=caller.agent, version="", model=names, body=body, sample=0)
        return Question(key, scope, caller.owner, caller.agent, caller.session)


def _keep(flight: Flight, model: Model, call: _Call) -> None:
    """Keep an answer of the model that was asked; a fallback's stands in only this time."""
    if call.finish and call.request and call.request.model is model:
        entry = CachedAnswer.of(call.chunks, call.finish)
        if entry is not None:
            flight.put(entry)


def _levels(catalog: Catalog, model: Model, accept: Accept | None) -> list[Model]:
    """The models that are asked one after the other until an answer is accepted."""
    if model.cascade:
        return [level for name in model.cascade for level in _levels(catalog, catalog.get(name), None)]
    if accept is None:
        return [model]
    return [model, *(level for name in model.fallback for level in _levels(catalog, catalog.get(name), None))]


async def _accepted(answer: AsyncGenerator[Items, None], call: _Call) -> Items:
    """The whole of an answer, or nothing when it fails or is not accepted."""
    whole: list[Chunk | Finish] = []
    try:
        async with aclosing(answer):
            async for items in answer:
                whole += items
    except LLMError:
        return ()
    return whole if call.accepted else ()


def _longest(models: Iterable[Model], prompt: int) -> int:
    """How long an answer may be that all of these have room for, up to `COMPLETION`."""
    return min([COMPLETION, *(max(1, model.context - PROMPT_FACTOR * prompt) for model in models if model.context)])


def _dearest(prices: Iterable[Price]) -> Price:
    """At least as much as any of these, kind by kind."""
    every = list(prices)
    return Price(
        max(price.prompt for price in every),
        max(price.completion for price in every),
        max(price.cached for price in every),
    )


def _record(step: OpenStep, call: _Call, models: Sequence[Model]) -> None:
    """Usage and output of the step. A call that broke off was paid for all the same: it is counted here."""
    if call.finish is None and not call.was_sent and not (call.request and call.request.lost.total):
        return  # refused before it began
    step.from_cache, step.usage = call.cached, call.spent(models)
    reason = call.finish.reason if call.finish else "cancelled" if call.cancelled else "error"
    output: dict[str, Any] = {"text": call.said("text"), "reasoning": call.said("thinking"), "finish_reason": reason}
    if calls := [chunk.content for chunk in call.chunks if chunk.content_type == "tool_call"]:
        output["tool_calls"] = calls
    if call.accept:
        output["accepted"] = call.accepted
    if call.request:
        if call.request.failures:
            output["failures"] = call.request.failures
        if call.request.spec:
            step.model = call.request.spec.model
        elif call.request.model:
            step.model = call.request.model.alias
    step.output = msgspec.json.encode(output)
    if call.finish:
        step.model = call.finish.model or step.model
    if reason == "cut":
        step.status = "partial"


def canonical(messages: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """Each message as JSON with sorted keys: equal messages have equal bytes, so that a value is stored once."""
    return [_json(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _json(value: object, place: str) -> bytes:
    try:
        return msgspec.json.encode(value, order="sorted")
    except (TypeError, ValueError, RecursionError):
        raise InvalidInput(f"{place} holds what JSON cannot express.", param=place) from None
