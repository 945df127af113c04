"""`chattable db`: the schema, whether what is stored holds, and backups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.output import AsJson, show, show_one

if TYPE_CHECKING:
    from app.settings import Settings

db = typer.Typer(help="The database: upgrade, check, back up and restore it.", no_args_is_help=True)
NoFiles = Annotated[bool, typer.Option("--no-files", help="Leave users' files out.")]


@dataclass(frozen=True, slots=True)
class Database:
    """A database past any pooler; `prepare` is what an embedded one needs before there are tables."""

    url: str
    prepare: Callable[[str], None] | None = None


@db.command("upgrade")
def upgrade_schema(as_json: AsJson = False) -> None:
    """Bring the database to the newest schema, as `chattable serve` does when it starts."""
    from app.cli.serve import upgrade
    from app.settings import load
    from app.store.migrations import HEAD

    upgrade(load())
    show_one({"schema": HEAD}, f"The database is at the newest schema, {HEAD}.", as_json=as_json)


@db.command("check")
def check_database(as_json: AsJson = False) -> None:
    """Say what does not hold of the data, with status 1; it reads every table, while servers go on."""
    import asyncio

    from app.settings import load
    from app.store import migrations
    from app.usecases import backups

    with _database(load()) as found:
        revision = asyncio.run(migrations.current(found.url))
        broken = asyncio.run(backups.check(found.url)) if revision == migrations.HEAD else {}
    rows = [{"said": said, "violations": count} for said, count in broken.items()]
    if revision != migrations.HEAD:
        newer = "run `chattable db upgrade`" if (revision or "") < migrations.HEAD else "use a newer version"
        said = f"The database is at schema {revision or 'none'}, not {migrations.HEAD}: {newer}."
        rows = [{"said": said, "violations": 1}]
    if as_json or rows:
        show(rows, ("violations", "said"), as_json=as_json)
    else:
        typer.echo("All is well.")
    raise typer.Exit(int(bool(rows)))


@db.command("backup")
def back_up(
    folder: Annotated[Path | None, typer.Argument(help="A folder to be made; named by the time by default.")] = None,
    no_files: NoFiles = False,
    as_json: AsJson = False,
) -> None:
    """Write everything to a folder, of one moment, while servers go on. Whoever has it has all that users said."""
    import asyncio

    from app.domain import now
    from app.settings import load
    from app.usecases import backups

    settings = load()
    folder = folder or Path(f"chattable-backup-{now():%Y-%m-%dT%H%M%SZ}")
    with _database(settings) as found:
        made = asyncio.run(_with_objects(settings, lambda store: backups.take(found.url, store, folder), not no_files))
    said = f"{folder}: {made.rows} rows of {len(made.tables)} tables, {len(made.files)} files."
    if made.lost:
        said += f" {made.lost_files} files were not to be had whole and are left out: {', '.join(map(str, made.lost))}."
    told = {"folder": str(folder), **_told(made), "lost_files": made.lost_files, "lost": made.lost}
    show_one(told, said, as_json=as_json)


@db.command("restore")
def restore_from(
    folder: Annotated[Path, typer.Argument(help="A folder that `backup` made.")],
    check_only: Annotated[
        bool, typer.Option("--check", help="Only read the backup, and say whether it is whole.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup into an empty database, and check that all is there and holds. Of any version of PostgreSQL."""
    import asyncio

    from app.settings import load
    from app.usecases import backups

    if check_only:
        made = backups.check_files(folder)
        show_one({"folder": str(folder), **_told(made)}, f"{folder} is whole.", as_json=as_json)
        return
    settings = load()
    with _database(settings) as found:
        restore = partial(backups.restore, found.url, folder=folder, prepare=found.prepare)
        made = asyncio.run(_with_objects(settings, restore, wanted=True))
    said = f"Restored and checked: {made.rows} rows of {len(made.tables)} tables, {len(made.files)} files."
    show_one({"folder": str(folder), **_told(made)}, said, as_json=as_json)


def _told(made: Any) -> dict[str, Any]:
    tables = {table.name: table.rows for table in made.tables}
    return {"schema": made.revision, "created_at": made.created_at, "tables": tables, "files": len(made.files)}


async def _with_objects(settings: Settings, work: Callable[[Any], Any], wanted: bool) -> Any:
    from app.main import objects

    if not wanted:
        return await work(None)
    store = objects(settings)
    try:
        await store.check()
        return await work(store)
    finally:
        await store.close()


@contextmanager
def _database(settings: Settings) -> Iterator[Database]:
    """The database of the settings. An embedded one is used while its server runs, and else started for this."""
    from app.cli.serve import checking
    from app.errors import SettingsError
    from app.servers.lock import lock_data_dir
    from app.servers.postgres import Postgres
    from app.store import migrations

    direct = settings.database_direct_url or settings.database_url
    if settings.database_url is not None and direct is not None:
        with checking("DATABASE_DIRECT_URL" if settings.database_direct_url else "DATABASE_URL"):
            yield Database(direct.get_secret_value())
        return
    data_dir = settings.data_dir.absolute()
    postgres = Postgres(data_dir)
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_data_dir(data_dir))
        except SettingsError:
            if not data_dir.is_dir() or not postgres.attach():
                raise
        else:
            stack.callback(postgres.stop)
            postgres.start()
        yield Database(postgres.url, lambda _: migrations.add_vectors(postgres.superuser_url))
