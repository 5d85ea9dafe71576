"""`torkit version`: the same as --version."""

from torkit.cli import command_app, print_version

app = command_app()


@app.command()
def version() -> None:
    """Print the version."""
    print_version()
