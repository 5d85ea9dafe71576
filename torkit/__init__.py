"""torkit: a Tor client for shells and Python.

    from torkit import data_dir, load_network, open_tor

    network = load_network(None)                  # the public network
    async with open_tor(network=network, data_dir=data_dir(network, None)) as tor:
        await tor.wait_ready()
        stream = await tor.connect("example.com", 80)

What can go wrong is in torkit.errors.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torkit.client import Tor, open_tor
    from torkit.config import Network, data_dir, load_network
    from torkit.net.circuit.stream import Stream
    from torkit.net.circuits.request import Resolved
    from torkit.paths.constraints import Constraints

__all__ = ["Constraints", "Network", "Resolved", "Stream", "Tor", "data_dir", "load_network", "open_tor"]

_HOMES = {
    "Constraints": "torkit.paths.choose",
    "Network": "torkit.config",
    "Resolved": "torkit.net.circuits.request",
    "Stream": "torkit.net.circuit.stream",
    "Tor": "torkit.client",
    "data_dir": "torkit.config",
    "load_network": "torkit.config",
    "open_tor": "torkit.client",
}


def __getattr__(name: str) -> object:
    """Import on first use: `torkit --version` needs none of this, and trio alone takes 60 ms."""
    if name not in _HOMES:
        raise AttributeError(f"module 'torkit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
