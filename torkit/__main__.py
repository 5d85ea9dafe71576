"""`python -m torkit`."""

from torkit.cli import main

main()
