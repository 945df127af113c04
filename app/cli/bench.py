"""`chattable bench`: test sets put to agents. The same command goes on where it was ended; several processes share a bench."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from app.domain import Bench, Principal
    from app.settings import Settings
    from app.suites.suite import Suite
    from app.usecases.bench_results import Compared
    from app.usecases.bench_work import Work
    from app.usecases.platform import Platform

T = TypeVar("T")
bench = typer.Typer(help="Put test sets to agents, score the answers, compare.", no_args_is_help=True)

User = Annotated[str, typer.Option(help="The name of the user it is done for, under whose budgets.")]
Which = Annotated[str, typer.Argument(help="The id of a bench, or its name for the last one.")]


@bench.command()
def run(
    suite: Annotated[Path, typer.Argument(help="The suite, a TOML file.")],
    new: Annotated[bool, typer.Option("--new", help="Ask everything anew.")] = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="Ask again what failed; score again what has no score.")
    ] = False,
    fail_under: Annotated[
        float | None, typer.Option(min=0, max=1, help="Status 1 if the score of any agent is less.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report, one file of HTML.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write all results: .parquet, .csv or .jsonl.")] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out broken rows, and count them, as `skip_bad` in the suite does.")
    ] = False,
    user: User = "admin",
) -> None:
    """Run a suite, or go on with it: what is stored is never asked again. Status 1 if it did not come to its end, or by --fail-under.

    The database is that of DATABASE_URL, or of the server on DATA_DIR, or one that is started for it there.
    """
    from app.suites.suite import read_suite

    _check_places(report, out)
    order = _or_exit(lambda: read_suite(suite))
    if skip_bad:
        order = order.model_copy(update={"dataset": order.dataset.model_copy(update={"skip_bad": True})})

    async def work(platform: Platform, principal: Principal) -> int:
        from app.usecases import benches

        dataset = _dataset(platform, principal, order, suite.parent)
        found = await benches.order(platform, principal, order, dataset, suite.parent, again=new)
        found = await benches.resume(platform, principal, found.id, failed=failed, with_jobs=False)
        found = await _worked(platform, found, order, suite.parent)
        await _written(platform, found, report, out)
        return await _verdict(platform, found, fail_under)

    raise typer.Exit(_in_platform(user, work))


@bench.command("list")
def list_benches(user: User = "admin") -> None:
    """Show the last benches."""

    async def work(platform: Platform, principal: Principal) -> int:
        from app.usecases import benches

        page = await benches.list_page(platform, principal, after=None, limit=50)
        for shown in page.items:
            one, far = shown.bench, shown.progress
            typer.echo(f"{one.id}  {one.created_at:%Y-%m-%d %H:%M}  {one.status:9}  {far.done}/{far.items}  {one.name}")
        return 0

    raise typer.Exit(_in_platform(user, work))


@bench.command()
def compare(
    first: Which,
    second: Annotated[str | None, typer.Argument(help="Another; by default the one of that name before it.")] = None,
    user: User = "admin",
) -> None:
    """Compare two benches row by row: whether the second is better than the first, how sure that is, and what each costs."""

    async def work(platform: Platform, principal: Principal) -> int:
        from app.usecases import bench_results, benches

        one = await benches.find(platform, principal, first, before=0 if second else 1)
        other = await benches.find(platform, principal, second or first)
        found = await bench_results.compared(platform, one, other)
        if not found:
            typer.echo("They have no agent of the same name, or no row in common.")
        for compared in found:
            typer.echo("\n".join(_told(compared)))
        return 0

    raise typer.Exit(_in_platform(user, work))


@bench.command("report")
def write_report(
    which: Which,
    report: Annotated[Path | None, typer.Option(help="Write the report, one file of HTML.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write all results: .parquet, .csv or .jsonl.")] = None,
    user: User = "admin",
) -> None:
    """Write the report or the results of a bench, as far as it is."""
    _check_places(report, out)

    async def work(platform: Platform, principal: Principal) -> int:
        from app.usecases import benches

        found = await benches.find(platform, principal, which)
        await _written(platform, found, report, out)
        return await _verdict(platform, found, None, ended=False)

    raise typer.Exit(_in_platform(user, work))


@bench.command()
def cancel(which: Which, user: User = "admin") -> None:
    """Begin no more items of a bench, wherever it runs. `run` goes on with it."""

    async def work(platform: Platform, principal: Principal) -> int:
        from app.usecases import benches

        found = await benches.find(platform, principal, which)
        await benches.cancel(platform, principal, found.id)
        return 0

    raise typer.Exit(_in_platform(user, work))


def _check_places(report: Path | None, out: Path | None) -> None:
    """That results can be written, before the work that they come from."""
    from app.cli.files import check_writable
    from app.datasets.files import KINDS
    from app.errors import SettingsError

    if out is not None and out.suffix not in KINDS:
        raise SettingsError(f"--out: the name must end in {', '.join(KINDS)}.")
    check_writable(report, out)


def _or_exit(read: Callable[[], T]) -> T:
    """What `read` gives; its refusal as a sentence and status 2."""
    from app.errors import AppError, SettingsError

    try:
        return read()
    except AppError as error:
        raise SettingsError(error.message) from None


# The platform


def _in_platform(user: str, work: Callable[[Platform, Principal], Awaitable[int]]) -> int:
    """Do it in a platform of this process; refusals are sentences and status 2."""
    import logging

    import uvloop

    from app.settings import load

    settings = load()
    logging.basicConfig(level=settings.log_level.upper() if settings.log_level != "info" else "WARNING")
    with _with_database(settings) as found:
        return _or_exit(lambda: uvloop.run(_opened(found, user, work)))


@contextmanager
def _with_database(settings: Settings) -> Iterator[Settings]:
    """The settings with a database at the newest schema: the one that is set, that of a server that runs here, or one of its own."""
    from app.cli.keys import secret_key
    from app.cli.serve import Engines, check_folder, check_schema, prepare
    from app.servers.lock import lock_data_dir
    from app.servers.postgres import Postgres

    check_folder(settings)
    if settings.database_url is not None:
        check_schema(settings)
        yield settings
        return
    folder = settings.data_dir.absolute()
    if _is_held(folder / "serve.lock"):
        postgres = Postgres(folder)
        if postgres.attach():
            yield _told_of(settings, database_url=postgres.url, secret_key=secret_key(folder))
            return
    with lock_data_dir(folder):
        engines = Engines(settings, folder)
        try:
            engines.start()
            prepare(settings, engines, folder)
            yield _told_of(settings, **engines.settings(), secret_key=secret_key(folder))
        finally:
            engines.stop()


def _is_held(path: Path) -> bool:
    """Whether somebody holds the lock."""
    from app.servers.lock import try_lock

    lock = try_lock(path) if path.exists() else None
    if lock is not None:
        lock.release()
    return path.exists() and lock is None


def _told_of(settings: Settings, **values: str) -> Settings:
    from pydantic import SecretStr

    given = {name: SecretStr(value) for name, value in values.items() if not getattr(settings, name)}
    return settings.model_copy(update=given)


async def _opened(settings: Settings, user: str, work: Callable[[Platform, Principal], Awaitable[int]]) -> int:
    from app.cli import garbage
    from app.domain import Principal, Scope
    from app.errors import SettingsError
    from app.main import opened
    from app.store import accounts

    assert settings.database_url  # noqa: S101 - given or started
    async with opened(settings, settings.database_url.get_secret_value()) as platform:
        async with platform.engine.connect() as db:
            found = await accounts.get_user(db, name=user)
        if found is None:
            raise SettingsError(f"There is no user {user}: name one with --user.")
        garbage.settle()
        return await work(platform, Principal(found, frozenset({Scope.CHAT})))


def _dataset(platform: Platform, principal: Principal, suite: Suite, folder: Path) -> Any:
    from app.datasets import Bucket, Dataset
    from app.settings import load
    from app.usecases.benches import SessionAnswers

    part = suite.dataset
    if part.rows is not None:
        return Dataset(part.rows, skip_bad=part.skip_bad)
    if part.sessions is not None:
        source = SessionAnswers(platform, principal.user.id)
        return Dataset.from_sessions(source, feedback=part.sessions.feedback, agent=part.sessions.agent)
    settings, path = load(), part.path or part.file_id or ""
    bucket = None
    if settings.minio_endpoint and settings.minio_access_key and settings.minio_secret_key:
        keys = settings.minio_access_key.get_secret_value(), settings.minio_secret_key.get_secret_value()
        bucket = Bucket(settings.minio_endpoint, *keys)
    where = path if path.startswith("s3://") else folder / path
    return Dataset.open(where, skip_bad=part.skip_bad, bucket=bucket)


# Work and what is shown of it


async def _worked(platform: Platform, found: Bench, suite: Suite, folder: Path) -> Bench:
    """Have it answered, with a line of progress; the first signal ends it when what is under way is stored."""
    import signal

    from msgspec.structs import replace

    from app.usecases.bench_work import Work

    found = replace(found, suite={**found.suite, "limits": suite.limits.model_dump(), "mode": suite.mode})
    if found.status != "running":
        return found
    work = Work(platform, found, folder)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, work.end)
    try:
        async with _shown(work, platform):
            return await work.run()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@asynccontextmanager
async def _shown(work: Work, platform: Platform) -> AsyncIterator[None]:
    """Live progress on standard error: items done of all processes, time left, failures, cost so far."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[more]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as progress:
        line = progress.add_task(work.bench.name, total=None, more="")

        async def show() -> None:
            far = work.progress
            done = max(1, far.done)
            more = f"score {far.score / done:.3f}  failed {far.failed}  cost {far.cost:.4f}"
            progress.update(line, total=far.items or None, completed=far.done, more=more)

        showing = platform.tasks.repeat(show, 0.5, name="progress")
        try:
            yield
        finally:
            showing.cancel()
            await show()


async def _written(platform: Platform, found: Bench, report: Path | None, out: Path | None) -> None:
    from app.cli.files import written
    from app.usecases import bench_results

    if report is not None:
        said = await bench_results.report(platform, found)
        with written(report) as file:
            await asyncio.to_thread(file.write, said.encode())
        typer.echo(f"The report is in {report}.")
    if out is not None:
        count = await bench_results.export(platform, found, out)
        typer.echo(f"{count} results are in {out}.")


async def _verdict(platform: Platform, found: Bench, fail_under: float | None, *, ended: bool = True) -> int:
    """Print what each agent has come to; the exit status."""
    from app.usecases import bench_results

    columns = await bench_results.summary(platform, found)
    width = max(len(column.name) for column in columns)
    typer.echo(f"{found.name}  {found.id}  {found.status}" + (f"  {found.reason}" if found.reason else ""))
    if found.skipped:
        typer.echo(f"{found.skipped} broken rows were left out.")
    for column in columns:
        scores = "  ".join(f"{name} {score:.3f}" for name, score in column.scores.items())
        typer.echo(
            f"{column.name.ljust(width)}  score {column.score:.3f}  items {column.items}  failed {column.failed}  "
            f"cost {column.cost:.4f}  tokens {column.tokens}  p50 {column.median:.2f} s  p95 {column.p95:.2f} s  {scores}".rstrip()
        )
    under = [column.name for column in columns if fail_under is not None and column.score < fail_under]
    if under:
        typer.echo(f"Below {fail_under}: {', '.join(under)}.", err=True)
    return int(bool(under) or (ended and found.status != "completed"))


def _told(compared: Compared) -> Sequence[str]:
    each = compared.comparison
    sure = "a real difference" if each.p < 0.05 else "it may be chance"
    return [
        f"{compared.first} → {compared.second}, {each.pairs} rows",
        f"  score {each.first:.4f} → {each.second:.4f}  {each.difference:+.4f}  95 % [{each.low:+.4f}, {each.high:+.4f}]",
        f"  better {each.better}  worse {each.worse}  p = {each.p:.4g} ({each.test}): {sure}",
        f"  an item costs {compared.costs[0]:.6f} → {compared.costs[1]:.6f}"
        f"  and takes {compared.seconds[0]:.2f} → {compared.seconds[1]:.2f} s",
    ]
