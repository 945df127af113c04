"""The LLM call path: what happens to every call of every agent, stage by stage: cache, reserve, route, lease, send, settle.

The cache comes before the budget, for what it has costs nothing.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from decimal import Decimal
from hashlib import sha256
from typing import Any
from uuid import UUID

import msgspec
from msgspec.structs import replace

from app.domain import ANSWER_TYPES, Chunk, Usage
from app.errors import LLMError
from app.journal.recorder import OpenStep, Recorder
from app.llm.batching import Missed
from app.llm.cache import Cache, Flight
from app.llm.catalog import DEFAULT, FREE, Catalog, Model, Price
from app.llm.embed import embed
from app.llm.entries import CachedAnswer
from app.llm.llm import Finish, Items
from app.llm.messages import Prompt, encoded, named
from app.llm.options import checked
from app.llm.outstanding import Sought
from app.llm.route import Attempt, Request, Router, chain, fitting
from app.llm.stages import Caller, Reservations, Stages
from app.llm.tokens import count, count_json

COMPLETION = 8192
"""How many tokens an answer is taken to want when the call does not say, as far as a budget is concerned.

It is sent, or an answer could be longer than what was reserved; and vendors refuse more than their models can write, many more than this
(DeepSeek: "the valid range of max_tokens is [1, 8192]"; DashScope: "Range of max_tokens should be [1, 8192]").
"""
LEAST = 256
"""An answer is not taken to want less, however near the prompt comes to the model's context: mostly it is counted too high here."""
FRAME = 64
"""What a server's chat template may put around a prompt, beyond what is counted here."""
TYPICAL = 512
"""How many tokens of an answer count at once against an endpoint's tokens per minute; what it were really is settled at the end."""
PAST_THE_CACHE = nullcontext[None]()

Accept = Callable[[str], bool | Awaitable[bool]]


class _Output(msgspec.Struct, omit_defaults=True):
    """What the step of a call has as its output."""

    text: str
    reasoning: str
    finish_reason: str
    tool_calls: list[str] = []
    accepted: bool | None = None
    failures: list[Any] = []
    mode: str = ""


class _Call(msgspec.Struct):
    """One call on its way, and what has come of it."""

    prompt: Prompt
    options: Mapping[str, Any]
    caller: Caller
    recorder: Recorder
    cache: str | None = None
    accept: Accept | None = None
    batch: bool = False
    """Whether it is in mode batch."""
    sought: Sought | None = None
    dearer: Price | None = None
    """What the last model of a cascade costs, against which this one saves."""
    chunks: list[Chunk] = []
    finish: Finish | None = None
    request: Request | None = None
    cached: bool = False
    cancelled: bool = False
    accepted: bool = True

    def add(self, items: Items) -> None:
        """Count what has come."""
        last = items[-1]
        if isinstance(last, Finish):
            self.finish, items = last, items[:-1]
        self.chunks += items  # type: ignore[arg-type]  # only the last is a finish

    def said(self, *types: str) -> str:
        """What was said of these content types."""
        return "".join([chunk.content for chunk in self.chunks if chunk.content_type in types])

    async def judge(self) -> None:
        """Ask whether the answer will do; one that was cut off will not."""
        if self.accept is None:
            return
        given = self.accept(self.said(*ANSWER_TYPES) or self.said("tool_call"))
        fits = bool(await given if inspect.isawaitable(given) else given)
        self.accepted = fits and self.finish is not None and self.finish.reason != "cut"

    def recall(self, recorded: bytes) -> Items:
        """The answer as a step of this run has recorded it: said again, and not paid for again."""
        output = msgspec.json.decode(recorded, type=_Output)
        said = [
            (output.reasoning, "thinking"),
            (output.text, "text"),
            *((call, "tool_call") for call in output.tool_calls),
        ]
        self.chunks = [Chunk(content, content_type) for content, content_type in said if content]
        self.finish = Finish(output.finish_reason, Usage())
        self.accepted = output.accepted is not False
        return [*self.chunks, self.finish]

    def end(self, cost: Decimal) -> Finish:
        """How it ended, with what it cost."""
        assert self.finish is not None  # noqa: S101 - a stream that does not raise ends with its finish
        return replace(self.finish, usage=replace(self.finish.usage, cost=cost))

    def seek(self, asked: bytes, step: OpenStep) -> None:
        """Let it be found in a batch by what it asks. Where another process takes up its work, that one pays for the answer too."""
        caller = self.caller
        session = UUID(caller.session) if caller.session else None
        self.sought = Sought(sha256(asked).digest(), UUID(caller.owner), session, caller.run_id)
        if caller.batch:
            step.owes_nothing = lambda: self.request is not None and self.request.in_batch

    @property
    def estimate(self) -> int:
        """About how many tokens the prompt is, with all that is given to the model beside the messages."""
        beside = count_json(self.options.get("tools")) + count_json(self.options.get("response_format"))
        return self.prompt.tokens + beside

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
            usage = Usage(self.estimate, count(self.said("text")) + count(self.said("thinking")), estimated=True)
        else:
            usage = Usage()
        if self.request and self.request.lost.total:
            usage += self.request.lost
        cost = price.cost(usage, batch=self.request is not None and self.request.in_batch)
        return replace(usage, cost=cost, saved=self._saved(usage, cost))

    def _saved(self, usage: Usage, cost: Decimal) -> Decimal:
        """How much less it cost than the last model of the cascade would have: less than nothing when that had to be asked too."""
        if self.dearer is None:
            return FREE
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
        self._stages = Stages(catalog, router, cache or Cache(), reservations, secret)

    def stream(
        self,
        prompt: Prompt,
        options: Mapping[str, Any],
        caller: Caller,
        recorder: Recorder,
        *,
        model: str | None = None,
        cache: str | None = None,
        accept: Accept | None = None,
        batch: bool = False,
    ) -> AsyncGenerator[Items, None]:
        """The chunks of the answer, then its `Finish`. Every model that is asked is a step of kind `llm`, however it ends.

        With `batch` it goes into a batch of the model's server, if that has any, or else waits for room that nobody else wants.

        A cascade, and a call with `accept` whose model has a fallback, gives the first answer that is accepted, whole; its last model
        is asked without condition, and streams.
        """
        catalog = self._stages.catalog()
        asked = catalog.get(model or DEFAULT)
        if asked.cascade:
            options = {**asked.defaults, **options}
        *first, last = _levels(catalog, asked, accept)
        answer = self._answered(
            chain(last, catalog.models), _Call(prompt, options, caller, recorder, cache, None, batch)
        )
        if not first:
            return answer
        calls = [
            _Call(prompt, options, caller, recorder, cache, accept or bool, batch, dearer=last.price) for _ in first
        ]
        return self._cascaded(list(zip(first, calls, strict=True)), answer)

    async def embed(
        self,
        texts: Sequence[str],
        alias: str | None,
        caller: Caller,
        recorder: Recorder,
        *,
        dimensions: int | None = None,
    ) -> list[list[float]]:
        """The embedding of each text, in order; of so many `dimensions`, where the model's server can."""
        return await embed(self._stages, texts, alias, caller, recorder, dimensions)

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
        names, values = named(call.prompt.values)
        asked = encoded({"model": model.alias, "options": options, "messages": names}, "options")
        last: Items = ()
        with call.recorder.step("llm", model.alias, input=asked, parts=values) as step:
            if step.served is not None:
                yield call.recall(step.served)
                return
            if step.changes:
                models, asked = self._changed(models, call, step)
                model, options = models[0], {**models[0].defaults, **call.options}
            step.model = model.name
            step.prices = model.price.prompt, model.price.completion
            if call.batch:
                call.seek(asked, step)
            try:
                async with self._flight(model, options, call, asked) as flight:
                    if flight and isinstance(flight.entry, CachedAnswer):
                        call.cached, last = True, list(flight.entry.items())
                        call.add(last)
                    else:
                        async with _Sending(self._stages, models, call) as attempt:
                            items = attempt.first
                            while items:
                                last = items
                                call.add(items)
                                if (
                                    call.finish is None and step.handed_on is None
                                ):  # the end is told when the step is recorded
                                    yield items
                                items = await attempt.next()
                        if flight:
                            _keep(flight, model, call)
                await call.judge()
            finally:
                _record(step, call, models)
            if step.handed_on is not None:
                if step.handed_on.output is not None:
                    yield call.recall(step.handed_on.output)
                return
        yield [*last[:-1], call.end(step.usage.cost)]

    def _changed(self, models: Sequence[Model], call: _Call, step: OpenStep) -> tuple[Sequence[Model], bytes]:
        """Make of the call what a rerun wants: another model, other options, another last message of the user, or others altogether."""
        changes = step.changes
        if "model" in changes:
            catalog = self._stages.catalog()
            models = chain(_levels(catalog, catalog.get(changes["model"]), None)[-1], catalog.models)
        if "input" in changes:
            call.prompt = Prompt.of(changes["input"])
        if "prompt" in changes:
            messages = call.prompt.messages()
            last = max((at for at, each in enumerate(messages) if each["role"] == "user"), default=len(messages))
            content = _in_place_of(messages[last : last + 1], changes["prompt"])
            call.prompt = Prompt.of([*messages[:last], {"role": "user", "content": content}, *messages[last + 1 :]])
        call.options = {**call.options, **checked(changes.get("params", {}))}
        names, step.parts = named(call.prompt.values)
        options = {**models[0].defaults, **call.options}
        step.input = asked = encoded({"model": models[0].alias, "options": options, "messages": names}, "options")
        return models, asked

    def _flight(
        self, model: Model, options: Mapping[str, Any], call: _Call, asked: bytes
    ) -> AbstractAsyncContextManager[Flight | None]:
        """The call's way through the cache, which is on where the answer is meant to be the same each time, or on request."""
        mode = call.cache or ("on" if options.get("temperature") == 0 else "off")
        if mode == "off":
            return PAST_THE_CACHE
        question = self._stages.question(model, call.caller, call.caller.version, asked)
        return self._stages.cache.flight(question, "refresh" if mode == "refresh" or call.caller.again else "on")


class _Sending:
    """Reserve, have it answered, and settle: around all that comes of the answer."""

    __slots__ = ("_attempt", "_call", "_models", "_reservation", "_stages")
    _attempt: Attempt

    def __init__(self, stages: Stages, models: Sequence[Model], call: _Call) -> None:
        self._stages, self._models, self._call = stages, models, call
        self._reservation: Any = None

    async def __aenter__(self) -> Attempt:
        call, caller, estimate = self._call, self._call.caller, self._call.estimate
        self._models = models = fitting(self._models, estimate)
        limits = {**models[0].defaults, **call.options}
        wanted = limits.get("max_completion_tokens") or limits.get("max_tokens") or _longest(models, estimate)
        if caller.budgets:
            price = _dearest(model.price for model in models)
            self._reservation = await self._stages.reserve(caller, estimate, wanted, price)
        tokens = estimate + min(wanted, TYPICAL)
        call.request = Request(
            call.prompt, call.options, caller.owner, tokens, batch=caller.batch or call.batch, sought=call.sought
        )
        if self._reservation is not None:
            call.request.max_tokens = self._reservation.max_tokens
        try:
            router = self._stages.router
            begin = router.begin_patiently if call.batch else router.begin
            self._attempt = await begin(models, call.request)
        except BaseException as error:
            self._settle(error)
            raise
        return self._attempt

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None and self._call.finish:
                self._attempt.succeeded(self._call.finish)
            await self._attempt.end(error)
        finally:
            self._settle(error)

    def _settle(self, error: BaseException | None) -> None:
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._call.cancelled = True
        if self._reservation is not None:
            self._stages.settle(self._reservation, self._call.spent(self._models))


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


def _in_place_of(said: Sequence[Mapping[str, Any]], text: str) -> str | list[Any]:
    """Another text for a message, beside the pictures and whatever else it has."""
    content = said[0].get("content") if said else None
    kept = [part for part in content if part.get("type") != "text"] if isinstance(content, list) else []
    return [{"type": "text", "text": text}, *kept] if kept else text


def _longest(models: Iterable[Model], prompt: int) -> int:
    """How long an answer may be that all of these have room for, up to `COMPLETION`."""
    return min([COMPLETION, *[_fitting(model.context - prompt, prompt) for model in models if model.context]])


def _fitting(room: int, prompt: int) -> int:
    """How long an answer may be in the room that a prompt leaves.

    A server refuses what does not fit by its own count. So the prompt may be twice what is counted here, as far as half of the room goes.
    """
    return max(LEAST, room - min(prompt + FRAME, room // 2))


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
    output = _Output(
        call.said("text"),
        call.said("thinking"),
        reason,
        [chunk.content for chunk in call.chunks if chunk.content_type == "tool_call"],
        call.accepted if call.accept else None,
        list(call.request.failures) if call.request else [],
        "batch" if call.request and call.batch and Missed.code not in call.request.failures else "",
    )
    if call.request:
        if call.request.spec:
            step.model = call.request.spec.model
        elif call.request.model:
            step.model = call.request.model.alias
    step.done(msgspec.json.encode(output))
    if call.finish:
        step.model = call.finish.model or step.model
    if reason == "cut":
        step.status = "partial"
