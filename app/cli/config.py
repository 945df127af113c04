"""`chattable config`: the settings as they are in force, and where each comes from."""

from __future__ import annotations

import typer

from app.cli.output import AsJson, show

MASK = "***"


def show_config(as_json: AsJson = False) -> None:
    """Show every setting that is in force, secrets masked, and where it comes from."""
    rows = [{"name": name, "value": value, "from": source} for name, value, source in effective()]
    show(rows, ("name", "value", "from"), as_json=as_json)
    from app.settings import strangers

    if unknown := strangers():
        typer.echo(f"Not settings of Chattable, though they stand in .env: {', '.join(unknown)}", err=True)


def effective() -> list[tuple[str, str | None, str]]:
    """Name, value and source of each setting, and of those of agents, whose values may all be secrets."""
    from pydantic import SecretStr

    from app.logs import SECRET
    from app.settings import agent_variables, load, sources

    settings, found = load(), []
    for name, source in sources().items():
        value = getattr(settings, name.lower())
        if isinstance(value, SecretStr):
            plain = value.get_secret_value()
            shown: str | None = SECRET.sub(MASK, plain) if "://" in plain else MASK
        else:
            shown = None if value is None else ",".join(value) if isinstance(value, tuple) else str(value)
        found.append((name, shown, source))
    return [*found, *((name, MASK, "agent's") for name in sorted(agent_variables()))]
