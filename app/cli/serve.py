"""`chattable serve`: the parent of everything. It alone migrates and owns the embedded servers; workers get URLs."""

from __future__ import annotations

import asyncio
import errno
import http.client
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import typer

from app.cli.banner import banner, reachable
from app.cli.workers import WorkerError, Workers
from app.errors import SettingsError
from app.servers import process
from app.servers.lock import Lock, lock_data_dir, try_lock
from app.servers.postgres import Postgres
from app.servers.valkey import Valkey
from app.settings import Settings

READY_SECONDS = 60.0
EARLIER_WORKERS_SECONDS = 15.0  # a worker whose parent was killed ends by itself within 6 s
TICK = 0.1  # seconds between two looks at the children


class Stopped(BaseException):
    """Someone asked for the end: Ctrl-C, SIGTERM, or the terminal went away."""


class Signals:
    """The first signal raises `Stopped` in the main thread; later ones only set `hurried`."""

    def __init__(self) -> None:
        self.stopping = False
        self.hurried = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # `nohup` means it
                signal.signal(number, self._received)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if self.stopping:
            self.hurried = True
            return
        self.stopping = True
        raise Stopped


class Engines:
    """The embedded servers of this start: those whose URL is not set."""

    def __init__(self, settings: Settings, data_dir: Path) -> None:
        self._settings = settings
        self.postgres = None if settings.database_url else Postgres(data_dir)
        self.valkey = None if settings.redis_url else Valkey(data_dir)

    def start(self) -> None:
        """Start them side by side and wait until they answer."""
        if self.valkey:
            self.valkey.launch()
        if self.postgres:
            self.postgres.start()
        if self.valkey:
            self.valkey.wait_ready()

    def watch(self) -> None:
        """Start again what has died; workers find it under the same URL."""
        for name, engine in (("PostgreSQL", self.postgres), ("Valkey", self.valkey)):
            if engine and not engine.alive():
                typer.echo(f"{name} ended; it is started again.", err=True)
                engine.start()

    def stop(self) -> None:
        """Stop them, the database last."""
        for engine in (self.valkey, self.postgres):
            if engine:
                engine.stop()

    @property
    def database_url(self) -> str:
        """The address of the database, wherever it is."""
        given = self._settings.database_url
        return self.postgres.url if self.postgres else given.get_secret_value() if given else ""

    @property
    def direct_url(self) -> str:
        """The same, past a transaction pooler."""
        given = self._settings.database_direct_url
        return given.get_secret_value() if given and not self.postgres else self.database_url

    @property
    def is_pooled(self) -> bool:
        """Whether a transaction pooler is in front of the database."""
        return self.direct_url != self.database_url

    def settings(self) -> dict[str, str]:
        """What the workers must be told about them."""
        told = {"database_url": self.database_url, "database_direct_url": self.direct_url}
        return told | ({"redis_url": self.valkey.url} if self.valkey else {})


def run(settings: Settings) -> int:
    """Serve until a signal (0) or until the application cannot be started (1)."""
    check_folder(settings)
    signals = Signals()
    try:
        with ExitStack() as stack, _cleaning_undisturbed(signals):
            _serve(settings, stack, signals)
    except Stopped:
        return 0
    except WorkerError as error:
        typer.echo(f"chattable: {error}", err=True)
        return 1
    return 0


def check_folder(settings: Settings) -> None:
    """A `SettingsError` where there is no folder of agents."""
    if not settings.agents_dir.is_dir():
        raise SettingsError(f"AGENTS_DIR {settings.agents_dir.absolute()} is not a folder.")


@contextmanager
def _cleaning_undisturbed(signals: Signals) -> Iterator[None]:
    """From the first error on, signals hurry the end instead of interrupting it."""
    try:
        yield
    finally:
        signals.stopping = True


def _serve(settings: Settings, stack: ExitStack, signals: Signals) -> None:
    data_dir = settings.data_dir.absolute()
    stack.enter_context(lock_data_dir(data_dir))
    presence = stack.enter_context(_after_earlier_workers(data_dir))
    listener = stack.enter_context(_listen(settings.host, settings.port))
    engines = Engines(settings, data_dir)
    stack.callback(engines.stop)
    workers = Workers(settings.workers, listener, presence)
    stack.callback(workers.stop, lambda: signals.hurried)
    workers.watch()  # they import the application while the engines start
    _check_models(settings)
    _check_objects(settings)
    engines.start()
    about_key = prepare(settings, engines, data_dir)
    workers.tell(engines.settings() | _secret_key(settings, data_dir))
    port = listener.getsockname()[1]
    _wait_ready(workers, reachable(settings.host), port)
    typer.echo(banner(settings, port, about_key))
    while True:
        engines.watch()
        workers.watch()
        time.sleep(TICK)


def _after_earlier_workers(data_dir: Path) -> Lock:
    """The lock that workers hold as long as they live, once those of a killed `serve` have ended."""
    found: list[Lock] = []

    def free() -> bool:
        if lock := try_lock(data_dir / "workers.lock"):
            found.append(lock)
        return bool(found)

    if not process.wait_until(free, EARLIER_WORKERS_SECONDS):
        raise SettingsError(f"Workers of an earlier server still run on DATA_DIR {data_dir}: end them first.")
    return found[0]


def _listen(host: str, port: int) -> socket.socket:
    """The listening socket, or a sentence that names the setting at fault."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(where[:2], family=family, backlog=2048)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            sentence = f"PORT {port} is taken on {host}: set PORT to another, or to 0 for a free one."
        elif error.errno == errno.EACCES:
            sentence = f"PORT {port} needs privileges: set PORT to 1024 or more."
        else:
            sentence = f"HOST {host} cannot be listened on ({str(error.strerror).partition(' (')[0]})."
        raise SettingsError(sentence) from None


@contextmanager
def checking(setting: str) -> Iterator[None]:
    """A first use of the database: at a start a wrong address is told at once, and not waited for as a worker does later."""
    import asyncpg
    from sqlalchemy.exc import DBAPIError

    try:
        yield
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, DBAPIError) as error:
        reason = error.orig if isinstance(error, DBAPIError) and error.orig else error
        sentence = f"The database of {setting} cannot be used ({type(reason).__name__}: {reason})."
        if "startup parameter" in str(reason):
            sentence += " Is it a transaction pooler? Then set DATABASE_DIRECT_URL to the address past it."
        raise SettingsError(sentence) from error


def _check_models(settings: Settings) -> None:
    """A start with a broken models file ends with its sentence; a later edit that breaks it only changes nothing."""
    from app.main import mcp_servers, models_file

    mcp_servers(settings, strict=True)
    models_file(settings, lambda _: None, strict=True)  # operators' own classes are imported by workers only


def _check_objects(settings: Settings) -> None:
    """As with the database: a wrong address or key is told at once."""
    from app.main import check_objects

    asyncio.run(check_objects(settings))


def prepare(settings: Settings, engines: Engines, data_dir: Path) -> str:
    """Bring the database of started engines to the newest schema; gives the sentence about the first administrator's key."""
    from app.cli.keys import first_administrator

    key = settings.admin_api_key.get_secret_value() if settings.admin_api_key else None
    with checking("DATABASE_DIRECT_URL" if engines.is_pooled else "DATABASE_URL"):
        _upgrade(engines.direct_url, engines.postgres)
    with checking("DATABASE_URL"):
        return first_administrator(engines.database_url, data_dir, key, pooled=engines.is_pooled)


def check_schema(settings: Settings) -> None:
    """A `SettingsError` where DATABASE_URL is of another schema: only servers, and `chattable migrate`, change it."""
    from app.store import migrations

    direct = settings.database_direct_url or settings.database_url
    assert direct is not None  # noqa: S101 - asked for by who has it
    with checking("DATABASE_DIRECT_URL" if settings.database_direct_url else "DATABASE_URL"):
        if asyncio.run(migrations.current(direct.get_secret_value())) != migrations.HEAD:
            raise SettingsError("The database is at another schema: run `chattable migrate` of this version.")


def _secret_key(settings: Settings, data_dir: Path) -> dict[str, str]:
    from app.cli.keys import secret_key

    return {} if settings.secret_key else {"secret_key": secret_key(data_dir)}


def _upgrade(url: str, postgres: Postgres | None = None) -> None:
    from app.store import migrations

    if postgres:
        migrations.add_vectors(postgres.superuser_url)
    migrations.upgrade(url)


def _wait_ready(workers: Workers, host: str, port: int) -> None:
    def ready() -> bool:
        workers.watch()
        return workers.ready and _answers(host, port)

    if not process.wait_until(ready, READY_SECONDS):
        raise WorkerError(f"The application was not ready within {READY_SECONDS:.0f} s.")


def _answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def upgrade(settings: Settings) -> None:
    """Bring the database to the newest schema; an embedded one is started for it."""
    with ExitStack() as stack:
        if settings.database_url is None:
            stack.enter_context(lock_data_dir(settings.data_dir.absolute()))
            postgres = Postgres(settings.data_dir)
            stack.callback(postgres.stop)
            postgres.start()
            _upgrade(postgres.url, postgres)
            return
        name = "DATABASE_DIRECT_URL" if settings.database_direct_url else "DATABASE_URL"
        with checking(name):
            _upgrade((settings.database_direct_url or settings.database_url).get_secret_value())
