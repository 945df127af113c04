"""Gets one request answered by whichever endpoint can: in turn, within limits, and by another one when it fails before its first token."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any
from weakref import WeakValueDictionary

from msgspec import Struct

from app.domain import Usage
from app.errors import AppError, LLMError, LLMRejected, NotFound
from app.llm.answer import Answer
from app.llm.batching import Batching
from app.llm.catalog import WINDOW_SECONDS, EndpointSpec, Model
from app.llm.endpoints import Choice, Endpoints, OwnLLMs
from app.llm.lease import Lease
from app.llm.llm import LLM, Finish, Items
from app.llm.messages import Prompt
from app.llm.outstanding import Sought
from app.llm.refusals import EmptyAnswer, UpstreamBusy, UpstreamLate, UpstreamUnknown, UpstreamUnwilling
from app.llm.upstream import Upstream, encode
from app.reports import report

log = logging.getLogger(__name__)

MAX_HITS = 3
"""How often one call goes upstream at most, over all endpoints, fallbacks and repetitions."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 15.0
"""Seconds before all endpoints are tried once more: what the server asks for, up to the second; else the first, doubled each time."""
TURN_SECONDS = 30.0
"""How long a person's call waits for its turn at an endpoint; one of a batch may wait for as long as there is."""
PATIENCE = 600.0
"""Seconds in which a call must have begun to be answered, waiting for its turn and for repetitions included."""


LANE = 400
"""How many calls of a user that are in mode batch stand in the lines of endpoints at once; less than `lease.MAX_WAITING_PER_OWNER`."""
MAX_ANSWER = 64_000_000
"""The longest answer out of a batch, in bytes."""
NOTHING = Usage()
UNKNOWN = "model at the language model's server: check its name, and the address, base_url or OPENAI_BASE_URL"


class Request(Struct):
    """One request: what is asked, by whom, and what has become of it."""

    prompt: Prompt
    options: Mapping[str, Any]
    owner: str
    tokens: int
    """Of prompt and answer, estimated, for the limits by the minute."""
    batch: bool = False
    sought: Sought | None = None
    """What is known of a call in mode batch while it waits in one; None for every other call."""
    patience: float = PATIENCE
    """Seconds in which it must have begun to be answered, once it is not, or no longer, in a batch."""
    in_batch: bool = False
    """Whether a server's batch has it, or has answered it."""
    texts: Sequence[str] = ()
    """To be embedded, instead of messages to be answered."""
    max_tokens: int | None = None
    """How long the answer may be, whatever the options say; None leaves it to them."""
    hits: int = 0
    is_open: bool = False
    """Whether somebody was sent it who may be working on it still."""
    lost: Usage = NOTHING
    """What servers took that gave no answer."""
    failures: list[str] = []
    model: Model | None = None
    """The model that answered, which may be a fallback."""
    spec: EndpointSpec | None = None
    vectors: Sequence[list[float]] = ()
    """The embedding of each text, in order."""


class Router:
    """Sends requests to endpoints, and to the operator's own LLMs."""

    def __init__(self, endpoints: Endpoints, own: OwnLLMs, batching: Batching | None = None) -> None:
        """Without `batching` calls of mode batch wait for room at the endpoints, as they do where a server has no batches."""
        self._endpoints = endpoints
        self._own = own
        self._batching = batching
        self._lanes: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def begin(self, models: Sequence[Model], request: Request) -> Attempt:
        """The first of `models` that begins to answer; those that failed a moment ago are asked last. From then on nobody else is."""
        deadline = asyncio.get_running_loop().time() + request.patience
        pause = FIRST_PAUSE
        gone = set[str]()
        while True:
            error: LLMError | None = None
            before, tried = request.hits, gone.copy()
            for index, model in enumerate(self._endpoints.ordered(models)):
                kept = MAX_HITS - (len(models) - index - 1)  # one is kept for each fallback
                most = min(MAX_HITS, max(request.hits + 1, kept))
                while request.hits < most and (attempt := self._next(model, request, tried, deadline)):
                    try:
                        await attempt.begin()
                    except (LLMRejected, EmptyAnswer):
                        raise
                    except LLMError as failed:
                        error = failed
                        if isinstance(failed, UpstreamUnwilling | UpstreamLate):  # the latter may still be at work
                            gone.add(attempt.name)
                    else:
                        return attempt
            if error is None:
                raise self._endpoints.why_none(models)
            if request.hits >= MAX_HITS or request.hits == before or tried == gone:
                raise error
            pause = await _paused(error, pause, deadline)

    async def embed(self, model: Model, request: Request) -> Usage:
        """Embed the texts of a request; what it took. By one model only, for others' vectors differ."""
        attempt = await self.begin([model], request)
        (finish,) = attempt.first
        assert isinstance(finish, Finish)  # noqa: S101 - all that `_embedded` gives
        attempt.succeeded(finish)
        await attempt.end(None)
        return finish.usage

    def _next(self, model: Model, request: Request, tried: set[str], deadline: float) -> Attempt | None:
        """An attempt at one that was not asked before; none when all were."""
        if model.llm is not None:
            if model.llm in tried:
                return None
            tried.add(model.llm)
            return Attempt(request, model, self._ask_own(model, model.llm, request))
        choice = self._endpoints.choose(model, tried)
        if choice is None:
            return None
        tried.add(choice.spec.id)
        if not request.batch:
            deadline = min(deadline, asyncio.get_running_loop().time() + TURN_SECONDS)
        limiter = choice.endpoint.limiter
        lease = limiter.lease(request.owner, tokens=request.tokens, deadline=deadline, batch=request.batch)
        return Attempt(request, model, _answer(choice.endpoint.upstream, choice.spec, model, request), choice, lease)

    async def begin_patiently(self, models: Sequence[Model], request: Request) -> Attempt:
        """For calls in mode batch: let a batch answer; else wait for room at the endpoints as long as it takes.

        Not too many of one user at once, for others stand in that line too.
        """
        if attempt := await self._in_batch(models[0], request):
            return attempt
        request.patience = WINDOW_SECONDS
        lane = self._lanes.get(request.owner)
        if lane is None:
            lane = self._lanes[request.owner] = asyncio.Semaphore(LANE)
        async with lane:
            return await self.begin(models, request)

    async def _in_batch(self, model: Model, request: Request) -> Attempt | None:
        """The request as a server's batch has answered it; None where no server of the model has any, or the batch had no answer."""
        spec = next((spec for spec in model.endpoints if spec.batch), None)
        if self._batching is None or spec is None:
            return None
        request.in_batch = True
        choice = Choice(spec, self._endpoints.of(spec))
        attempt = Attempt(request, model, _batched(self._batching, spec, model, request), choice)
        try:
            await attempt.begin()
        except (LLMRejected, EmptyAnswer):
            raise
        except LLMError:
            request.in_batch, request.hits = False, 0
            return None
        return attempt

    async def _ask_own(self, model: Model, name: str, request: Request) -> AsyncGenerator[Items, None]:
        llm = self._own.get(name)
        try:
            if request.texts:
                yield await _own_vectors(llm, request)
                return
            options = _bounded({**model.defaults, **request.options}, request)
            async with aclosing(llm.items(request.prompt.messages(), options)) as answer:
                async for items in answer:
                    yield items
        except AppError:
            raise
        except Exception as error:  # whatever the operator's own code does
            report(log, f"{name} failed", error)
            raise LLMError(f"The language model's class failed: {type(error).__name__}.") from error


class Attempt:
    """One request at one endpoint, or at an LLM of the operator's own: from its turn there to the end of its answer."""

    def __init__(
        self,
        request: Request,
        model: Model,
        answer: AsyncGenerator[Items, None],
        choice: Choice | None = None,
        lease: Lease | None = None,
    ) -> None:
        self._request, self._model, self._answer = request, model, answer
        self._choice, self._lease = choice, lease
        self.first: Items = ()
        """What came first of the answer."""

    @property
    def name(self) -> str:
        """What tells the endpoint, or the LLM, from others."""
        return self._choice.spec.id if self._choice else str(self._model.llm)

    async def begin(self) -> None:
        """Wait for the turn, and for the first token. Who has begun it ends it too."""
        request, lease, choice = self._request, self._lease, self._choice
        if lease is not None:
            await lease.__aenter__()
        request.hits += 1
        request.is_open = True
        request.model, request.spec = self._model, choice.spec if choice else None
        try:
            self.first = await anext(self._answer)
        except BaseException as error:
            await self.end(error)
            raise

    async def next(self) -> Items:
        """What came next; nothing at the end."""
        try:
            return await anext(self._answer)
        except StopAsyncIteration:
            return ()

    def succeeded(self, finish: Finish) -> None:
        """It was answered to its end."""
        if self._choice and self._lease:
            self._choice.endpoint.succeeded()
            self._lease.succeeded(finish.usage.total)

    async def end(self, error: BaseException | None) -> None:
        """Let go of all that it holds; `error` is why it did not come to its end."""
        try:
            if isinstance(error, AppError):
                self._failed(error)
            await self._answer.aclose()
        finally:
            if self._lease is not None:
                await self._lease.__aexit__(None, error, None)

    def _failed(self, error: AppError) -> None:
        request = self._request
        request.is_open = False
        request.failures.append(error.code)
        if isinstance(error, EmptyAnswer):
            request.lost += error.usage
        elif isinstance(error, UpstreamLate) and not self.first:
            request.lost += Usage(request.prompt.tokens, estimated=True)
        if isinstance(error, LLMRejected | EmptyAnswer):
            return
        if self._choice is None or self._lease is None or not isinstance(error, LLMError):
            return
        if isinstance(error, UpstreamBusy):
            self._lease.throttled(error.retry_after)
            return
        if isinstance(error, UpstreamUnknown) and self._model.is_passed_through:
            raise NotFound(UNKNOWN, param="model") from error
        told = self._choice.endpoint.failed(error, self._choice.spec)
        if told is not error:
            raise told from error


def _answer(upstream: Upstream, spec: EndpointSpec, model: Model, request: Request) -> AsyncGenerator[Items, None]:
    if request.texts:
        return _vectors(upstream, spec, request)
    return upstream.stream(_body(spec, model, request), first_token=spec.first_token_seconds)


def _body(spec: EndpointSpec, model: Model, request: Request) -> dict[str, Any]:
    # The messages come first, so that what a conversation sends begins with what it sent before, whatever the options.
    return _bounded({"model": spec.model, "messages": request.prompt.raw, **model.defaults, **request.options}, request)


def _bounded(options: dict[str, Any], request: Request) -> dict[str, Any]:
    """These options, with an answer no longer than the request may have."""
    if request.max_tokens is not None:  # under one name only, or a server may heed the other
        newer = options.pop("max_completion_tokens", None)
        options.pop("max_tokens", None)
        options["max_completion_tokens" if newer else "max_tokens"] = request.max_tokens
    return options


async def _batched(
    batching: Batching, spec: EndpointSpec, model: Model, request: Request
) -> AsyncGenerator[Items, None]:
    assert request.sought is not None  # noqa: S101 - or it would not be in a batch
    body = _body(spec, model, request)
    try:
        found = await batching.answer(spec, request.sought, encode(body))
    except asyncio.CancelledError:
        request.is_open = not batching.leaves  # else it is paid for by whoever gets the answer
        raise
    answer = Answer(body["messages"], body.get("tools", ()), max_bytes=MAX_ANSWER, max_line=MAX_ANSWER)
    chunks = [*answer.feed(found), *answer.end()]
    yield [*chunks, answer.finish()]


async def _vectors(upstream: Upstream, spec: EndpointSpec, request: Request) -> AsyncGenerator[Items, None]:
    request.vectors, tokens = await upstream.embed(
        spec.model, request.texts, request.options, first_token=spec.first_token_seconds
    )
    yield _embedded(request, tokens)


async def _own_vectors(llm: LLM, request: Request) -> Items:
    if request.options:
        raise LLMRejected("This language model's embeddings have a length of their own.")
    try:
        request.vectors = await llm.embed(request.texts)
    except NotImplementedError:
        raise LLMRejected("This language model makes no embeddings.") from None
    return _embedded(request, None)


def _embedded(request: Request, tokens: int | None) -> Items:
    if len(request.vectors) != len(request.texts):
        raise LLMError("The language model gave fewer embeddings than it was given texts.")
    return (Finish("stop", Usage(tokens or request.tokens, estimated=not tokens)),)


async def _paused(error: LLMError, pause: float, deadline: float) -> float:
    """Wait before all are asked once more, and give the next pause; the error when that would take too long."""
    seconds = error.retry_after or pause
    if seconds > LONGEST_PAUSE or asyncio.get_running_loop().time() + seconds > deadline:
        raise error
    await asyncio.sleep(seconds)
    return pause * 2


def chain(model: Model, catalog: Mapping[str, Model]) -> list[Model]:
    """A model and its fallbacks, theirs included, in the order in which they are asked."""
    if not model.fallback:
        return [model]
    found: dict[str, Model] = {}
    waiting = [model]
    while waiting:
        each = waiting.pop(0)
        if each.alias not in found:
            found[each.alias] = each
            waiting += [catalog[name] for name in (*each.fallback, *each.cascade)]
    return [each for each in found.values() if not each.cascade]


def fitting(models: Sequence[Model], tokens: int) -> list[Model]:
    """Those whose context holds so many tokens; `LLMRejected` when none does."""
    large = [model for model in models if model.context is None or tokens <= model.context]
    if not large:
        raise LLMRejected("The conversation is longer than the language model's context.")
    return large
