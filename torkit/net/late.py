"""Loads, once a process serves, what it would else import when it first needs it.

A start is short because few modules are imported. But who serves for days may have no descriptor or memory
left when an import is due, or another version of torkit on its disk by then. Onion services are left out: an
import that fails there ends one request, and the next one tries again.
"""

from importlib import import_module

import trio

from torkit.directory.compression import load_codecs

LATE = (
    "h11",
    "http",
    "termios",
    "torkit.directory.diff",
    "torkit.net.dir.fetch",
    "torkit.net.proxy.forward",
    "torkit.net.proxy.relay",
)


async def load_late() -> None:
    """Import what this process may need later on, with a turn for others between two modules."""
    for name in LATE:
        import_module(name)
        await trio.lowlevel.checkpoint()
    load_codecs()
