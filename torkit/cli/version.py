"""`torkit version`: the same as --version."""

from torkit.cli.app import print_version
from torkit.cli.options import command_app

app = command_app()


@app.command()
def version() -> None:
    """Print the version."""
    print_version()
