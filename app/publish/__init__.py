"""Publishes one agent as an API of its own: a second, small composition root, without accounts or a database.

app = publish_agent_api(MyAgent(llm=OpenAILike(…)), "run")      # and then `uvicorn module:app`
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints

from app import settings
from app.agent.base import BaseAgent
from app.agent.memory import BaseMemory
from app.agent.request import OpenAIRequest
from app.errors import SettingsError
from app.publish.answering import Asked
from app.publish.door import Door, Keys, install
from app.publish.sessions import HereSessions, MemoryPool, RedisSessions, Sessions, can_export
from app.publish.streamer import DataStreamer
from app.publish.workers import OnlyWorker
from app.store import redis
from app.tasks import Tasks
from app.usecases.rates import Rates

__all__ = [
    "APIPublisherConfig",
    "AgentValidationError",
    "DataStreamer",
    "MemoryPool",
    "OpenAIRequest",
    "publish_agent_api",
]


class AgentValidationError(Exception):
    """What was given cannot be published; the text says why."""


class APIPublisherConfig(BaseModel):
    """How an agent is published. Times are in seconds; in title and description stand `{agent_name}` and `{method_name}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Annotated[str, StringConstraints(pattern=r"^(/[A-Za-z0-9._~-]+)*/?$")] = "/alphadata"
    memory_ttl: float = Field(3600, gt=0, le=31_536_000)
    max_memory_items: int = Field(1000, ge=1, le=10_000_000)
    auto_clean_interval: float = Field(600, gt=0)
    api_title: str = "{agent_name} API"
    api_description: str = "{agent_name}.{method_name} in OpenAI's protocol."
    api_keys: tuple[SecretStr, ...] = ()
    """Keys that callers need one of; without any, everybody may call."""
    requests_per_minute: int | None = Field(None, ge=1, le=1_000_000)
    """Of each key, or without keys of each address."""
    timeout: float = Field(300, gt=0, le=86_400)


def publish_agent_api(agent: BaseAgent, method: str, config: APIPublisherConfig | None = None) -> FastAPI:
    """An app with `POST {path}/chat/completions`, answered by `method`, an `async def` that takes one `OpenAIRequest`.

    Each request has an agent of its own, made with the same arguments. Sessions are kept in Redis where `REDIS_URL` is set.
    `AgentValidationError` for what cannot be published, `SettingsError` for a wrong setting.
    """
    config = config or APIPublisherConfig()
    wanted = _request_class(agent, method)
    given = settings.load().redis_url
    client = redis.connect(given.get_secret_value()) if given else None
    kind = type(agent)
    name = sha256(f"{kind.__module__}.{kind.__qualname__}.{method}:{config.path}".encode()).hexdigest()[:16]
    asked = Asked(agent, method)
    _check_memory(asked.memory_cls)
    sessions = _sessions(asked, config, name, client)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        place, tasks = (OnlyWorker(name) if client is None else None), Tasks()
        tasks.repeat(sessions.clean, config.auto_clean_interval, name="cleaning of sessions")
        try:
            yield
        finally:
            await tasks.close()
            await asked.close()
            if client:
                await client.aclose()
            if place:
                place.close()

    title, description = (
        text.replace("{agent_name}", kind.__name__).replace("{method_name}", method)
        for text in (config.api_title, config.api_description)
    )
    app = FastAPI(title=title, description=description, lifespan=lifespan)
    door = Door(
        asked,
        sessions,
        wanted,
        Keys([key.get_secret_value() for key in config.api_keys]),
        Rates(config.requests_per_minute or 0, client),
        config.timeout,
    )
    install(app, door, config.path.rstrip("/") + "/chat/completions")
    app.add_middleware(_Sentence)
    return app


def _sessions(asked: Asked, config: APIPublisherConfig, name: str, client: redis.Client | None) -> Sessions:
    """Where the sessions of the address are kept; `AgentValidationError` for a memory that Redis cannot keep."""
    if client is None:
        return HereSessions(MemoryPool(config.memory_ttl, config.max_memory_items))
    if not can_export(asked.memory_cls):
        raise AgentValidationError(f"{asked.memory_cls.__name__} needs export() and load() to be kept in Redis.")
    return RedisSessions(client, name, ttl=config.memory_ttl, max_items=config.max_memory_items)


class _Sentence:
    """Tells a server why it cannot start in one sentence, and without a traceback (ASGI, lifespan)."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        told: list[dict[str, Any]] = []

        async def sending(message: dict[str, Any]) -> None:
            if message["type"] == "lifespan.startup.failed":
                told.append(message)
            else:
                await send(message)

        try:
            await self._app(scope, receive, sending)
        except SettingsError as error:
            if not told:
                raise
            await send({**told.pop(), "message": str(error)})
        finally:
            if told:
                await send(told.pop())


def _request_class(agent: object, method: str) -> type[OpenAIRequest]:
    """The class of request that the method takes."""
    if not isinstance(agent, BaseAgent):
        raise AgentValidationError("Only an instance of BaseAgent can be published.")
    name = f"{type(agent).__name__}.{method}"
    found = None if method.startswith("_") else getattr(agent, method, None)
    if not callable(found):
        raise AgentValidationError(f"There is no method {name}.")
    if not inspect.iscoroutinefunction(found):
        raise AgentValidationError(f"{name} must be an async def.")
    parameters = list(inspect.signature(found).parameters.values())
    taken = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    if len(parameters) != 1 or not taken:
        raise AgentValidationError(f"{name} must have one parameter: request: OpenAIRequest.")
    wanted = _resolved(taken[0].annotation, inspect.unwrap(found))
    if not (isinstance(wanted, type) and issubclass(wanted, OpenAIRequest)):
        raise AgentValidationError(f"The parameter of {name} must be annotated as OpenAIRequest.")
    return wanted


def _check_memory(memory_cls: type[BaseMemory]) -> None:
    """Each session gets a memory of its own."""
    try:
        inspect.signature(memory_cls).bind()
    except TypeError:
        raise AgentValidationError(
            f"{memory_cls.__name__} must be made without arguments, for each session anew."
        ) from None


def _resolved(annotation: Any, function: Any) -> Any:
    """An annotation, also when its evaluation is postponed (PEP 563) and when its name was imported for type checkers only."""
    if not isinstance(annotation, str):
        return annotation
    text = annotation.strip("'\" ")
    names = vars(sys.modules[function.__module__]) if function.__module__ in sys.modules else {}
    found: Any = {**names, **getattr(function, "__globals__", {})}
    for place, part in enumerate(text.split(".")):
        found = found.get(part) if place == 0 else getattr(found, part, None)
    return OpenAIRequest if found is None and text.rpartition(".")[2] == "OpenAIRequest" else found
