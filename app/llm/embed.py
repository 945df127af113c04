"""Embeddings by the call path: from the cache as far as it has them, the rest some at a time, all in one step."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from app.domain import Usage, Value
from app.errors import InvalidInput
from app.journal.recorder import OpenStep, Recorder
from app.llm.catalog import DEFAULT, Catalog, Model
from app.llm.entries import CachedVector
from app.llm.messages import Prompt, encoded
from app.llm.route import Request
from app.llm.stages import Caller, Stages
from app.llm.tokens import count

EMBEDDING = "embedding"
"""The alias that embeds texts when none is named."""
NO_PROMPT = Prompt((), 0)
MAX_NUMBERS = 20_000
"""How many numbers of embeddings one step records: those of a dozen texts, as a rule."""
TEXTS_PER_REQUEST = 100
"""How many texts are embedded at once; the lists that servers take are often not much longer."""


async def embed(
    stages: Stages,
    texts: Sequence[str],
    alias: str | None,
    caller: Caller,
    recorder: Recorder,
    dimensions: int | None = None,
) -> list[list[float]]:
    """The embedding of each text, in order."""
    if isinstance(texts, str) or not all(isinstance(text, str) and text for text in texts):
        raise InvalidInput("texts must be a list of texts that are not empty.", param="texts")
    model = embedding_model(stages.catalog(), alias)
    parts = {text: text.encode(errors="surrogatepass") for text in texts}
    if not parts:
        return []
    options = {} if dimensions is None else {"dimensions": dimensions}
    values = [Value.of(part) for part in parts.values()]
    asked = encoded({"model": model.alias, "texts": [value.digest.hex() for value in values], **options}, "texts")
    with recorder.step("llm", model.alias, input=asked, parts=values) as step:
        if step.served is None:
            made, known = await _made(stages, model, parts, options, caller, step)
            step.done(_recorded(made, known))
        if step.served is not None:
            made = dict(zip(parts, map(_vector, msgspec.json.decode(step.served, type=_Vectors).vectors), strict=True))
    return [made[text] for text in texts]


async def _made(
    stages: Stages,
    model: Model,
    parts: Mapping[str, bytes],
    options: Mapping[str, int],
    caller: Caller,
    step: OpenStep,
) -> tuple[dict[str, list[float]], int]:
    """The embeddings of texts, and how many of them the cache had."""
    dimensions = options.get("dimensions")
    kind = b"embedding %s" % (b"" if dimensions is None else b"%d " % dimensions)
    questions = {text: stages.question(model, caller, "", kind + part) for text, part in parts.items()}
    found = dict(zip(questions, await stages.cache.find(list(questions.values())), strict=True))
    known = {text: entry for text, entry in found.items() if isinstance(entry, CachedVector)}
    vectors = {text: list(array("d", entry.numbers)) for text, entry in known.items()}
    missing = [text for text in questions if text not in known]
    step.model = model.name
    step.from_cache = not missing
    step.usage = Usage(saved=model.price.cost(Usage(sum(entry.tokens for entry in known.values()))))
    if missing:
        vectors |= await _embedded(stages, model, missing, options, caller, step)
    for text in missing:
        stages.cache.keep(questions[text], CachedVector(array("d", vectors[text]).tobytes(), count(text)))
    return vectors, len(known)


class _Vectors(msgspec.Struct):
    """What the step of embeddings has as its output: each a row of 64-bit floats."""

    vectors: list[bytes]
    from_cache: int = 0


def _recorded(vectors: Mapping[str, Sequence[float]], known: int) -> bytes | None:
    """Embeddings as they are recorded, unless they are too many: then they are made again, mostly from the cache."""
    if sum(map(len, vectors.values())) > MAX_NUMBERS:
        return None
    return msgspec.json.encode(_Vectors([array("d", vector).tobytes() for vector in vectors.values()], known))


def _vector(row: bytes) -> list[float]:
    return list(array("d", row))


def embedding_model(catalog: Catalog, alias: str | None = None) -> Model:
    """The model that embeds texts: `alias`, or the one that does when none is named."""
    model = catalog.get(alias or (EMBEDDING if EMBEDDING in catalog.models else DEFAULT))
    if model.cascade:
        raise InvalidInput("model must not be a cascade: two models' embeddings differ.", param="model")
    return model


async def _embedded(
    stages: Stages,
    model: Model,
    texts: Sequence[str],
    options: Mapping[str, int],
    caller: Caller,
    step: OpenStep,
) -> dict[str, list[float]]:
    """Reserve, have them embedded some at a time, and settle what that took, however far it came."""
    reservation = await stages.reserve(caller, sum(map(count, texts)), 1, model.price)
    vectors: list[list[float]] = []
    spent = Usage()
    try:
        for first in range(0, len(texts), TEXTS_PER_REQUEST):
            part = texts[first : first + TEXTS_PER_REQUEST]
            request = Request(NO_PROMPT, options, caller.owner, sum(map(count, part)), batch=caller.batch, texts=part)
            try:
                spent += await stages.router.embed(model, request)
            except asyncio.CancelledError:
                spent += Usage(request.tokens if request.hits else 0, estimated=True)
                raise
            vectors += request.vectors
    finally:
        spent = replace(spent, cost=model.price.cost(spent))
        step.usage += spent
        stages.settle(reservation, spent)
    return dict(zip(texts, vectors, strict=True))
