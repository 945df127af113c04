"""The servers behind the aliases, as this process knows them: connections, limits and health, and which of them comes next."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from app.errors import LLMError, LLMUnavailable
from app.llm.catalog import Catalog, CatalogError, EndpointSpec, Model
from app.llm.lease import Limiter
from app.llm.llm import LLM
from app.llm.refusals import UpstreamAuth, UpstreamBusy
from app.llm.slices import Slices
from app.llm.upstream import Deadlines, Upstream

log = logging.getLogger(__name__)

LONGEST_COOLDOWN = 30.0
"""Seconds that an endpoint is passed over after failures: one after the first, and twice as long after each further one."""
REFUSED_SECONDS = 60.0
"""How long an endpoint that refused our key is not asked again."""


class Endpoint:
    """One server under one key. Its limits outlive every reload, its connections a change of the key do not."""

    def __init__(self, spec: EndpointSpec, slices: Slices | None, deadlines: Deadlines | None) -> None:
        self.limiter = Limiter(spec.id, max_concurrency=spec.max_concurrency, rpm=spec.rpm, tpm=spec.tpm, slices=slices)
        self.refused: str | None = None
        """Why the endpoint is disabled: its server refused our key."""
        self._deadlines = deadlines
        self.upstream = _upstream(spec, deadlines)
        self._server = (spec.base_url, spec.api_key)
        self._down_until = self._refused_until = 0.0
        self._failures = 0
        self._told: str | None = None
        """What the log says of it that only its operator can set right, since it last answered."""
        self.retired: list[Upstream] = []

    def configure(self, spec: EndpointSpec) -> None:
        """Take the limits and the key as they are now. A new key begins with a clean record."""
        self.limiter.configure(max_concurrency=spec.max_concurrency, rpm=spec.rpm, tpm=spec.tpm)
        server = (spec.base_url, spec.api_key)
        if server == self._server:
            return
        self._server = server
        self.retired.append(self.upstream)
        self.upstream = _upstream(spec, self._deadlines)
        self.succeeded()

    def is_refused(self, now: float) -> bool:
        """Whether it refused our key a moment ago."""
        return self.refused is not None and now < self._refused_until

    def is_down(self, now: float) -> bool:
        """Whether it is passed over after failures, as long as there is another."""
        return now < self._down_until

    def succeeded(self) -> None:
        """It answers."""
        self.refused, self._failures, self._down_until, self._told = None, 0, 0.0, None

    def failed(self, error: LLMError, spec: EndpointSpec) -> LLMError:
        """It did not answer: the error, in words that fit where the endpoint was set up."""
        if isinstance(error, UpstreamAuth):
            error = UpstreamAuth(
                f"The language model's server does not accept the key in {spec.api_key_env or 'no variable'}."
            )
            self.refused = error.message
            self._refused_until = _time() + REFUSED_SECONDS
        else:
            self._failures += 1
            self._down_until = _time() + min(LONGEST_COOLDOWN, 2.0 ** (self._failures - 1))
        is_news = self._told != error.message and not isinstance(error, UpstreamBusy)
        if is_news and isinstance(error, LLMUnavailable):
            self._told = error.message
            log.warning("%s does not answer for %s: %s", spec.base_url, spec.model, error.message)
        return error


class Choice(NamedTuple):
    """An endpoint to ask, and what it is asked for."""

    spec: EndpointSpec
    endpoint: Endpoint


class Endpoints:
    """All endpoints of this process, kept for as long as it lives: their limiters must not be made twice."""

    def __init__(self, slices: Slices | None = None, deadlines: Deadlines | None = None) -> None:
        """`deadlines` are those of every call, in place of the usual ones."""
        self._slices = slices
        self._deadlines = deadlines
        self._known: dict[str, Endpoint] = {}
        self._turns: dict[str, dict[str, int]] = {}
        self._applied: Catalog | None = None

    def apply(self, catalog: Catalog) -> None:
        """Make what a catalog names, and configure what is there already."""
        if catalog is self._applied:
            return
        self._applied = catalog
        for spec in (spec for model in catalog.models.values() for spec in model.endpoints):
            if known := self._known.get(spec.id):
                known.configure(spec)
            else:
                self._known[spec.id] = Endpoint(spec, self._slices, self._deadlines)
        self._turns.clear()

    def of(self, spec: EndpointSpec) -> Endpoint:
        """The endpoint of a spec of the applied catalog."""
        return self._known[spec.id]

    def known(self, id: str) -> Endpoint | None:
        """The endpoint of that id, if there was ever one in this process."""
        return self._known.get(id)

    def choose(self, model: Model, tried: Collection[str]) -> Choice | None:
        """The next endpoint of a model that was not `tried`: by weight in turn, those first that would not have to wait.

        Endpoints that failed a moment ago come only when there is no other, those that refused our key not at all.
        """
        now = _time()
        left: list[Choice] = []
        for spec in model.endpoints:
            endpoint = self._known[spec.id]
            if spec.id not in tried and not endpoint.is_refused(now):
                left.append(Choice(spec, endpoint))
        if len(left) > 1:
            left = [choice for choice in left if not choice.endpoint.is_down(now)] or left
            left = [choice for choice in left if choice.endpoint.limiter.has_room] or left
        return self._in_turn(model.alias, left) if len(left) > 1 else left[0] if left else None

    def ordered(self, models: Sequence[Model]) -> Sequence[Model]:
        """These models, but those at the end whose endpoints all failed a moment ago."""
        return models if len(models) == 1 else sorted(models, key=self.is_away)

    def is_away(self, model: Model) -> bool:
        """Whether all of a model's endpoints failed a moment ago."""
        now, known = _time(), [self.of(spec) for spec in model.endpoints]
        return bool(known) and all(endpoint.is_down(now) or endpoint.is_refused(now) for endpoint in known)

    def _in_turn(self, alias: str, choices: list[Choice]) -> Choice:
        """Smooth weighted round robin, as nginx has it: each gains its weight, the winner pays what all have gained."""
        turns = self._turns.setdefault(alias, {})
        for choice in choices:
            turns[choice.spec.id] = turns.get(choice.spec.id, 0) + choice.spec.weight
        winner = max(choices, key=lambda choice: turns[choice.spec.id])
        turns[winner.spec.id] -= sum(choice.spec.weight for choice in choices)
        return winner

    def why_none(self, models: Iterable[Model]) -> LLMError:
        """Why no endpoint of these models can be asked."""
        reasons = (self.of(spec).refused for model in models for spec in model.endpoints)
        return UpstreamAuth(next(filter(None, reasons), None))

    async def close(self) -> None:
        """Close the connections of this event loop."""
        for endpoint in self._known.values():
            for upstream in (endpoint.upstream, *endpoint.retired):
                await upstream.close()


class OwnLLMs:
    """The operator's own LLM classes that a catalog names: `package.module:Class`, made without arguments, once."""

    def __init__(self) -> None:
        self._made: Mapping[str, LLM] = {}

    def load(self, catalog: Catalog) -> None:
        """Import and make what a catalog names; `CatalogError` when that fails. Belongs off the event loop."""
        made: dict[str, LLM] = {}
        for alias, name in ((alias, model.llm) for alias, model in catalog.models.items() if model.llm):
            made[name] = made.get(name) or self._made.get(name) or _own(alias, name)
        self._made = made

    def get(self, name: str) -> LLM:
        """The LLM that was made."""
        found = self._made.get(name)
        if found is None:
            raise LLMUnavailable("The language model's class is not loaded.")
        return found


def _own(alias: str, name: str) -> LLM:
    place = ("models", alias, "llm")
    module, _, cls = name.partition(":")
    try:
        made = getattr(importlib.import_module(module), cls)()
    except (Exception, SystemExit) as error:  # whatever the operator's own code does
        raise CatalogError(place, f"{name} cannot be made ({type(error).__name__}).") from error
    if not isinstance(made, LLM):
        raise CatalogError(place, f"{name} is no BaseLLM.")
    return made


def _upstream(spec: EndpointSpec, deadlines: Deadlines | None) -> Upstream:
    return Upstream(spec.base_url, spec.api_key.reveal() if spec.api_key else None, deadlines=deadlines)


def _time() -> float:
    return asyncio.get_running_loop().time()
