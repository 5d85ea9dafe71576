"""Where the program starts: `torkit`, and `python -m torkit`."""

import gc


def start() -> None:
    """Run the command line. What imports make stays: torkit.cli.run has garbage looked for later."""
    gc.disable()
    from torkit.cli.app import main

    main()


if __name__ == "__main__":
    start()
