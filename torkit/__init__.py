"""torkit: a Tor client for shells and Python.

    import torkit

    async with torkit.open_tor() as tor:          # under trio
        await tor.wait_ready()
        stream = await tor.connect("example.com", 80)

Under asyncio: torkit.aio. Without an event loop: torkit.blocking. What can go wrong is in torkit.errors.
"""

TYPE_CHECKING = False  # as the type checker knows it; `typing` would take longer than all else here
if TYPE_CHECKING:
    from torkit import aio, blocking, errors, events
    from torkit.client import Tor, open_tor
    from torkit.config import Network, data_dir, load_network
    from torkit.net.circuit.stream import Stream
    from torkit.net.circuits.request import Resolved
    from torkit.paths.constraints import Constraints

    __version__: str

__all__ = [
    "Constraints",
    "Network",
    "Resolved",
    "Stream",
    "Tor",
    "__version__",
    "aio",
    "blocking",
    "data_dir",
    "errors",
    "events",
    "load_network",
    "open_tor",
]

_HOMES = {
    "Constraints": "torkit.paths.constraints",
    "Network": "torkit.config",
    "Resolved": "torkit.net.circuits.request",
    "Stream": "torkit.net.circuit.stream",
    "Tor": "torkit.client",
    "data_dir": "torkit.config",
    "load_network": "torkit.config",
    "open_tor": "torkit.client",
}
_MODULES = {"aio", "blocking", "errors", "events"}


def __getattr__(name: str) -> object:
    """Import on first use: `torkit --version` needs none of this, and trio alone takes 60 ms."""
    from importlib import import_module

    if name == "__version__":
        from importlib.metadata import version

        return version("torkit")
    if name in _MODULES:
        return import_module(f"torkit.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'torkit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
