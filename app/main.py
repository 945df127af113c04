"""The composition root of the server: opens everything, joins it, and closes it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache, partial
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app import settings as settings_module
from app.agent import mcp_file
from app.agent.loader import Agents
from app.agent.mcp_file import ServerSpec
from app.agent.mcp_servers import Servers
from app.agent.relay import ModelRelay
from app.agent.sandbox import Box
from app.agent.watchdog import Watchdog
from app.api import accounts as accounts_api
from app.api import audit as audit_api
from app.api import batches as batches_api
from app.api import benches as benches_api
from app.api import budgets as budgets_api
from app.api import cache as cache_api
from app.api import (
    conversations,
    cookies,
    copies,
    docs,
    errands,
    health,
    knowledge,
    mcp,
    memories,
    model_protocol,
    oidc,
    openai,
    openapi,
    page,
    presets,
    problems,
    responses,
    rest,
    schedules,
    seed,
    traces,
    webhooks,
)
from app.api import files as files_api
from app.api import invites as invites_api
from app.api import metrics as metrics_api
from app.api.door import RunDoor
from app.api.gate import Gate, uploads
from app.domain import FileLimits, new_id
from app.errors import SettingsError
from app.jobs.consumer import Consumer
from app.jobs.kinds import kinds
from app.llm.batching import Batching
from app.llm.cache import FLUSH_SECONDS, Cache
from app.llm.call import CallPath
from app.llm.catalog import Catalog
from app.llm.discovery import discover
from app.llm.endpoints import Endpoints, OwnLLMs
from app.llm.models_file import ModelsFile
from app.llm.route import Router
from app.llm.slices import Slices
from app.metrics import Metrics
from app.settings import Settings
from app.store import redis, slices
from app.store.cache import RedisCache
from app.store.database import connect, connector, plain_connector
from app.store.milvus import MilvusVectors
from app.store.objects import LocalObjects
from app.store.objects_s3 import S3Objects
from app.store.reserve import Reserver
from app.store.spans import Spans, headers_of, is_installed
from app.store.writer import Writer
from app.tasks import Tasks
from app.usecases import clock, files, logins, measuring, openid, replicas, runs, upkeep, vectors
from app.usecases.courier import Courier
from app.usecases.live import LiveRun
from app.usecases.llm_batches import StoredBatches
from app.usecases.objects import ObjectStore
from app.usecases.platform import Platform
from app.usecases.rates import Rates
from app.usecases.relay import Relay
from app.usecases.together import Together
from app.usecases.upkeep import Keeping

log = logging.getLogger(__name__)

DRAIN_SECONDS = 15.0
SHOWN_TO_PAGES = (
    "x-session-id",
    "x-run-id",
    "x-request-id",
    "x-should-retry",
    "retry-after",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
)
"""Headers that the scripts of other origins may read (Fetch standard, `Access-Control-Expose-Headers`)."""


def create_app(settings: Settings, metrics: Metrics | None = None) -> FastAPI:
    """The application; it opens its parts when it starts and closes them when it ends. Its numbers are added to `metrics`."""
    if settings.database_url is None:
        raise SettingsError("DATABASE_URL is not set; `chattable serve` starts a database and sets it for its workers.")
    database_url = settings.database_url.get_secret_value()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with opened(settings, database_url, metrics) as platform:
            if settings.jobs:
                take_jobs(platform, settings, settings.jobs)
            app.state.platform = platform
            yield
            await runs.drain(platform, 0)

    metrics = metrics or Metrics()
    spans_of(settings, metrics)  # what is missing for it is told before anything is opened
    app = _Gated(
        settings,
        metrics,
        title="Chattable",
        version="0.1.0",
        lifespan=lifespan,
        routes=routes(),
        openapi_url=None,  # `docs` serves it, and the page over it
        redirect_slashes=False,  # or a made-up Host would stand in a Location
    )
    app.state.oidc = _identity_provider(settings)
    app.state.document = docs.Document(app)
    app.state.page = page.Page()
    app.state.mcp = mcp.Door(*_names(settings))
    problems.install(app)
    return app


@cache
def routes() -> list[BaseRoute]:
    """Every route. FastAPI works each out when it is first looked for, so the applications of one process share them."""
    every = APIRouter(generate_unique_id_function=openapi.operation_id)
    for router in (
        page.router,
        docs.router,
        health.router,
        metrics_api.router,
        audit_api.router,
        accounts_api.router,
        invites_api.router,
        oidc.router,
        benches_api.router,
        cookies.router,
        budgets_api.router,
        cache_api.router,
        copies.router,
        rest.router,
        traces.router,
        errands.router,
        knowledge.router,
        memories.router,
        model_protocol.router,
        mcp.router,
        presets.router,
        seed.router,
        schedules.router,
        webhooks.router,
    ):
        every.include_router(router)
    for prefix in openai.PREFIXES:
        for router in (openai.router, files_api.router, batches_api.router, responses.router, conversations.router):
            every.include_router(router, prefix=prefix)
    return every.routes


def _identity_provider(settings: Settings) -> openid.Provider | None:
    """The provider of the settings; PyJWT is needed for it."""
    if not (settings.oidc_issuer and settings.oidc_client_id and settings.oidc_client_secret):
        return None
    if find_spec("jwt") is None or find_spec("cryptography") is None:
        raise SettingsError("OIDC_ISSUER needs the package pyjwt with its extra crypto: ./scripts/extras installs it.")
    return openid.Provider(
        openid.Spec(
            settings.oidc_issuer,
            settings.oidc_client_id,
            settings.oidc_client_secret.get_secret_value(),
            f"{settings.public_url}{oidc.PATH}/callback",
            _secret(settings),
            settings.oidc_groups_claim,
            settings.oidc_admin_group,
        )
    )


def _names(settings: Settings) -> tuple[frozenset[str], frozenset[str]]:
    """The host names of this server, and the origins of pages that may call it."""
    public = urlsplit(settings.public_url or "")
    hosts = {settings.host, public.hostname or settings.host}
    origins = {*settings.cors_origins, *([f"{public.scheme}://{public.netloc}"] if public.netloc else [])}
    return frozenset(hosts), frozenset(origins)


class _Gated(FastAPI):
    """FastAPI with the gate outside of all its own middleware, which a message that takes a shortcut does not pay for."""

    def __init__(self, settings: Settings, metrics: Metrics, **options: Any) -> None:
        super().__init__(**options)
        self._settings = settings
        self._metrics = metrics
        self._is_https = urlsplit(settings.public_url or "").scheme == "https"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve (ASGI), past FastAPI's own look for OpenTelemetry, which costs as much as the gate.

        Where the public address is https, so is every request, though TLS has ended before this server.
        """
        if self._is_https and scope["type"] == "http":
            scope["scheme"] = "https"
        await Starlette.__call__(self, scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, made at the first look at it."""
        return self.openapi_schema or openapi.complete(super().openapi())

    def build_middleware_stack(self) -> ASGIApp:
        """Starlette's stack behind the gate, which does the work of its outermost part: telling what nobody expected as 500."""
        inner: Any = super().build_middleware_stack()
        open_to_local = self._settings.auth == "open"
        shortcuts = {**seed.SHORTCUTS, **openai.SHORTCUTS}
        key = self._settings.metrics_key
        gate = Gate(
            inner.app,
            platform=lambda: self.state.platform,
            open_to_local=open_to_local,
            shortcuts=shortcuts,
            uploads={**uploads(files_api.UPLOAD_PATHS, self._settings.file_max_bytes), **copies.ALLOWANCES},
            metrics=self._metrics,
            metrics_key=key.get_secret_value() if key else None,
        )
        if not self._settings.cors_origins:
            return gate
        origins = self._settings.cors_origins
        return CORSMiddleware(
            gate, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=SHOWN_TO_PAGES
        )


async def drain(app: FastAPI) -> None:
    """Prepare for the end, while requests are still served: `/readyz` says no, and answers get time to end."""
    await runs.drain(app.state.platform, DRAIN_SECONDS)


def take_jobs(platform: Platform, settings: Settings, at_once: int) -> None:
    """Do jobs in this process, so many at once, until the platform drains or closes."""
    url = settings.database_direct_url or settings.database_url
    assert url is not None  # noqa: S101 - the platform is open
    consumer = Consumer(platform, plain_connector(url.get_secret_value()), kinds(batches_api.ask), at_once)
    platform.tasks.start(consumer.run(), name="jobs")


@asynccontextmanager
async def opened(settings: Settings, database_url: str, metrics: Metrics | None = None) -> AsyncIterator[Platform]:
    """The platform, open while the block lasts; it beats as a replica, and reaps those of others."""
    async with AsyncExitStack() as stack:
        pooled = _is_pooled(settings)
        engine = connect(database_url, pooled=pooled)
        stack.push_async_callback(engine.dispose)
        # A worker that starts again while the database is away serves all the same, and says 503 until it is back.
        await upkeep.begin(engine)
        tasks = Tasks()
        servers = Servers(mcp_servers(settings, strict=False), tasks)
        agents = await _agents(settings, servers, stack)
        client = redis.connect(settings.redis_url.get_secret_value()) if settings.redis_url else None
        if client:
            stack.push_async_callback(client.aclose)
        milvus = vectors_of(settings)
        if milvus:
            stack.push_async_callback(milvus.close)
        door = RunDoor()
        stack.push_async_callback(door.close)
        live: dict[UUID, LiveRun] = {}
        connecting = connector(database_url, pooled=pooled)
        writer = Writer(connecting, new_id())
        take = partial(slices.take, client, writer.replica) if client else None
        models = _Models(settings, Slices(take, replicas=settings.workers) if take else None)
        draining = asyncio.Event()
        batching = Batching(StoredBatches(engine, writer.replica), models.endpoints, tasks, draining)
        stack.push_async_callback(models.endpoints.close)
        cache = Cache(RedisCache(client) if client else None)
        stack.push_async_callback(cache.close)
        await cache.flush()  # what was erased before its beginning is no news
        reserver = Reserver(connecting)
        store = objects(settings)
        stack.push_async_callback(store.close)
        metrics = metrics or Metrics()
        spans = _spans(settings, metrics, tasks, stack)
        courier = Courier(private=settings.webhooks_private)
        stack.push_async_callback(courier.close)
        platform = Platform(
            engine=engine,
            writer=writer,
            agents=agents,
            calls=models.call_path(cache, reserver, _secret(settings), batching),
            catalog=models.current,
            relay=Relay(client, live, partial(runs.load, engine)),
            reserver=reserver,
            rates=Rates(settings.requests_per_minute, client),
            cache=cache,
            proofs=Together(partial(logins.prove, engine), tasks, name="proofs"),
            resumes=Together(partial(runs.look, engine), tasks, name="resumes"),
            redis=client,
            objects=store,
            file_limits=FileLimits(settings.file_max_bytes, settings.user_max_files, settings.user_max_file_bytes),
            run_timeout=settings.run_timeout,
            admin_reads_chats=settings.admin_reads_chats,
            max_passages=settings.user_max_passages,
            is_away=models.endpoints.is_away,
            tasks=tasks,
            draining=draining,
            live=live,
            toolboxes=servers,
            door=door,
            box=Box(enabled=settings.sandbox),
            vectors=milvus,
            metrics=metrics,
            spans=spans,
            courier=courier,
        )
        heart = replicas.Heart(platform, connecting)
        heart.start()
        stack.callback(heart.stop)
        stack.push_async_callback(platform.tasks.close)
        _keep_going(platform, heart)
        models.keep_going(platform.tasks)
        keeping = Keeping(settings.session_days, settings.step_days, settings.audit_days)
        platform.tasks.start(upkeep.keep(engine, keeping), name="upkeep")
        yield platform


async def _agents(settings: Settings, servers: Servers, stack: AsyncExitStack) -> Agents:
    """The agents of the folder, and what ends those that hold up all others."""
    agents = Agents(settings.agents_dir, settings_module.agent_variables(), own=[ModelRelay], servers=servers.names)
    await agents.load()
    stack.callback(agents.close)
    watchdog = Watchdog(asyncio.get_running_loop())
    watchdog.start()
    stack.callback(watchdog.stop)
    return agents


def _keep_going(platform: Platform, heart: replicas.Heart) -> None:
    """Start what runs for as long as the server does."""
    tasks = platform.tasks
    tasks.start(platform.writer.run(), name="writer")
    tasks.start(platform.reserver.run(), name="reserver")
    tasks.start(platform.relay.run(), name="relay")
    tasks.start(platform.agents.watch(), name="agents")
    tasks.repeat(measuring.Gauges(platform).tell, measuring.GAUGE_SECONDS, name="gauges")
    tasks.repeat(platform.cache.flush, FLUSH_SECONDS, name="cache")
    tasks.repeat(partial(replicas.reap, platform, heart), replicas.REAP_SECONDS, name="reaper")
    tasks.repeat(partial(clock.tick, platform), clock.TICK_SECONDS, name="clock")
    tasks.repeat(partial(files.sweep, platform), files.SWEEP_SECONDS, name="erased objects")
    tasks.repeat(partial(vectors.forget, platform), vectors.SWEEP_SECONDS, name="erased vectors")


def vectors_of(settings: Settings) -> MilvusVectors | None:
    """Where passages are searched by their vectors, if not in PostgreSQL."""
    return MilvusVectors(f"http://{settings.milvus_host}:{settings.milvus_port}") if settings.milvus_host else None


def _spans(settings: Settings, counted: Metrics, tasks: Tasks, stack: AsyncExitStack) -> Spans | None:
    """Who is told of runs that have ended, if anybody."""
    spans = spans_of(settings, counted)
    if spans:
        stack.push_async_callback(spans.close)
        tasks.start(spans.run(), name="spans")
    return spans


def spans_of(settings: Settings, counted: Metrics) -> Spans | None:
    """Who is told of runs that have ended, if anybody; a `SettingsError` when the extra `otel` is missing for it."""
    if not settings.otel_exporter_otlp_endpoint:
        return None
    if not is_installed():
        raise SettingsError("OTEL_EXPORTER_OTLP_ENDPOINT needs the extra otel: ./scripts/extras installs it.")
    headers = settings.otel_exporter_otlp_headers
    return Spans(
        settings.otel_exporter_otlp_endpoint,
        headers_of(headers.get_secret_value()) if headers else {},
        counted,
        service=settings.otel_service_name,
        content=settings.otel_instrumentation_genai_capture_message_content,
    )


def objects(settings: Settings) -> ObjectStore:
    """Where files are kept: in the bucket of the settings, or in a folder of this machine."""
    access, secret = settings.minio_access_key, settings.minio_secret_key
    if settings.minio_endpoint and access and secret:
        keys = (access.get_secret_value(), secret.get_secret_value())
        return S3Objects(settings.minio_endpoint, *keys, settings.minio_bucket)
    return LocalObjects(settings.data_dir.absolute() / "objects")


async def check_objects(settings: Settings) -> None:
    """Make sure that files can be kept; a `SettingsError` names the setting at fault."""
    store = objects(settings)
    try:
        await store.check()
    finally:
        await store.close()


def _is_pooled(settings: Settings) -> bool:
    """Whether `DATABASE_URL` is that of a transaction pooler: then there is another past it."""
    return settings.database_direct_url is not None and settings.database_direct_url != settings.database_url


def models_file(settings: Settings, check: Callable[[Catalog], None], *, strict: bool) -> ModelsFile:
    """The models as the settings have them; a `SettingsError` when they cannot be used, if it is `strict`."""
    key = settings.openai_api_key
    openai = Catalog.from_openai(
        settings.openai_base_url, key.get_secret_value() if key else None, settings.openai_model
    )
    return ModelsFile(settings.models_file, settings_module.variables, openai, check, strict=strict)


def mcp_servers(settings: Settings, *, strict: bool) -> Mapping[str, ServerSpec]:
    """The MCP servers of the settings; a `SettingsError` when their file cannot be used, if it is `strict`, or else none."""
    try:
        return mcp_file.read(settings.mcp_file, settings_module.variables())
    except SettingsError as error:
        if strict:
            raise
        log.warning("there are no MCP servers: %s", error)
        return {}


class _Models:
    """What stands behind the aliases of language models: the file, the endpoints and their limits."""

    def __init__(self, settings: Settings, slices: Slices | None) -> None:
        self._slices = slices
        self._own = OwnLLMs()
        self.endpoints = Endpoints(slices)
        self._file = models_file(settings, self._own.load, strict=False)
        self.endpoints.apply(self._file.catalog)

    def call_path(self, cache: Cache, reserver: Reserver, secret: bytes, batching: Batching) -> CallPath:
        """The call path over them."""
        router = Router(self.endpoints, self._own, batching)
        return CallPath(self.current, router, cache=cache, reservations=reserver, secret=secret)

    def current(self) -> Catalog:
        """The models as they are now."""
        catalog = self._file.catalog
        self.endpoints.apply(catalog)
        return catalog

    def keep_going(self, tasks: Tasks) -> None:
        """Start what runs for as long as the server does."""
        tasks.start(self._file.watch(), name="models")
        tasks.start(discover(self._file, self.endpoints), name="discovery")
        if self._slices:
            tasks.start(self._slices.run(), name="slices")


def _secret(settings: Settings) -> bytes:
    """What names cached answers: `SECRET_KEY`, which `serve` makes once, or one of this process alone."""
    given = settings.secret_key
    return given.get_secret_value().encode() if given else secrets.token_bytes(32)
