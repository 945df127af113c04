"""The `chattable` command. Every import of weight is inside its command, so that `--help` is quick."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from app.cli.agents import agents
from app.cli.bench import bench
from app.cli.models import models
from app.cli.usage import show_usage
from app.errors import SettingsError

commands = typer.Typer(
    name="chattable",
    help="Chattable, a self-hosted chat platform for LLM agents. Settings are environment variables or lines of .env.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
commands.add_typer(agents, name="agents")
commands.add_typer(models, name="models")
commands.add_typer(bench, name="bench")
commands.command("usage")(show_usage)


@commands.command()
def serve() -> None:
    """Start the platform, with PostgreSQL and Valkey of its own where no URL is set, until Ctrl-C."""
    from app.cli.serve import run
    from app.settings import load

    raise typer.Exit(run(load()))


@commands.command()
def worker(
    at_once: Annotated[int, typer.Option(min=1, max=1000, help="How many jobs at once.")] = 10,
) -> None:
    """Do jobs of the servers that share DATABASE_URL, until Ctrl-C or SIGTERM."""
    from app.cli.worker import run
    from app.settings import load

    run(load(), at_once)


@commands.command()
def migrate() -> None:
    """Bring the database to the newest schema."""
    from app.cli.serve import upgrade
    from app.settings import load

    upgrade(load())
    typer.echo("The database is at the newest schema.")


@commands.command()
def version() -> None:
    """Print the version."""
    import tomllib
    from pathlib import Path

    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text(encoding="utf-8"))
    typer.echo(project["project"]["version"])


def main() -> None:
    """Run a command; a wrong setting is a sentence and status 2, never a traceback."""
    try:
        commands(prog_name="chattable")
    except SettingsError as error:
        typer.echo(f"chattable: {error}", err=True)
        sys.exit(2)
