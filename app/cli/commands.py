"""All commands of `chattable`. Every import of weight is inside its command, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from app.cli.accounts import budgets, keys, show_audit, users
from app.cli.agents import agents
from app.cli.batch import batch
from app.cli.bench import bench
from app.cli.chat import chat
from app.cli.config import show_config
from app.cli.db import db
from app.cli.doctor import examine
from app.cli.importing import import_chats
from app.cli.models import models
from app.cli.output import AsJson, show_one
from app.cli.runs import runs
from app.cli.usage import show_usage
from app.errors import AppError, SettingsError

commands = typer.Typer(
    name="chattable",
    help="Chattable, a self-hosted chat platform for LLM agents. Settings are environment variables or lines of .env.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes would double the time of --help
)
commands.add_typer(agents, name="agents")
commands.add_typer(models, name="models")
commands.add_typer(runs, name="runs")
commands.add_typer(users, name="users")
commands.add_typer(keys, name="keys")
commands.add_typer(budgets, name="budgets")
commands.add_typer(db, name="db")
commands.add_typer(bench, name="bench")
commands.add_typer(batch, name="batch")
commands.command("usage")(show_usage)
commands.command("audit")(show_audit)
commands.command("chat")(chat)
commands.command("import")(import_chats)
commands.command("config")(show_config)
commands.command("doctor")(examine)


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
    """Bring the database to the newest schema, as `db upgrade` does."""
    from app.cli.serve import upgrade
    from app.settings import load

    upgrade(load())
    typer.echo("The database is at the newest schema.")


@commands.command()
def version(as_json: AsJson = False) -> None:
    """Print the version."""
    import tomllib
    from pathlib import Path

    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text(encoding="utf-8"))
    number = project["project"]["version"]
    show_one({"version": number}, number, as_json=as_json)


def run() -> None:
    """Run a command. What went wrong is a sentence, never a traceback: a setting is status 2, all else 1."""
    try:
        commands(prog_name="chattable")
    except SettingsError as error:
        typer.echo(f"chattable: {error}", err=True)
        sys.exit(2)
    except AppError as error:
        typer.echo(f"chattable: {error.message}", err=True)
        sys.exit(1)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
