"""The `chattable` command. Its modules stand alone: a server's process needs none of the others."""


def main() -> None:
    """Run a command."""
    from app.cli.commands import run

    run()
